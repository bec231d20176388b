"""Checks of the strings that a tokenizer is given, and the tidying of those that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text_lists(text: Any, text_pair: Any) -> tuple[list[str], list[str] | None]:
    """Returns the texts of a call, and what they are paired with, as lists.

    Raises:
        TypeError: something is no string; the message tells its place.
        ValueError: a string is no text, or the lists do not pair.
    """
    firsts = text_list("text", text)
    if text_pair is None:
        return firsts, None
    if isinstance(text, str) != isinstance(text_pair, str):
        raise TypeError("text and text_pair must both be a string or both a list of strings.")
    seconds = text_list("text_pair", text_pair)
    if len(seconds) != len(firsts):
        raise ValueError(f"text holds {len(firsts)} strings and text_pair {len(seconds)}: they go in pairs.")
    return firsts, seconds


def text_list(name: str, text: Any) -> list[str]:
    """Returns the texts of the argument `name` as a list.

    Raises:
        TypeError: something is no string.
        ValueError: a string cannot be written in UTF-8, which sentencepiece and tokenizers read.
    """
    if isinstance(text, (bytes, Mapping)) or not hasattr(text, "__iter__"):
        raise TypeError(f"{name} is a {type(text).__name__}: expected a string or a list of strings.")
    texts = [text] if isinstance(text, str) else list(text)
    for place, value in enumerate(texts):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{place}] is a {type(value).__name__}: expected a string.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name}[{place}] holds half of a surrogate pair at {error.start}, which is no text."
            ) from None
    return texts


def without_spaces(text: str) -> str:
    """Undoes the spaces that English tokenizers leave before punctuation and contractions."""
    for ending in (".", "?", "!", ","):
        text = text.replace(f" {ending}", ending)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text
