"""How fast steps follow each other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any


class Pace:
    """How fast steps follow each other, without the first, which compiles, and without evaluation and saving."""

    def __init__(self) -> None:
        self._all = [0, 0.0, 0.0]  # steps, seconds, seconds of waiting
        self._recent = [0, 0.0, 0.0]
        self._mark: float | None = None

    def step(self, waited: float) -> None:
        """Counts a step, of which so many seconds were spent waiting for input."""
        now = time.perf_counter()
        if self._mark is not None:
            for counts in (self._all, self._recent):
                counts[0] += 1
                counts[1] += now - self._mark
                counts[2] += waited
        self._mark = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time in the context."""
        yield
        self._mark = time.perf_counter()

    def lately(self) -> tuple[float, float]:
        """Returns steps per second and the share of waiting since the last call."""
        speed = _rates(self._recent)
        self._recent = [0, 0.0, 0.0]
        return speed

    def overall(self) -> tuple[float, float]:
        """Returns steps per second and the share of waiting since the beginning."""
        return _rates(self._all)


def _rates(counts: list[Any]) -> tuple[float, float]:
    steps, seconds, waited = counts
    return (steps / seconds, min(waited / seconds, 1.0)) if seconds else (0.0, 0.0)
