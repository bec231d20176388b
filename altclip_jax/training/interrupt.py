"""Asked to stop: SIGTERM and Ctrl-C become a flag that is looked at between steps and between batches."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequest:
    """While open, catches SIGTERM and SIGINT; a second Ctrl-C interrupts at once."""

    def __init__(self, looked: Callable[[], None] = lambda: None) -> None:
        """Calls `looked` each time that somebody looks."""
        self.signal: signal.Signals | None = None
        self._looked = looked
        self._before: dict[signal.Signals, Any] = {}

    @property
    def name(self) -> str:
        """What asked."""
        return "a signal to another process" if self.signal is None else self.signal.name

    def asked(self) -> bool:
        """Returns whether work shall stop; called between steps and between batches."""
        self._looked()
        return self.signal is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python delivers no signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: it was not set from Python, so that Python cannot set it again
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
