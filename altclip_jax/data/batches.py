"""Samples of a stream to batches: read by threads ahead of who needs them, in order, and placed on the devices."""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
from jaxtyping import Integer

from altclip_jax.data.bad_samples import BadSamples, TooManyBadSamples
from altclip_jax.data.samples import SampleError

if TYPE_CHECKING:
    from altclip_jax.data.streams import Stream

Job = TypeVar("Job")
Done = TypeVar("Done")
Batch = TypeVar("Batch")

IDS = ("example", "picture")  # the arrays that say what stands in a row
_PIECES_PER_THREAD = 4  # of a batch: small enough that no thread waits long for the last one


@dataclass(frozen=True)
class HostBatch:
    """A batch in this process's memory.

    Attributes:
        step: Which it is; of a walk over everything, its number.
        arrays: Row by row, the same rows in each; of a batch that has been placed the ids alone.
        names: The sample in each row, as a person finds it.
        languages: The language of the text in each row, where it is known.
        waited: Seconds that whoever asked for the batch waited for it.
        placed: What a step takes, where it is computed.
    """

    step: int
    arrays: dict[str, np.ndarray]
    names: list[str]
    languages: list[str | None]
    waited: float = 0.0
    placed: dict[str, Any] = dataclasses.field(default_factory=dict)

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


def host_batch(step: int, rows: Sequence[Loaded], arrays: dict[str, np.ndarray]) -> HostBatch:
    """Returns the batch of these rows."""
    return HostBatch(step, arrays, [row.name for row in rows], [row.language for row in rows])


