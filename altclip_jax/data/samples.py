"""What sources give: samples that can be named, and errors that name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar


class SampleError(ValueError):
    """A sample that cannot be used."""

    def __init__(self, name: str, reason: str):
        """Takes what a person finds the sample by, and what is wrong with it."""
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Caption(NamedTuple):
    """A text about a picture; `language` is None where the data does not say it."""

    text: str
    language: str | None


class Picture(NamedTuple):
    """A picture that is read when it is asked for; `file` is None where it lies in a file among others."""

    name: str
    read: Callable[[], bytes]
    file: Path | None = None


@dataclass(frozen=True)
class ImageText:
    """One thing: its pictures, and what is said of them."""

    name: str
    captions: tuple[Caption, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class TextPair:
    """A text that the teacher reads, and its translation, which the student reads."""

    name: str
    source: str
    target: str
    language: str | None


Sample = TypeVar("Sample", covariant=True)


class Source(Protocol[Sample]):
    """A data set; may be pickled and shared between threads."""

    faults: tuple[SampleError, ...]  # what was found damaged when it was opened, beside the samples
    groups: tuple[int, ...] | None  # the sizes of the groups that samples are read in, if not each by itself

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Returns a sample.

        Raises:
            SampleError: it cannot be used.
        """
        ...


class ImageTextSource(Source[ImageText], Protocol):
    """A source of pictures with captions."""

    def first_picture(self, index: int) -> int:
        """Returns how many pictures the samples before this one have; index may be the number of samples."""
        ...
