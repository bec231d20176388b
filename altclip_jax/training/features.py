"""Features that a run computes once: of a locked image tower, or of the teacher.

They are written where they belong as they come, so that an interruption loses a few seconds and memory stays flat.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float32, Int64

from altclip_jax.distributed import barrier, from_first, is_first
from altclip_jax.files.json_file import read_json_object, write_json
from altclip_jax.files.staging import refusals_explained

Pieces = Iterable[tuple[Int64[np.ndarray, " piece"], np.ndarray]]
_MARKED_EVERY = 32  # pieces between two writes to disk
_FORMAT = 2  # of a file; before, rows may be missing or wrong
_LOOKED_AT = 64  # rows of a file of an earlier format


class Features(NamedTuple):
    """Features by the ids of what they were computed of."""

    rows: Float32[np.ndarray, "rows width"]  # mapped from a file
    there: Bool[np.ndarray, " rows"]  # what has none could not be read

    @property
    def missing(self) -> frozenset[int]:
        """The ids without features."""
        return frozenset(np.flatnonzero(~self.there).tolist())


def computed_once(
    path: Path,
    rows: int,
    width: int,
    of: Mapping[str, Any],
    compute: Callable[[Bool[np.ndarray, " rows"]], Pieces],
    say: Callable[[str], None] = lambda text: None,
    *,
    read: Callable[[Any], Any] = lambda of: of,
) -> Features:
    """Returns the features in a file, computing those that are not there yet.

    Beside FILE.npy stand FILE.there.npy, which rows it has, and FILE.json, what they were computed of. All processes
    of a run call this together; the first writes, and what it finds there holds for all.

    A file is complete when a pass over the rows without features has found nothing in them that can be read: whatever
    a row was lost by, it does not stay lost. What release 0.1.0 calls complete may lack rows, or in several processes
    have been computed of other samples, and is looked at again.

    Args:
        path: FILE.npy.
        rows: How many there are.
        width: Numbers in each.
        of: What they are computed of, as JSON can say it; where this changed, all are computed anew.
        compute: Gets which rows are there, and gives (ids, features) of the others piece by piece.
        say: Is told what is done.
        read: Makes of an `of` that any release wrote what this one would have written.

    Raises:
        OSError: a file cannot be written.
        ValueError: nothing could be read.
    """
    described, marks = path.with_suffix(".json"), path.with_suffix(".there.npy")
    wanted = {"of": dict(of), "rows": rows, "width": width}
    barrier("features are looked at")
    found = read_json_object(described) if described.is_file() else {}
    same = bool(found) and {name: found[name] for name in wanted} | {"of": read(found["of"])} == wanted
    sound = same and found.get("format") == _FORMAT
    same, sound, complete = from_first(np.array([same, sound, sound and bool(found.get("complete"))])).tolist()

    def begin() -> None:
        barrier("features are begun")
        if is_first():
            _begin(described, {path: (np.float32, (rows, width)), marks: (np.bool_, (rows,))}, wanted)
        barrier("features are there to be filled")

    if not same:
        begin()
    there = from_first(np.load(marks))
    if same and not sound:
        say(f"{path} was computed by an earlier release: looking whether it is right and whole")
        if _is_wrong(path, there, compute):
            say(f"{path} is wrong, and so is what the run in {path.parents[1]} has learned from it: computing it anew")
            begin()
            there[:] = False
    if not complete:
        before = int(there.sum())
        say(f"computing {path.stem} features of {rows:,} samples, once{f'; {before:,} are there' if before else ''}")
        with _Writer(path, marks) if is_first() else contextlib.nullcontext() as writer:
            _fill(there, compute, lambda ids, values: None if writer is None else writer.add(ids, values))
        if not there.any():
            raise ValueError(f"There is nothing to compute {path.name} of: no sample could be read.")
        if before and found.get("complete") and (lost := int(there.sum()) - before):
            say(f"{path} was said to be complete and lacked {lost:,} samples that can be read: they are there now")
        if is_first():
            write_json(described, {**wanted, "format": _FORMAT, "complete": True})
        barrier("features are complete")
    return Features(np.load(path, mmap_mode="r"), there)


def _fill(
    there: Bool[np.ndarray, " rows"],
    compute: Callable[[Bool[np.ndarray, " rows"]], Pieces],
    write: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    """Computes rows until a pass over those that are not there finds none of them."""
    while not there.all():
        known = there.copy()
        known.flags.writeable = False
        for ids, values in compute(known):
            there[ids] = True
            write(ids, np.asarray(values, np.float32))
        if np.array_equal(known, there):
            break


def _is_wrong(
    path: Path, there: Bool[np.ndarray, " rows"], compute: Callable[[Bool[np.ndarray, " rows"]], Pieces]
) -> bool:
    """Computes some rows again and returns whether others stand in the file, in the same way in all processes.

    The dtype or the mesh may be another now: rows are as good as equal if they are much nearer than two of them are.
    """
    chosen = np.flatnonzero(there)[:: max(1, int(there.sum()) // _LOOKED_AT)][:_LOOKED_AT]
    others = np.ones_like(there)
    others[chosen] = False
    pieces = [(ids, np.asarray(values, np.float32)) for ids, values in compute(others)]
    if not pieces:
        return False
    ids, values = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    apart = np.linalg.norm(values - values.mean(axis=0), axis=1).mean()
    wrong = np.linalg.norm(values - np.load(path, mmap_mode="r")[ids], axis=1) > max(apart, 1e-3) / 4
    return bool(from_first(np.array([wrong.any()]))[0])


def _begin(described: Path, files: Mapping[Path, tuple[Any, tuple[int, ...]]], wanted: Mapping[str, Any]) -> None:
    """Makes files of zeros, at their full size so that a full disk is met now, and says what they are of at last."""
    with refusals_explained(described.parent):
        described.parent.mkdir(parents=True, exist_ok=True)
        described.unlink(missing_ok=True)
        for path, (dtype, shape) in files.items():
            with path.open("wb") as file:
                header = {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(file, header)
                begin, size = file.tell(), int(np.prod(shape)) * np.dtype(dtype).itemsize
                file.truncate(begin + size)
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), begin, size)
                file.flush()
                os.fsync(file.fileno())
    write_json(described, {**wanted, "format": _FORMAT})


class _Writer:
    """Writes rows, and when they are on disk the marks that say so."""

    def __init__(self, rows: Path, marks: Path):
        self._paths = rows, marks
        self._offsets = tuple(np.load(path, mmap_mode="r").offset for path in self._paths)
        self._unmarked: list[np.ndarray] = []

    def __enter__(self) -> Self:
        with refusals_explained(self._paths[0]):
            self._files = tuple(path.open("r+b", buffering=0) for path in self._paths)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._mark()
        finally:
            for file in self._files:
                file.close()

    def add(self, ids: np.ndarray, values: np.ndarray) -> None:
        with refusals_explained(self._paths[0]):
            for name, row in zip(ids.tolist(), np.ascontiguousarray(values), strict=True):
                self._files[0].seek(self._offsets[0] + name * row.nbytes)
                self._files[0].write(row.data)
        self._unmarked.append(ids)
        if len(self._unmarked) >= _MARKED_EVERY:
            self._mark()

    def _mark(self) -> None:
        with refusals_explained(self._paths[1]):
            os.fsync(self._files[0].fileno())
            for name in np.concatenate(self._unmarked or [np.zeros(0, np.int64)]).tolist():
                self._files[1].seek(self._offsets[1] + name)
                self._files[1].write(b"\x01")
        self._unmarked = []
