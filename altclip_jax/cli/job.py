"""Local processes that belong together: their output, line by line, and one end for all of them."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import IO, Any

from altclip_jax.exit_codes import ANOTHER_FAILED, ASKED_TO_STOP

GRACE = 5.0  # seconds from SIGTERM to SIGKILL; who waits for a dead process in an exchange never hears of SIGTERM
PATIENCE = 60.0  # seconds for the others when one has ended well
SETTLING = 1.0  # seconds for the others to say their own word when one has failed
_LAST_LINES = 5
_LINE_END = re.compile(rb"(\r?\n|\r(?=[^\n]))")  # what ends in \r is drawn over by what follows
_SAYS_NOTHING = re.compile(rb"\s*$|\s+@\s+0x|\[Gloo\] Rank")  # such as the stack frames of an abort
_MEANINGS = {
    signal.SIGKILL: " (by someone, or by the system when memory ran out)",
    signal.SIGABRT: " (so jax ends a process that has lost another)",
}
_NEVER = float("inf")


class Job:
    """Processes that end together."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        *,
        grace: float = GRACE,
        patience: float = PATIENCE,
        settling: float = SETTLING,
        numbered_output: bool = True,
    ):
        """Takes the command of each process, seconds that are waited, and whether output, too, says whose it is."""
        self._commands, self._numbered_output = commands, numbered_output
        self._grace, self._patience, self._settling = grace, patience, settling
        self._members: list[_Member] = []
        self._first: _Member | None = None  # that ended
        self._failed: _Member | None = None  # the first that failed by itself
        self._followed: _Member | None = None  # the first that ended because another failed
        self._terminate_at = self._kill_at = _NEVER
        self._interrupted = False

    def run(self) -> int:
        """Starts the processes, from the main thread, and returns when all have ended.

        The end of one is the end of all: at once if it failed, else after a time in which the others should be done
        too, as should the one that failed where another has already ended because of it. SIGTERM and SIGINT are passed
        on; after a second SIGINT only the grace period is left.

        Returns:
            The exit code of the process that failed first, 128 + its number for a signal; 1 if some went on after
            others were done; else 75 if a process ended so, and 0.
        """
        with _signals() as told, selectors.DefaultSelector() as selector:
            selector.register(told, selectors.EVENT_READ)
            try:
                for number, command in enumerate(self._commands):
                    self._members.append(_Member(number, command, selector, self._numbered_output))
                while self._running():
                    self._look(selector, told)
                selector.unregister(told)
                _read_rest(selector)
            finally:
                for member in self._members:
                    member.close()
        return self._tell()

    def _look(self, selector: selectors.BaseSelector, told: int) -> None:
        """Waits for something to happen, and does what follows from it."""
        limit = min(self._terminate_at, self._kill_at)
        for key, _ in selector.select(None if limit == _NEVER else max(limit - time.monotonic(), 0)):
            if key.fileobj == told:
                self._pass_on(os.read(told, 512))
            else:
                key.data()
        now = time.monotonic()
        for member in self._running():
            if member.has_ended():
                self._follow(member, now)
        if now >= self._terminate_at:
            self._terminate_at, self._kill_at = _NEVER, min(self._kill_at, now + self._grace)
            for member in self._running():
                member.end(signal.SIGTERM)
        if now >= self._kill_at:
            self._kill_at = _NEVER
            for member in self._running():
                member.end(signal.SIGKILL)

    def _follow(self, member: _Member, now: float) -> None:
        """Decides when the others have to end, now that this one has."""
        self._first = self._first or member
        if member.ended_by is None:
            if member.followed:
                self._followed = self._followed or member
            elif member.failed:
                self._failed = self._failed or member
            failed = member.failed and not member.followed
            self._terminate_at = min(self._terminate_at, now + (self._settling if failed else self._patience))

    def _pass_on(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGINT:
                if self._interrupted:
                    self._kill_at = min(self._kill_at, time.monotonic() + self._grace)
                self._interrupted = True
            if number != signal.SIGCHLD:
                for member in self._running():
                    os.kill(member.process.pid, number)

    def _running(self) -> list[_Member]:
        return [member for member in self._members if member.process.returncode is None]

    def _tell(self) -> int:
        """Says what ended the job, if it was not that all were done, and returns the exit code."""
        blamed, count = self._failed or self._followed, len(self._members)
        if blamed is not None:
            text, code = f"process {blamed.number} of {count} ended {blamed.how()}", blamed.exit_code
        elif all(member.ended_by is None for member in self._members):
            return max(member.exit_code for member in self._members)
        elif self._interrupted:
            text, code = "interrupted twice", 130
        else:
            blamed = self._first
            assert blamed is not None
            text, code = f"process {blamed.number} of {count} ended {blamed.how()}, and not all others", 1
            text += f" within {self._patience:g} s after it"
        if blamed is not None and blamed.said:
            text += ". It last said:\n" + "\n".join(f"  {line}" for line in blamed.said)
        others = [f"process {member.number} ended {member.how()}" for member in self._members if member is not blamed]
        print(f"altclip: {text}", *(f"altclip: {other}" for other in others), sep="\n", file=sys.stderr, flush=True)
        return code


class _Member:
    """One of the processes, in a session of its own so that the terminal's Ctrl-C reaches it only through the job."""

    def __init__(self, number: int, command: Sequence[str], selector: selectors.BaseSelector, numbered_output: bool):
        self.number = number
        self.said: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self.ended_by: signal.Signals | None = None  # what the job sent it to end it
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # lines come when they are said, and before a hard end
            preexec_fn=_end_with_parent(),
        )
        prefix = f"[{number}] ".encode()
        streams = (
            (self.process.stdout, sys.stdout, prefix if numbered_output else b""),
            (self.process.stderr, sys.stderr, prefix),
        )
        self._relays = [
            _Relay(source, target, prefix, self, selector) for source, target, prefix in streams if source is not None
        ]

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than well."""
        return self.process.returncode not in (0, ASKED_TO_STOP)

    @property
    def followed(self) -> bool:
        """Whether it ended because another failed, which it has heard from that one."""
        return self.process.returncode == ANOTHER_FAILED

    @property
    def exit_code(self) -> int:
        """As a shell gives it."""
        code: int = self.process.returncode
        return code if code >= 0 else 128 - code

    def has_ended(self) -> bool:
        """Returns whether it has; then what it started is ended too."""
        if self.process.poll() is None:
            return False
        self._kill_group()
        return True

    def end(self, number: signal.Signals) -> None:
        """Asks it to end with SIGTERM, or ends it and what it started with SIGKILL."""
        self.ended_by = number
        if number == signal.SIGKILL:
            self._kill_group()
        else:
            os.kill(self.process.pid, number)

    def close(self) -> None:
        """Leaves nothing of it behind."""
        if self.process.returncode is None:
            self._kill_group()
            self.process.wait()
        for relay in self._relays:
            relay.source.close()

    def how(self) -> str:
        """Returns how it ended."""
        code: int = self.process.returncode
        if self.followed:
            return f"with exit code {code}, because another one failed"
        if self.ended_by is not None:
            return f"by {self.ended_by.name} from this command"
        if code >= 0:
            return f"with exit code {code}"
        number = signal.Signals(-code)
        return f"by {number.name}{_MEANINGS.get(number, '')}"

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


class _Relay:
    """One output of a process, passed on by lines that begin with its number.

    What a line drew over itself with carriage returns, a progress bar, is shown of process 0 and on terminals alone.
    """

    def __init__(
        self, source: IO[bytes], target: Any, prefix: bytes, member: _Member, selector: selectors.BaseSelector
    ):
        self.source, self._target, self._prefix, self._selector = source, target.buffer, prefix, selector
        self._said = member.said
        self._terminal = target.isatty()
        self._bar = self._terminal and member.number == 0
        self._rest = b""
        selector.register(source, selectors.EVENT_READ, self.read)

    def read(self) -> None:
        """Passes on what is there."""
        piece = os.read(self.source.fileno(), 1 << 16)
        if not piece:
            self._selector.unregister(self.source)
            if self._rest:
                piece = b"\n"
        *pieces, self._rest = _LINE_END.split(self._rest + piece)
        for text, end in zip(pieces[::2], pieces[1::2], strict=True):
            clear = b"\x1b[K" if self._terminal else b""  # what a bar left in the line
            if end != b"\r":
                self._target.write(self._prefix + text + clear + b"\n")
                if not _SAYS_NOTHING.match(text):
                    self._said.append((self._prefix + text).decode(errors="replace"))
            elif self._bar and text:
                self._target.write(self._prefix + text + clear + b"\r")
        self._target.flush()


def _read_rest(selector: selectors.BaseSelector) -> None:
    """Reads what processes that have ended left behind; something they started elsewhere may still hold the pipes."""
    limit = time.monotonic() + 1
    while selector.get_map() and (left := limit - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            key.data()


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Gives a file descriptor from which the numbers of the signals that this process gets can be read."""

    def note(number: int, frame: FrameType | None) -> None:
        """The file descriptor tells of it."""

    told, tell = os.pipe()
    os.set_blocking(tell, False)
    descriptor = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
    try:
        yield told
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(told)
        os.close(tell)


def _end_with_parent() -> Callable[[], None] | None:
    """Returns what a new process does so that it is killed when this one dies, None where the system cannot do that."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)  # it died before it was asked

    return ask
