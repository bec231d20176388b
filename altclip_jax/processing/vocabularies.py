"""The two forms a vocabulary comes in, both giving ids of plain text: sentencepiece.bpe.model and tokenizer.json.

Heavy libraries are imported when a vocabulary is opened; both kinds can be pickled into worker processes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Template:
    """The special ids around one text, and around a pair."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    middle: tuple[int, ...]
    pair_suffix: tuple[int, ...]


@dataclass(frozen=True)
class SpecialToken:
    """A string that is one token wherever it stands in a text."""

    content: str
    id: int
    lstrip: bool = False  # the white space before it belongs to it
    rstrip: bool = False


class Vocabulary(Protocol):
    """What the tokenizer asks of either form."""

    template: Template

    def encode(self, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
        """Returns the ids of each text, without those of the template."""
        ...

    def token(self, index: int) -> str | None:
        """Returns the token of an id."""
        ...

    def index(self, token: str) -> int | None:
        """Returns the id of a token."""
        ...

    def __len__(self) -> int: ...


class SentencePieceVocabulary:
    """XLM-R's sentencepiece model, with the ids that fairseq gave its pieces: all moved up by one, four in front.

    Equal to transformers' slow XLMRobertaTokenizer, special strings within the text included.
    Source: tokenization_xlm_roberta.py of transformers 4.56.2.
    """

    template = Template(prefix=(0,), suffix=(2,), middle=(2, 2), pair_suffix=(2,))
    _FIRST = ("<s>", "<pad>", "</s>", "<unk>")

    def __init__(self, path: Path, added: Sequence[SpecialToken] = ()):
        """Reads the model file; `added` are further special tokens, or the standard ones with other settings.

        Raises:
            ValueError: the file is not a sentencepiece model.
        """
        self._name, self._data = str(path), path.read_bytes()
        self._open()
        self._mask = len(self._model) + 1
        standard = [SpecialToken(token, index) for index, token in enumerate(self._FIRST)]
        standard.append(SpecialToken("<mask>", self._mask, lstrip=True))
        self._special = {token.content: token for token in [*standard, *added]}
        self._by_id = {token.id: token.content for token in self._special.values()}
        longest_first = sorted(self._special, key=len, reverse=True)
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
        parts = [[text] if split_special_tokens else self._split(text) for text in texts]
        plain = [part for split in parts for part in split if isinstance(part, str)]
        pieces = iter(self._model.encode(plain, out_type=int))
        return [
            [index for part in split for index in (_moved_up(next(pieces)) if isinstance(part, str) else (part.id,))]
            for split in parts
        ]

    def _split(self, text: str) -> list[str | SpecialToken]:
        """Cuts a text at its special strings, which may take the white space beside them with them."""
        strings: list[str | SpecialToken] = [self._special.get(part, part) for part in self._splitter.split(text)]
        for place, part in enumerate(strings):
            if not isinstance(part, SpecialToken):
                continue
            before, after = strings[place - 1], strings[place + 1]  # split puts a string on either side
            if part.rstrip and isinstance(after, str):
                strings[place + 1] = after.lstrip()
            if part.lstrip and isinstance(before, str):
                strings[place - 1] = before.rstrip()
        return [part for part in strings if part != ""]

    def token(self, index: int) -> str | None:
        """Returns the token of an id."""
        if index in self._by_id:
            return self._by_id[index]
        return self._model.id_to_piece(index - 1) if 4 <= index < self._mask else None

    def index(self, token: str) -> int | None:
        """Returns the id of a token."""
        if token in self._special:
            return self._special[token].id
        piece = self._model.piece_to_id(token)
        return piece + 1 if piece else None

    def __len__(self) -> int:
        return max(self._mask, *self._by_id) + 1


def _moved_up(pieces: Sequence[int]) -> list[int]:
    return [piece + 1 if piece else 3 for piece in pieces]  # piece 0 is <unk>


class JsonVocabulary:
    """A tokenizer.json, followed exactly, but for one step: a Precompiled charsmap is applied by sentencepiece.

    The tokenizers library applies such a map grapheme by grapheme and so misses what sentencepiece, whose map it is,
    matches across them: decomposed Hangul stays decomposed there (huggingface/tokenizers#2116).
    """

    def __init__(self, path: Path):
        """Reads the file.

        Raises:
            ValueError: it is not a tokenizer.json.
        """
        self._name, self._text = str(path), path.read_text(encoding="utf-8")
        self._open()
        self.template = self._read_template()

    def _open(self) -> None:
        from tokenizers import Tokenizer

        try:
            description = json.loads(self._text)
            maps = _take_charsmaps(description)
            self._plain, self._splitting = (Tokenizer.from_str(json.dumps(description)) for _ in range(2))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{self._name} is not a tokenizer.json that can be read ({error}).") from None
        for tokenizer in (self._plain, self._splitting):
            tokenizer.no_padding()
            tokenizer.no_truncation()
            if maps:
                _apply_first(tokenizer, maps)
        self._splitting.encode_special_tokens = True

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_plain", "_splitting")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _read_template(self) -> Template:
        single = self._plain.encode("a").special_tokens_mask
        pair = self._plain.encode("a", "a").special_tokens_mask
        ids, pair_ids = self._plain.encode("a").ids, self._plain.encode("a", "a").ids
        first, last = single.index(0), len(single) - single[::-1].index(0)
        length = last - first
        second = next(place for place in range(first + length, len(pair)) if not pair[place])
        return Template(
            prefix=tuple(ids[:first]),
            suffix=tuple(ids[last:]),
            middle=tuple(pair_ids[first + length : second]),
            pair_suffix=tuple(pair_ids[second + length :]),
        )

    def encode(self, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
        """Returns the ids of each text, without those of the template."""
        tokenizer = self._splitting if split_special_tokens else self._plain
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def token(self, index: int) -> str | None:
        """Returns the token of an id."""
        token: str | None = self._plain.id_to_token(index)
        return token

    def index(self, token: str) -> int | None:
        """Returns the id of a token."""
        index: int | None = self._plain.token_to_id(token)
        return index

    def __len__(self) -> int:
        size: int = self._plain.get_vocab_size(with_added_tokens=True)
        return size


def _take_charsmaps(description: dict[str, Any]) -> list[bytes]:
    """Removes a Precompiled step that comes first from the normalizer, and returns its map."""
    normalizer = description.get("normalizer") or {}
    steps = normalizer.get("normalizers", []) if normalizer.get("type") == "Sequence" else [normalizer]
    if not steps or steps[0].get("type") != "Precompiled":
        return []
    rest = steps[1:]
    description["normalizer"] = {"type": "Sequence", "normalizers": rest} if rest else None
    return [base64.b64decode(steps[0]["precompiled_charsmap"])]


def _apply_first(tokenizer: Any, maps: list[bytes]) -> None:
    from tokenizers import normalizers

    first = normalizers.Normalizer.custom(_Charsmap(maps[0]))
    rest = tokenizer.normalizer
    tokenizer.normalizer = first if rest is None else normalizers.Sequence([first, rest])


class _Charsmap:
    """A normalizer of the tokenizers library that lets sentencepiece apply its own map."""

    def __init__(self, charsmap: bytes):
        import sentencepiece
        from tokenizers import Regex

        self._whole = Regex(r"(?m)\A.+\z")
        self._normalizer = sentencepiece.SentencePieceNormalizer(
            model_proto=_model_with(charsmap),
            add_dummy_prefix=False,
            escape_whitespaces=False,
            remove_extra_whitespaces=False,
        )

    def normalize(self, text: Any) -> None:
        """Replaces the text by its normal form, as the library's interface wants it."""
        before = str(text.normalized)
        after = self._normalizer.normalize(before)
        if after != before:
            text.replace(self._whole, after)


def _model_with(charsmap: bytes) -> bytes:
    """Returns a sentencepiece ModelProto that holds nothing but a normalizer_spec with this map."""
    spec = b"\x12" + _varint(len(charsmap)) + charsmap  # field 2: precompiled_charsmap
    return b"\x1a" + _varint(len(spec)) + spec  # field 3: normalizer_spec


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
