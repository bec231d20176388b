"""What the vocabularies that follow transformers' slow tokenizers share: added tokens beside pieces of their own.

Source: tokenization_utils.py of transformers 4.56.2 (PreTrainedTokenizer).
"""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping, Sequence

from altclip_jax.processing.tokenizer_settings import TokenizerSettings
from altclip_jax.processing.vocabulary import Template


class SlowVocabulary(abc.ABC):
    """Cuts texts at the strings that are one token, and gives what is between to the pieces of a subclass."""

    spare_to_longer = False
    template: Template

    def __init__(self, settings: TokenizerSettings, size: int, ids: Mapping[str, int]):
        """Gives the added tokens of `settings` their ids.

        Args:
            settings: Says which they are.
            size: The number of ids without them.
            ids: Of tokens that no piece stands for; a piece that is also one of these or an added token has that id.
        """
        self.size = size
        self._skipped = settings.special_contents
        self._tokens = {token.content: token for token in settings.tokens}
        self._ids, self._beyond = dict(ids), 0
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
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @abc.abstractmethod
    def _pieces(self, text: str) -> list[str]:
        """Returns the pieces of a text without added tokens."""

    @abc.abstractmethod
    def _string(self, pieces: Sequence[str]) -> str:
        """Returns the text of pieces."""

    @abc.abstractmethod
    def _piece_ids(self, pieces: Sequence[str]) -> list[int]:
        """Returns the ids of pieces, that of the unknown token for what is none."""

    @abc.abstractmethod
    def _piece(self, index: int) -> str | None:
        """Returns the piece of an id."""

    @abc.abstractmethod
    def _piece_index(self, piece: str) -> int | None:
        """Returns the id of a piece."""

    def encode(self, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
        """Returns the ids of each text, without those of the template."""
        rows = []
        for text in texts:
            pieces = self.tokenize(text, split_special_tokens)
            ids = self._piece_ids(pieces)
            rows.append([self._ids.get(piece, index) for piece, index in zip(pieces, ids, strict=True)])
        return rows

    def tokenize(self, text: str, split_special_tokens: bool) -> list[str]:
        """Returns the pieces that the ids stand for, the unknown ones as they are in the text."""
        if split_special_tokens:
            return self._pieces(text)
        pieces: list[str] = []
        for part in self._split(text):
            pieces += (part,) if part in self._tokens else self._pieces(part)
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
                texts += [*filter(None, [self._string(run)]), token]
                run = []
            else:
                run.append(token)
        # a last run that is nothing but space still counts there, and leaves a space
        return " ".join([*texts, self._string(run)] if run else texts)

    def token(self, index: int) -> str | None:
        """Returns the token of an id."""
        return self._by_id[index] if index in self._by_id else self._piece(index)

    def index(self, token: str) -> int | None:
        """Returns the id of a token."""
        return self._ids[token] if token in self._ids else self._piece_index(token)

    def __len__(self) -> int:
        return self.size + self._beyond
