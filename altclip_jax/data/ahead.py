"""Work done by threads ahead of who needs it, in order."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

Job = TypeVar("Job")
Done = TypeVar("Done")
Batch = TypeVar("Batch")

_PIECES_PER_THREAD = 4  # of a batch: small enough that no thread waits long for the last one


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


def in_batches(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Cuts jobs into batches; the last may be smaller."""
    jobs = iter(jobs)
    while batch := list(itertools.islice(jobs, size)):
        yield batch