class Ahead(Generic[Job, Done, Batch]):
    """Iterates over batches and the seconds that each was waited for; closes itself at the end and on an error."""

    def __init__(
        self,
        batches: Iterable[Sequence[Job]],
        work: Callable[[Job], Done],
        join: Callable[[list[Done]], Batch],
        *,
        threads: int,
        ahead: int,
    ):
        """Starts to work.

        Args:
            batches: The jobs of each batch.
            work: Done for each job, by `threads` threads.
            join: Makes a batch of what was done, in one more thread, so that it may start threads of its own.
            threads: How many.
            ahead: How many batches are made before they are asked for.
        """
        self._batches, self._work, self._join, self._threads = iter(batches), work, join, threads
        self._stopped = threading.Event()
        self._starting = threading.Lock()
        self._workers = ThreadPoolExecutor(threads, "altclip-data")
        self._joiner = ThreadPoolExecutor(1, "altclip-batch")
        self._waiting: deque[Future[Batch]] = deque()
        for _ in range(ahead + 1):
            self._start_next()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Batch, float]:
        if self._stopped.is_set() or not self._waiting:
            self.close()
            raise StopIteration
        begun = time.perf_counter()
        try:
            batch = self._waiting.popleft().result()
            self._start_next()
        except CancelledError:  # closed by another thread meanwhile
            raise StopIteration from None
        except BaseException:
            self.close()
            raise
        return batch, time.perf_counter() - begun

    def close(self) -> None:
        """Stops; what is being done is finished, what is not begun never is. May be called by any thread, and again."""
        with self._starting:
            self._stopped.set()
        self._workers.shutdown(cancel_futures=True)
        self._joiner.shutdown(cancel_futures=True)

    def _start_next(self) -> None:
        with self._starting:
            jobs = None if self._stopped.is_set() else next(self._batches, None)
            if jobs is None:
                return
            size = max(1, -(-len(jobs) // (self._threads * _PIECES_PER_THREAD)))
            pieces = [self._workers.submit(self._work_on, jobs[at : at + size]) for at in range(0, len(jobs), size)]
            self._waiting.append(self._joiner.submit(self._join_pieces, pieces))

    def _work_on(self, jobs: Sequence[Job]) -> list[Done]:
        done = []
        for job in jobs:
            if self._stopped.is_set():
                raise CancelledError
            done.append(self._work(job))
        return done

    def _join_pieces(self, pieces: Iterable[Future[list[Done]]]) -> Batch:
        return self._join([done for piece in pieces for done in piece.result()])


def cut_batches(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Cuts jobs into batches; the last may be smaller."""
    jobs = iter(jobs)
    while batch := list(itertools.islice(jobs, size)):
        yield batch


class Batches:
    """Iterates over the batches of a stream, in order; a context that stops the threads when it is left.

    What a batch holds depends on the stream, the step and `batch_size` alone. Errors are raised where the batch would
    come, and end the iteration. Who must know before whether there is a next batch, asks `peek`.

    Attributes:
        error: Why there is no next batch, where an error has ended them and was not raised yet.
    """

    def __init__(
        self,
        stream: Stream[Any],
        batch_size: int,
        *,
        first_step: int = 0,
        last_step: int | None = None,
        rows: slice | Integer[np.ndarray, " mine"] | None = None,
        threads: int = 4,
        prefetch: int = 2,
        bad_samples: BadSamples | None = None,
        place: Callable[[dict[str, np.ndarray]], dict[str, Any]] | None = None,
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
            place: Puts the arrays of a batch on the devices; None: batches stay in this process's memory.

        Raises:
            ValueError: numbers out of range; all are named.
            TooManyBadSamples: so much was found damaged when the sources were opened.
        """
        numbers = {"batch_size": batch_size, "threads": threads}
        problems = [f"{name}={number} must be at least 1" for name, number in numbers.items() if number < 1]
        numbers = {"first_step": first_step, "prefetch": prefetch}
        problems += [f"{name}={number} must not be negative" for name, number in numbers.items() if number < 0]
        mine = np.arange(max(0, batch_size))[slice(None) if rows is None else rows]
        if not mine.size and batch_size > 0:
            problems.append(f"rows={rows} are none of the {batch_size} rows of a batch")
        if problems:
            raise ValueError("; ".join(problems) + ".")
        self.error: Exception | None = None
        self.bad_samples = BadSamples() if bad_samples is None else bad_samples
        self.bad_samples.record_faults(stream.mixture.faults, len(stream.mixture))
        keep_tokenizers_single()
        self._collate, self._place = stream.collate, place
        self._next: HostBatch | None = None
        self._steps = itertools.count(first_step)
        steps = itertools.count(first_step) if last_step is None else range(first_step, last_step)
        jobs = (stream.choose(step, mine, batch_size) for step in steps)
        self._ahead = Ahead(jobs, stream.load, self._join, threads=threads, ahead=prefetch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> HostBatch:
        batch, self._next = self.peek(), None
        if batch is not None:
            return batch
        error, self.error = self.error, None
        raise StopIteration if error is None else error

    def peek(self) -> HostBatch | None:
        """Returns the next batch, which stays the next one; None at the end, and where `error` says why not."""
        if self._next is None and self.error is None:
            try:
                self._next = self._fetch()
            except Exception as error:
                self.error = error
                self.close()
            except BaseException:
                self.close()
                raise
        return self._next

    def close(self) -> None:
        """Stops the threads; what they have made and nobody took is lost. May be called again."""
        self._ahead.close()
        self._next = None

    def _fetch(self) -> HostBatch | None:
        made = next(self._ahead, None)
        if made is None:
            return None
        ((rows, arrays), waited), step = made, next(self._steps)
        begun = time.perf_counter()
        self._record(step, rows)
        batch = host_batch(step, rows, arrays)
        if self._place is None:
            return dataclasses.replace(batch, waited=waited)
        ids = {name: arrays[name] for name in IDS if name in arrays}
        placed = self._place(arrays)
        return dataclasses.replace(batch, arrays=ids, placed=placed, waited=waited + time.perf_counter() - begun)

    def _join(self, rows: list[Loaded]) -> tuple[list[Loaded], dict[str, np.ndarray]]:
        """Makes arrays, unless some rows have found no sample, of which the consumer is told in its turn."""
        if any(row.values is None for row in rows):
            return rows, {}
        arrays = self._collate(rows)
        # decoded pictures are in the arrays now; the rows may wait for long
        return [dataclasses.replace(row, values={}) for row in rows], arrays

    def _record(self, step: int, rows: Sequence[Loaded]) -> None:
        faults = [fault for row in rows for fault in row.faults]
        ids = [row.example for row in rows] + [fault.example for fault in faults]
        self.bad_samples.record(ids, [fault.error for fault in faults])
        lost = [row.name for row in rows if row.values is None]
        if lost:
            raise TooManyBadSamples(
                self.bad_samples.explain(f"In step {step + 1}, {lost[0]} and all that were tried in its place are bad")
            )


def keep_tokenizers_single() -> None:
    """Tells the tokenizers library, unless the user has told it something, to start no threads beside the loader's."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
