"""Pictures prepared side by side: Pillow and numpy let other threads run while they compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")
_WORTH_IT = 4  # pictures from which threads gain more than it costs to start them


def threads_for(items: Sequence[object], threads: int | None) -> int:
    """Returns how many threads prepare items: those asked for, or the cores that this process may use.

    One alone where an object is there twice: a picture that was opened and not yet decoded is no matter of two threads.
    """
    if len({id(item) for item in items}) < len(items):
        return 1
    if threads is not None:
        return max(1, min(threads, len(items)))
    # Linux alone says how many of the machine's cores are ours
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return 1 if len(items) < _WORTH_IT else min(cores, len(items))


def in_threads(function: Callable[[Given], Made], items: Sequence[Given], threads: int) -> list[Made]:
    """Returns what a function makes of each item, in order."""
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads, "altclip-pictures") as pool:
        return list(pool.map(function, items))
