"""Many files, read in pieces by many threads; and patterns for the names of many files."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from altclip_jax.sentences import list_some

_BRING_BACK = "Bring it back, on its own disk, and go on."
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


class GoneError(OSError):
    """What could be read before cannot be now: the disk has gone, and no sample is at fault."""


@contextlib.contextmanager
def gone_told(path: Path) -> Iterator[None]:
    """Raises GoneError where a file that was opened before cannot be read."""
    try:
        yield
    except OSError as error:
        raise GoneError(f"{path} cannot be read any more ({error.strerror or error}). {_BRING_BACK}") from error


class OpenFiles:
    """Reads pieces of files, of which it keeps the last used open; may be pickled and shared between threads."""

    def __init__(self, limit: int = 64):
        """Keeps at most `limit` files open."""
        self._limit = limit
        self._handles: OrderedDict[Path, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Returns the bytes from `offset` on: `size` of them, or fewer where the file ends.

        Raises:
            GoneError: the file, of which somebody has found this place, cannot be read.
        """
        with gone_told(path):
            with self._lock:
                handle = self._handles.get(path)
                if handle is None:
                    handle = self._handles[path] = _Handle(path)
                self._handles.move_to_end(path)
                while len(self._handles) > self._limit:
                    self._handles.popitem(last=False)  # it closes when the last thread that reads lets it go
            return handle.read(offset, size)

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_limit"])  # type: ignore[misc]


class _Handle:
    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        # at exit other threads may still read, and the system closes it anyway
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        blocks = []
        while size > 0:
            if hasattr(os, "pread"):
                block = os.pread(self._descriptor, size, offset)
            else:  # Windows
                with self._lock:
                    os.lseek(self._descriptor, offset, os.SEEK_SET)
                    block = os.read(self._descriptor, size)
            if not block:
                break
            blocks.append(block)
            offset, size = offset + len(block), size - len(block)
        return b"".join(blocks)


class NamedFiles:
    """Reads files that others name, and tells one that is missing from a disk that is; shared between threads."""

    def __init__(self) -> None:
        self._last: Path | None = None  # that could be read

    def read(self, path: Path, named_in: Path | None = None) -> bytes:
        """Returns the bytes of a file.

        Args:
            path: Of the file.
            named_in: The file that names it.

        Raises:
            GoneError: it cannot be read, and neither can what names it or what was read before it.
            OSError: it cannot be read.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            for witness in (named_in, self._last):
                if witness is not None and not os.access(witness, os.R_OK):
                    raise GoneError(
                        f"{path} cannot be read ({error.strerror}), and {witness}, which was there before, is gone,"
                        f" too. {_BRING_BACK}"
                    ) from error
            raise
        self._last = path
        return data


def find_files(pattern: str | os.PathLike[str]) -> list[Path]:
    """Returns the files that a pattern names: {000..012}, {train,more}, and * ? [ ] as in a shell; sorted where found.

    Raises:
        FileNotFoundError: some of them do not exist; all are named.
    """
    if Path(pattern).is_file():
        return [Path(pattern)]
    paths, missing = [], []
    for name in _without_braces(os.fspath(pattern)):
        found = [Path(name)] if Path(name).is_file() else sorted(map(Path, glob.glob(name)))  # noqa: PTH207 - Path.glob takes no absolute pattern
        paths += found
        if not found:
            missing.append(name)
    if missing:
        raise FileNotFoundError(f"There is no file {list_some(missing)}.")
    return paths


def match_names(pattern: str, names: Iterable[str]) -> list[str]:
    """Returns which of some files a pattern names, in the order in which `find_files` would find them."""
    known = {Path(name): name for name in names}
    if Path(pattern) in known:
        return [known[Path(pattern)]]
    found: list[Path] = []
    for name in map(Path, _without_braces(pattern)):
        found += [name] if name in known else sorted(path for path in known if path.match(str(name)))
    return [known[path] for path in found]


def name_within(files: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Returns [path, ...] of each file as [name, ...], its name within the folder that holds all of them."""
    paths = [Path(os.path.abspath(path)) for path, *_ in files]  # noqa: PTH100 - a link goes by its own name
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return [[path.relative_to(root).as_posix(), *rest] for path, (_, *rest) in zip(paths, files, strict=True)]


def _without_braces(pattern: str) -> Iterator[str]:
    parts: list[list[str]] = []
    end = 0
    for match in _BRACES.finditer(pattern):
        parts.append([pattern[end : match.start()]])
        first, last, listed = match.groups()
        if listed is not None:
            parts.append(listed.split(","))
        else:
            parts.append([str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)])
        end = match.end()
    return map("".join, itertools.product(*parts, [pattern[end:]]))
