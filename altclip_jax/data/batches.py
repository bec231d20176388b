"""What streams hand to the loader, and the loader to the training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int32, Integer

from altclip_jax.data.samples import SampleError, Source
from altclip_jax.data.sources import Mixture

IDS = ("example", "picture")  # the arrays that say what stands in a row
Tokenizer = Callable[..., dict[str, Any]]  # called as AltCLIPTokenizer is


@dataclass(frozen=True)
class HostBatch:
    """A batch in this process's memory.

    Attributes:
        step: Which it is; of a walk over everything, its number.
        arrays: What goes to the device: row by row, the same rows in each.
        names: The sample in each row, as a person finds it.
        languages: The language of the text in each row, where it is known.
        waited: Seconds that whoever asked for the batch waited for it.
    """

    step: int
    arrays: dict[str, np.ndarray]
    names: list[str]
    languages: list[str | None]
    waited: float

    @property
    def ids(self) -> Integer[np.ndarray, "rows ids"]:
        """Which sample, and which picture of it, stands in each row."""
        return np.stack([self.arrays[name] for name in IDS if name in self.arrays], axis=1)


class Place(NamedTuple):
    """A row of a step, and the sample that stands there."""

    step: int
    row: int
    source: int
    sample: int


class Fault(NamedTuple):
    """A sample that could not be used, by its id over all sources."""

    example: int
    error: SampleError


@dataclass(frozen=True)
class Loaded:
    """A sample read and decoded; `values` is None if neither it nor any sample in its place could be used."""

    example: int
    name: str
    language: str | None
    values: Mapping[str, Any] | None
    faults: tuple[Fault, ...] = ()  # of the samples in whose place it stands


class Stream(Protocol):
    """Samples as a function of (seed, step, row); the methods may be called by many threads."""

    @property
    def mixture(self) -> Mixture[Source[Any]]:
        """Where the samples come from."""
        ...

    def plan(self, step: int, rows: Integer[np.ndarray, " rows"], batch_size: int) -> list[Place]:
        """Returns which samples stand in rows of a step's global batch."""
        ...

    def load(self, place: Place) -> Loaded:
        """Reads and decodes a sample, or another one in its place."""
        ...

    def collate(self, rows: Sequence[Loaded]) -> dict[str, np.ndarray]:
        """Makes arrays of loaded rows."""
        ...


def host_batch(step: int, rows: Sequence[Loaded], arrays: dict[str, np.ndarray], waited: float = 0.0) -> HostBatch:
    """Returns the batch of these rows."""
    return HostBatch(step, arrays, [row.name for row in rows], [row.language for row in rows], waited)


def one_row(stream: Stream, step: int, row: int, batch_size: int) -> dict[str, np.ndarray]:
    """Returns the arrays of one row of a step's global batch, without an axis of rows.

    Raises:
        SampleError: neither its sample nor any in its place can be used.
    """
    loaded = stream.load(stream.plan(step, np.array([row]), batch_size)[0])
    if loaded.values is None:
        raise loaded.faults[0].error
    return {name: array[0] for name, array in stream.collate([loaded]).items()}


def tokenized(
    tokenizer: Tokenizer, texts: list[str], max_length: int, prefix: str = ""
) -> dict[str, Int32[np.ndarray, "rows max_length"]]:
    """Returns input_ids and attention_mask, their names after `prefix`, cut and padded to `max_length` tokens."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=max_length, return_tensors="np")
    return {f"{prefix}{name}": encoded[name].astype(np.int32) for name in ("input_ids", "attention_mask")}


def keep_tokenizers_single() -> None:
    """Tells the tokenizers library, unless the user has told it something, to start no threads beside the loader's."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
