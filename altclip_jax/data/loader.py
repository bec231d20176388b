"""Batches made by threads ahead of the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from jaxtyping import Integer

from altclip_jax.data.ahead import Ahead
from altclip_jax.data.bad_samples import BadSamples, TooManyBadSamples
from altclip_jax.data.batches import HostBatch, Loaded, Place, Stream, host_batch, keep_tokenizers_single


class Loader:
    """Iterates over the batches of a stream, in order; a context that stops the threads when it is left.

    What a batch holds depends on the stream, the step and `batch_size` alone. Errors are raised where the batch would
    come, and end the iteration.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        *,
        first_step: int = 0,
        last_step: int | None = None,
        rows: slice | Integer[np.ndarray, " mine"] | None = None,
        threads: int = 4,
        prefetch: int = 2,
        bad_samples: BadSamples | None = None,
    ):
        """Starts the threads.

        Args:
            stream: Where the samples come from.
            batch_size: Rows of the global batch.
            first_step: The step of the first batch.
            last_step: The iteration ends before this step; None: it does not end.
            rows: Those of the global batch that this process loads, in order; None: all.
            threads: How many read and decode; one more makes arrays.
            prefetch: Batches made before they are asked for.
            bad_samples: Counts and names what cannot be used; None: with its defaults, and without a log.

        Raises:
            ValueError: numbers out of range; all are named.
            TooManyBadSamples: so much was found damaged when the sources were opened.
        """
        numbers = {"batch_size": batch_size, "threads": threads}
        problems = [f"{name}={number} must be at least 1" for name, number in numbers.items() if number < 1]
        numbers = {"first_step": first_step, "prefetch": prefetch}
        problems += [f"{name}={number} must not be negative" for name, number in numbers.items() if number < 0]
        self._rows = np.arange(max(0, batch_size))[slice(None) if rows is None else rows]
        if not self._rows.size and batch_size > 0:
            problems.append(f"rows={rows} are none of the {batch_size} rows of a batch")
        if problems:
            raise ValueError("; ".join(problems) + ".")
        self.bad_samples = BadSamples() if bad_samples is None else bad_samples
        self.bad_samples.record_faults(stream.mixture.faults, len(stream.mixture))
        keep_tokenizers_single()
        self._stream, self._batch_size = stream, batch_size
        steps = itertools.count(first_step) if last_step is None else iter(range(first_step, last_step))
        self._ahead = Ahead(self._plans(steps), stream.load, self._made, threads=threads, ahead=prefetch)
        self._steps = itertools.count(first_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[HostBatch]:
        return self

    def __next__(self) -> HostBatch:
        (arrays, rows), waited = next(self._ahead)
        step = next(self._steps)
        try:
            self._record(step, rows)
        except BaseException:
            self.close()
            raise
        assert arrays is not None
        return host_batch(step, rows, arrays, waited)

    def close(self) -> None:
        """Stops the threads; what they have made and nobody took is lost. May be called again."""
        self._ahead.close()

    def _plans(self, steps: Iterator[int]) -> Iterator[Sequence[Place]]:
        for step in steps:
            yield self._stream.plan(step, self._rows, self._batch_size)

    def _made(self, rows: list[Loaded]) -> tuple[dict[str, np.ndarray] | None, list[Loaded]]:
        """Makes arrays, unless some rows have found no sample, of which the consumer is told in its turn."""
        if any(row.values is None for row in rows):
            return None, rows
        arrays = self._stream.collate(rows)
        # decoded pictures are in the arrays now; the rows may wait for long
        return arrays, [Loaded(row.example, row.name, row.language, {}, row.faults) for row in rows]

    def _record(self, step: int, rows: Sequence[Loaded]) -> None:
        faults = [fault for row in rows for fault in row.faults]
        ids = [row.example for row in rows] + [fault.example for fault in faults]
        self.bad_samples.record(ids, [fault.error for fault in faults])
        lost = [row.name for row in rows if row.values is None]
        if lost:
            raise TooManyBadSamples(
                self.bad_samples.explain(f"In step {step + 1}, {lost[0]} and all that were tried in its place are bad")
            )
