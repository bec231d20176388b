"""What the tokenizer asks of a vocabulary, which comes in two forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Template:
    """The special ids around one text, and around a pair."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    middle: tuple[int, ...]
    pair_suffix: tuple[int, ...]


class Vocabulary(Protocol):
    """What the tokenizer asks of either form. `split_special_tokens` treats special strings as plain text."""

    template: Template
    size: int  # without added tokens
    spare_to_longer: bool  # of a pair cut to an odd room, the longer text keeps one more; else the first

    def encode(self, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
        """Returns the ids of each text, without those of the template."""
        ...

    def tokenize(self, text: str, split_special_tokens: bool) -> list[str]:
        """Returns the pieces that the ids stand for, the unknown ones as they are in the text."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Returns the text of ids that are all in the vocabulary."""
        ...

    def token(self, index: int) -> str | None:
        """Returns the token of an id."""
        ...

    def index(self, token: str) -> int | None:
        """Returns the id of a token."""
        ...

    def __len__(self) -> int: ...
