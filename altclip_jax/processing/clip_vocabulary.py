"""The byte-pair encoding in CLIP's vocab.json and merges.txt."""

from __future__ import annotations

import itertools
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

from altclip_jax.processing.slow_vocabulary import SlowVocabulary
from altclip_jax.processing.tokenizer_settings import TokenizerSettings
from altclip_jax.processing.vocabulary import Template

_END = "</w>"  # of a word
_LITERALS = ("<|startoftext|>", "<|endoftext|>")  # never merged, whatever the case they were written in
_MOST_MERGES = 49152 - 256 - 2  # of OpenAI's list, which goes on, the reference reads so many
_MOST_WORDS = 2**16  # that are remembered


class CLIPVocabulary(SlowVocabulary):
    """CLIP's byte-pair encoding: words in lower case, each cut into pieces of the UTF-8 bytes.

    Equal to transformers' slow CLIPTokenizer where ftfy is not installed. The fast one, and so a tokenizer.json,
    neither drops control and unassigned characters nor sets Chinese characters apart: a Chinese text has other ids
    there. With ftfy the slow one repairs wrongly decoded text first and does not normalise to NFC, as OpenAI's does.
    Source: tokenization_clip.py of transformers 4.56.2.
    """

    def __init__(self, folder: str, files: Mapping[str, bytes], settings: TokenizerSettings):
        """Reads the content of vocab.json and merges.txt; `folder` is where errors say they are.

        Raises:
            ValueError: one of them is damaged.
        """
        self._vocabulary = _vocabulary(f"{folder}/vocab.json", files["vocab.json"])
        self._ranks = _ranks(f"{folder}/merges.txt", files["merges.txt"])
        self._by_index = {index: piece for piece, index in self._vocabulary.items()}
        self._words: dict[str, tuple[str, ...]] = {}
        super().__init__(settings, len(self._vocabulary), {})
        begin, end = self._ids[settings.roles["bos_token"]], self._ids[settings.roles["eos_token"]]
        self.template = Template(prefix=(begin,), suffix=(end,), middle=(end, end), pair_suffix=(end,))

    def _pieces(self, text: str) -> list[str]:
        pieces: list[str] = []
        for word in words(text):
            known = self._words.get(word)
            if known is None:
                known = (word,) if word in _LITERALS else self._merged(word)
                if len(self._words) < _MOST_WORDS:
                    self._words[word] = known
            pieces += known
        return pieces

    def _merged(self, word: str) -> tuple[str, ...]:
        *symbols, last = (_SYMBOLS[byte] for byte in word.encode())
        symbols.append(last + _END)
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, math.inf))
            if best not in self._ranks:
                break
            merged, place = [], 0
            while place < len(symbols):
                step = 2 if place < len(pairs) and pairs[place] == best else 1
                merged.append("".join(symbols[place : place + step]))
                place += step
            symbols = merged
        return tuple(symbols)

    def _string(self, pieces: Sequence[str]) -> str:
        data = b"".join(_BYTES.get(symbol, symbol.encode()) for symbol in "".join(pieces))
        return data.decode("utf-8", errors="replace").replace(_END, " ").strip()

    def _piece_ids(self, pieces: Sequence[str]) -> list[int]:
        return [self._vocabulary.get(piece, self._unknown) for piece in pieces]

    def _piece(self, index: int) -> str | None:
        return self._by_index.get(index)

    def _piece_index(self, piece: str) -> int | None:
        return self._vocabulary.get(piece)


def words(text: str) -> list[str]:
    """Returns the words of a text: runs of letters, single digits, runs of signs, and English contractions apart."""
    text = unicodedata.normalize("NFC", text.translate(_CLEANED)).lower()
    kinds = text.translate(_KINDS)
    found, place = [], 0
    while place < len(text):
        match = _BEFORE_ALL.match(text, place) or _RUNS.match(kinds, place)
        if match is None:
            place += 1  # white space
        else:
            found.append(text[place : match.end()])
            place = match.end()
    return found


class _Cleaned(dict[int, str | None]):
    """A table for str.translate, filled as characters are met: controls vanish, Chinese characters stand apart."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        cleaned: str | None = character
        if character in "\t\n\r" or category == "Zs":
            cleaned = " "
        elif code == 0xFFFD or category[0] == "C":
            cleaned = None
        elif any(first <= code <= last for first, last in _CHINESE):
            cleaned = f" {character} "
        self[code] = cleaned
        return cleaned


class _Kinds(dict[int, str]):
    """A table for str.translate, filled as characters are met: letter, number, space or sign."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = {"L": "L", "N": "N"}.get(unicodedata.category(character)[0], " " if character.isspace() else "S")
        if character == "\N{COMBINING GREEK YPOGEGRAMMENI}":
            kind = " "  # a sign whose capital is a letter: the reference's pattern, blind to case, takes it for neither
        self[code] = kind
        return kind


def _vocabulary(name: str, data: bytes) -> dict[str, int]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON ({error}).") from None
    if not isinstance(found, dict) or any(isinstance(i, bool) or not isinstance(i, int) for i in found.values()):
        raise ValueError(f"{name} must hold an object that gives each piece a whole number.")
    return found


def _ranks(name: str, data: bytes) -> dict[tuple[str, str], int]:
    try:
        lines = data.decode().strip().split("\n")[1 : 1 + _MOST_MERGES]  # the first says the version
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text ({error}).") from None
    pairs = [line.split() for line in lines]
    wrong = [place for place, pair in enumerate(pairs, start=2) if len(pair) != 2]
    if wrong:
        listed = ", ".join(map(str, wrong[:10])) + (" and more" if len(wrong) > 10 else "")
        raise ValueError(f"{name} must hold two pieces on each line after the first, and does not on line {listed}.")
    return {(first, second): rank for rank, (first, second) in enumerate(pairs)}


def _byte_symbols() -> list[str]:
    """A printable character for every byte: itself where it is one, and the next of those after 255 where not."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = itertools.count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


# The blocks of Chinese characters, as BERT's tokenizer lists them.
_CHINESE = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
_CLEANED, _KINDS = _Cleaned(), _Kinds()
_BEFORE_ALL = re.compile("|".join([*map(re.escape, _LITERALS), "'s|'t|'re|'ve|'m|'ll|'d"]), re.IGNORECASE)
_RUNS = re.compile("L+|N|S+")
_SYMBOLS = _byte_symbols()
_BYTES = {symbol: bytes([byte]) for byte, symbol in enumerate(_SYMBOLS)}
