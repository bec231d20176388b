"""The vocabulary in a tokenizer.json.

The libraries are imported when a vocabulary is opened, which can be pickled into worker processes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from altclip_jax.processing.charsmap import build_normalizer, has_charsmap
from altclip_jax.processing.tokenizer_settings import TokenizerSettings
from altclip_jax.processing.vocabulary import Template


class JsonVocabulary:
    """A tokenizer.json, followed exactly, but for its Precompiled steps: see `charsmap`."""

    spare_to_longer = True

    def __init__(self, name: str, data: bytes, settings: TokenizerSettings):
        """Opens the content of the file; `name` is what errors call it.

        Raises:
            ValueError: it is not a tokenizer.json.
        """
        self._name, self._data, self._settings = name, data, settings
        self._open()
        self.size = int(self._plain.get_vocab_size(with_added_tokens=False))

    def _open(self) -> None:
        try:
            self._plain = self._read()
            self.template = _template(self._plain)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{self._name} is not a tokenizer.json that can be read ({error}).") from None

    def _read(self) -> Any:
        from tokenizers import AddedToken, Tokenizer

        description = json.loads(self._data)
        normalizer = description.get("normalizer")
        if has_charsmap(normalizer):
            description["normalizer"] = None
        tokenizer = Tokenizer.from_str(json.dumps(description) if has_charsmap(normalizer) else self._data.decode())
        if has_charsmap(normalizer):
            tokenizer.normalizer = build_normalizer(normalizer)
        self._word_end = getattr(tokenizer.model, "end_of_word_suffix", None)  # of a byte-pair encoding such as CLIP's
        tokenizer.no_padding()
        tokenizer.no_truncation()
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        added = []
        for token in self._settings.tokens:
            if token.declared or token.content not in known:
                special = token.special or token.content in self._settings.special_contents
                normalized = not special if token.normalized is None else token.normalized
                flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
                added.append(AddedToken(token.content, **flags, special=special, normalized=normalized))
        tokenizer.add_tokens(added)
        return tokenizer

    @functools.cached_property
    def _splitting(self) -> Any:
        """A second tokenizer, since how special strings are read is a setting of the object that threads share."""
        tokenizer = self._read()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_plain", "_splitting")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def encode(self, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
        """Returns the ids of each text, without those of the template."""
        tokenizer = self._splitting if split_special_tokens else self._plain
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def tokenize(self, text: str, split_special_tokens: bool) -> list[str]:
        """Returns the pieces that the ids stand for, the unknown ones as they are in the text."""
        tokenizer = self._splitting if split_special_tokens else self._plain
        return list(tokenizer.encode(text, add_special_tokens=False).tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Returns the text of ids that are all in the vocabulary."""
        text = str(self._plain.decode(list(ids), skip_special_tokens=skip_special_tokens))
        return text.replace(self._word_end, " ").strip() if self._word_end else text

    def token(self, index: int) -> str | None:
        """Returns the token of an id."""
        token: str | None = self._plain.id_to_token(index) if index >= 0 else None
        return token

    def index(self, token: str) -> int | None:
        """Returns the id of a token."""
        index: int | None = self._plain.token_to_id(token)
        return index

    def __len__(self) -> int:
        return int(self._plain.get_vocab_size(with_added_tokens=True))


def _template(tokenizer: Any) -> Template:
    """Reads off what the tokenizer puts around a text and a pair."""
    single, pair = tokenizer.encode("a"), tokenizer.encode("a", "a")
    mask, pair_mask = single.special_tokens_mask, pair.special_tokens_mask
    if 0 not in mask:
        raise ValueError("it has no token for the letter a")
    first, last = mask.index(0), len(mask) - mask[::-1].index(0)
    length = last - first
    second = next(place for place in range(first + length, len(pair_mask)) if not pair_mask[place])
    return Template(
        prefix=tuple(single.ids[:first]),
        suffix=tuple(single.ids[last:]),
        middle=tuple(pair.ids[first + length : second]),
        pair_suffix=tuple(pair.ids[second + length :]),
    )
