"""The vocabulary in a sentencepiece.bpe.model.

The library is imported when a vocabulary is opened, which can be pickled into worker processes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from altclip_jax.processing.tokenizer_settings import TokenizerSettings
from altclip_jax.processing.vocabulary import Template


class XLMRVocabulary:
    """XLM-R's sentencepiece model, with the ids that fairseq gave its pieces: all moved up by one, four in front.

    Equal to transformers' slow XLMRobertaTokenizer, special strings within the text included.
    Source: tokenization_xlm_roberta.py and tokenization_utils.py of transformers 4.56.2.
    """

    spare_to_longer = False
    _FIRST = ("<s>", "<pad>", "</s>", "<unk>")

    def __init__(self, name: str, data: bytes, settings: TokenizerSettings):
        """Opens the content of a model file; `name` is what errors call it.

        Raises:
            ValueError: the file is not a sentencepiece model, or has no token for what `settings` put around a text.
        """
        self._name, self._data = name, data
        self._open()
        self._mask = len(self._model) + 1
        self.size = self._mask + 1
        self._skipped = settings.special_contents
        self._tokens = {token.content: token for token in settings.tokens}
        self._ids = dict(zip(self._FIRST, range(4), strict=True)) | {"<mask>": self._mask}
        self._beyond = 0
        for content, token in self._tokens.items():
            known = self.index(content)
            self._ids[content] = next(index for index in (token.id, known, len(self)) if index is not None)
            self._beyond += known is None
        self._by_id = {index: content for content, index in self._ids.items()}
        # by the reference's habit: decoded with a space on either side
        self._apart = (set(self._tokens) - self._skipped) | {
            content for content in settings.additional if self._ids[content] >= self.size
        }
        self._unknown = self._ids[settings.roles["unk_token"]]
        first, last = self._ids[settings.roles["cls_token"]], self._ids[settings.roles["sep_token"]]
        self.template = Template(prefix=(first,), suffix=(last,), middle=(last, last), pair_suffix=(last,))
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def _open(self) -> None:
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(self._data)
        except RuntimeError as error:
            raise ValueError(f"{self._name} is not a sentencepiece model ({error}).") from None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def encode(self, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
        """Returns the ids of each text, without those of the template."""
        rows = []
        for text in texts:
            pieces = self.tokenize(text, split_special_tokens)
            # 0 is the unknown piece; a piece that is also an added token has that one's id, as in the reference
            moved = (index + 1 if index else self._unknown for index in self._model.piece_to_id(pieces))
            rows.append([self._ids.get(piece, index) for piece, index in zip(pieces, moved, strict=True)])
        return rows

    def tokenize(self, text: str, split_special_tokens: bool) -> list[str]:
        """Returns the pieces that the ids stand for, the unknown ones as they are in the text."""
        if split_special_tokens:
            return list(self._model.encode(text, out_type=str))
        pieces: list[str] = []
        for part in self._split(text):
            pieces += (part,) if part in self._tokens else self._model.encode(part, out_type=str)
        return pieces

    def _split(self, text: str) -> list[str]:
        """Cuts a text at its special strings, which may take the white space beside them with them."""
        parts = [part for part in self._splitter.split(text) if part]
        for place, part in enumerate(parts):
            token = self._tokens.get(part)
            if token is None:
                continue
            before = parts[place - 1] if place else ""
            after = parts[place + 1] if place + 1 < len(parts) else ""
            if token.rstrip and after:
                parts[place + 1] = after.lstrip()
            if token.lstrip and before:
                parts[place - 1] = before.rstrip()
            if token.single_word and before and before[-1] != " ":
                parts[place - 1], parts[place] = parts[place - 1] + part, ""
            elif token.single_word and after and after[0] != " ":
                parts[place + 1], parts[place] = part + parts[place + 1], ""
        return [part for part in parts if part]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Returns the text of ids that are all in the vocabulary."""
        texts: list[str] = []
        run: list[str] = []
        for token in (str(self.token(index)) for index in ids):
            if skip_special_tokens and token in self._skipped:
                continue
            if token in self._apart:
                texts += [*filter(None, [_without_marks(run)]), token]
                run = []
            else:
                run.append(token)
        # a last run that is nothing but space still counts there, and leaves a space
        return " ".join([*texts, _without_marks(run)] if run else texts)

    def token(self, index: int) -> str | None:
        """Returns the token of an id."""
        if index in self._by_id:
            return self._by_id[index]
        return self._model.id_to_piece(index - 1) if len(self._FIRST) <= index < self._mask else None

    def index(self, token: str) -> int | None:
        """Returns the id of a token."""
        if token in self._ids:
            return self._ids[token]
        piece = self._model.piece_to_id(token)
        return piece + 1 if piece else None

    def __len__(self) -> int:
        return self.size + self._beyond


def _without_marks(pieces: Sequence[str]) -> str:
    return "".join(pieces).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip()
