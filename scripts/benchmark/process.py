"""The sides of a benchmark in processes of their own, and what a process tells of its memory.

Only the standard library: a side may be in another environment than the one that asks.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def say(what: str) -> None:
    """Tell on standard error what is going on."""
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


class Process:
    """A side, which does what it is asked to and answers."""

    def __init__(self, python: str, module: str, *arguments: str):
        """Start it."""
        self.python, self.arguments = python, arguments
        command = [python, "-W", "ignore", "-m", module, *arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *task: Any) -> Any:
        """Return the answer to a task; what else the process prints is passed over.

        Raises:
            SystemExit: the task failed, or the process ended; a sentence says which.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # that it has ended is noticed below
            print(json.dumps(task), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("="):
                told = json.loads(line[1:])
                if "error" in told:
                    raise SystemExit(f"{self.arguments[0]}: {task[0]}: {told['error']}")
                return told["answer"]
        raise SystemExit(f"{' '.join(self.arguments)} ended in the middle of {task[0]}.")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def serve(task: Callable[..., Any]) -> None:
    """Answer tasks, a line each, until there are no more."""
    for line in sys.stdin:
        try:
            answer = {"answer": task(*json.loads(line))}
        except Exception as error:  # told to who asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print("=" + json.dumps(answer), flush=True)


def held(name: str) -> int:
    """Return the bytes of this process in physical memory: "VmRSS" now, "VmHWM" at the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def forget_peak() -> None:
    """Begin the peak anew, at what is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
