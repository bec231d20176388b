"""What a run tells: lines for people, JSONL for programs, and TensorBoard where it is asked for."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from altclip_jax.distributed import is_first
from altclip_jax.files.json_file import parse_json, write_bytes
from altclip_jax.files.staging import refusals_explained


class RunLog:
    """The metrics of a run, one JSON object a line, and a bar or lines on standard error.

    A run that goes on from step n drops what was logged after it: each step stands there once. Of several processes
    only the first tells anything.

    Attributes:
        evaluations: The metrics of the steps that were done and measured before.
    """

    def __init__(self, folder: Path, *, first_step: int, steps: int, tensorboard: bool = False, quiet: bool = False):
        """Opens `folder`/metrics.jsonl to go on from `first_step` updates done.

        Raises:
            ValueError: the extra that TensorBoard needs is not installed.
            OSError: the file cannot be written.
        """
        self._board = _board(folder, first_step) if tensorboard and is_first() else None
        self._path = folder / "metrics.jsonl"
        kept = _entries_until(self._path, first_step)
        self.evaluations: dict[int, dict[str, float]] = {
            entry["step"]: {name: math.nan if value is None else value for name, value in entry["evaluation"].items()}
            for _, entry in kept
            if "evaluation" in entry
        }
        self._file: Any = None
        if is_first():
            write_bytes(self._path, b"".join(line for line, _ in kept))
            self._file = self._path.open("ab", buffering=0)
        self._steps, self._quiet = steps, quiet or not is_first()
        self._bar: Any = None
        if not self._quiet and sys.stderr.isatty():
            self._bar, self._task = _bar(steps, first_step)
            self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def train(self, step: int, metrics: Mapping[str, float], left: float) -> None:
        """Tells of the steps since the last call; `left` are the seconds the rest will take."""
        self._write({"step": step, **metrics})
        if self._bar is not None:
            text = "  ".join(shown.format(metrics[name]) for name, shown in _IN_BAR.items() if name in metrics)
            self._bar.update(self._task, completed=step, text=text)
        else:
            text = "  ".join(f"{name} {metrics[name]:.4g}" for name in _SHOWN if name in metrics)
            self.say(f"step {step}/{self._steps}  {text}  left {_clock(left)}")

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells of an evaluation."""
        self._write({"step": step, "evaluation": dict(metrics)})

    def say(self, text: str) -> None:
        """Prints a line for people."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        rest = memoryview(json.dumps(_finite(entry), ensure_ascii=False).encode() + b"\n")
        with refusals_explained(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]
        if self._board is not None:
            values = entry.get("evaluation", entry)
            prefix = "evaluation" if "evaluation" in entry else "train"
            for name, value in values.items():
                if name != "step":
                    self._board.add_scalar(f"{prefix}/{name}", value, entry["step"])


class Throughput:
    """How many steps are done in a second; the first, which compiles, evaluation and saving do not count."""

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


_SHOWN = ("loss", "learning_rate", "samples_per_second", "waiting")
_IN_BAR = {"loss": "loss {:.4g}", "learning_rate": "lr {:.3g}", "samples_per_second": "{:.4g} samples/s"}  # 80 columns


def _entries_until(path: Path, step: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns the whole lines of steps up to `step`; a line that a killed process left half written is none."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("step", math.inf) <= step and line.endswith(b"\n"):
            kept.append((line, entry))
    return kept


def _finite(value: Any) -> Any:
    """Returns an entry with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {name: _finite(own) for name, own in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _board(folder: Path, first_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "logging.tensorboard needs the extra of that name: pip install 'altclip-jax[tensorboard]'."
        ) from None
    # what an interrupted run told after its last checkpoint is not shown
    return SummaryWriter(os.fspath(folder / "tensorboard"), purge_step=first_step + 1)


def _bar(steps: int, done: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), expand=True)
    return bar, bar.add_task("training", total=steps, completed=done, text="compiling")


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
