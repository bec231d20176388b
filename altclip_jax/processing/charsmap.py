"""A tokenizer.json's normaliser in which sentencepiece applies each Precompiled step, since such maps are its own.

The tokenizers library applies a map grapheme by grapheme and so misses what sentencepiece matches across them:
decomposed Hangul stays decomposed there (huggingface/tokenizers#2116).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any


def has_charsmap(description: Mapping[str, Any] | None) -> bool:
    """Tells whether a normaliser of a tokenizer.json has a Precompiled step, at any depth."""
    description = description or {}
    steps = description.get("normalizers", [])
    return description.get("type") == "Precompiled" or any(has_charsmap(step) for step in steps)


def build_normalizer(description: Mapping[str, Any]) -> Any:
    """Returns the tokenizers.normalizers.Normalizer that a tokenizer.json describes.

    Raises:
        ValueError, RuntimeError: a charsmap is damaged.
    """
    from tokenizers import Tokenizer, normalizers

    if description["type"] == "Sequence":
        return normalizers.Sequence([build_normalizer(step) for step in description["normalizers"]])
    if description["type"] == "Precompiled":
        return normalizers.Normalizer.custom(_Charsmap(base64.b64decode(description["precompiled_charsmap"])))
    model = {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}
    return Tokenizer.from_str(json.dumps({"normalizer": description, "model": model})).normalizer


class _Charsmap:
    """What the tokenizers library asks of a normaliser written in Python."""

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
        """Replaces the text by its normal form."""
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
