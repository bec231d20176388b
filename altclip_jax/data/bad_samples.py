"""What could not be used: counted, named in a log, and a reason to stop where it is too much."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from altclip_jax.data.samples import SampleError
from altclip_jax.files.json_file import parse_json
from altclip_jax.files.lock import hold_in_turn
from altclip_jax.files.staging import refusals_explained

_JUDGED_OVER = 1000  # samples; a share of fewer says little
_LISTED = 20


class TooManyBadSamples(ValueError):  # noqa: N818 - it says what is the matter
    """More samples cannot be used than was allowed; the message lists them."""


class BadSamples:
    """The bad samples of one mixture of sources, as far as it was read.

    Attributes:
        names: Each bad sample and what is wrong with it.
        read: How many different samples were read.
    """

    def __init__(
        self,
        log: str | os.PathLike[str] | None = None,
        *,
        max_bad_share: float = 0.01,
        logs: bool = True,
        read: int = 0,
        parts: int = 1,
    ):
        """Starts a count.

        Args:
            log: A JSONL file to which each bad sample is added once, even over several runs.
            max_bad_share: Of the different samples read so far, or of 1000 while they are fewer.
            logs: Without, the log is left to another process, which reads the same samples.
            read: Good samples that were read before and are not read again.
            parts: Of how many equal parts of the samples this is told of one. Until `judge` hears of all, the others
                count as if nothing in them were bad.

        Raises:
            OSError: the log cannot be read.
        """
        self.names: dict[str, str] = {}
        self.read = read
        self._found_at_start = 0
        self._logs, self._parts = logs, parts
        self._share = max_bad_share
        self._seen = np.zeros(0, np.uint8)  # a bit for each sample
        self._log = None if log is None else Path(log)
        self._logged: set[str] = set()
        self._looked_at, self._break = 0, ""  # bytes of the log, and what its next line begins with
        self._look()

    def record_faults(self, faults: Iterable[SampleError], samples: int) -> None:
        """Takes what was found damaged when sources with this number of samples were opened.

        Raises:
            TooManyBadSamples: they are more than the allowed share of the samples.
        """
        faults = list(faults)
        known = len(self.names)
        self._note(faults)
        self._found_at_start += len(self.names) - known
        self.judge(self._found_at_start, samples)

    def record(self, ids: Iterable[int], faults: Iterable[SampleError]) -> None:
        """Takes the ids of samples that were read, and which of them were bad.

        Raises:
            TooManyBadSamples: the allowed share is exceeded.
            OSError: the log cannot be written.
        """
        unique = np.unique(np.fromiter(ids, np.int64))
        if unique.size and unique[-1] // 8 >= self._seen.size:
            self._seen = np.concatenate([self._seen, np.zeros(int(unique[-1]) // 4 + 1, np.uint8)])
        bits = np.left_shift(1, unique % 8).astype(np.uint8)
        self.read += int(np.count_nonzero(self._seen[unique // 8] & bits == 0))
        np.bitwise_or.at(self._seen, unique // 8, bits)
        if self._note(faults):
            self.judge(self.bad, self.read * self._parts)

    @property
    def bad(self) -> int:
        """How many of those that were read are bad."""
        return len(self.names) - self._found_at_start

    def judge(self, bad: int, read: int) -> None:
        """Takes how many samples were bad of how many that were read, in all processes.

        Raises:
            TooManyBadSamples: the allowed share is exceeded.
        """
        if self.is_exceeded(bad, read):
            raise TooManyBadSamples(self.explain(f"{bad:,} of {read:,} samples cannot be used"))

    def is_exceeded(self, bad: int, read: int) -> bool:
        """Returns whether so many bad samples, of so many that were read, are more than are allowed."""
        return bad > self._share * max(read, _JUDGED_OVER)

    def explain(self, what: str) -> str:
        """Returns a sentence and the list of the bad samples."""
        named = [f"  {name}: {reason}" for name, reason in list(self.names.items())[:_LISTED]]
        more = [f"  and {len(self.names) - _LISTED} more"] if len(self.names) > _LISTED else []
        log = [f"All are listed in {self._log}."] if self._log is not None else []
        head = f"{what}, and max_bad_share={self._share:g} is allowed: mend or remove them, or allow more."
        return "\n".join([head, *named, *more, *log])

    def _note(self, faults: Iterable[SampleError]) -> bool:
        new = {fault.name: fault.reason for fault in faults if fault.name not in self.names}
        self.names.update(new)
        if self._log is not None and self._logs and not self._logged.issuperset(new):
            self._write(self._log, new)
        return bool(new)

    def _write(self, log: Path, new: Mapping[str, str]) -> None:
        """Names in the log what nobody has named there, in this process or another."""
        with refusals_explained(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with hold_in_turn(log.with_name(f".{log.name}.lock")):
                self._look()
                lines = [
                    json.dumps({"sample": name, "reason": reason}, ensure_ascii=False) + "\n"
                    for name, reason in new.items()
                    if name not in self._logged
                ]
                with log.open("ab", buffering=0) as file:  # one write: lines of several processes do not mix
                    file.write((self._break + "".join(lines)).encode("utf-8", "backslashreplace") if lines else b"")
                self._look()

    def _look(self) -> None:
        """Reads what was added to the log since it was last looked at."""
        if self._log is None or not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._looked_at)
            added = file.read()
        if added:
            self._logged |= _names_in(added)
            self._looked_at += len(added)
            self._break = "" if added.endswith(b"\n") else "\n"


def _names_in(log: bytes) -> set[str]:
    names = set()
    for line in log.splitlines():
        try:
            names.add(parse_json(line)["sample"])
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a process that was killed
    return names
