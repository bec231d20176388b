"""Put new files into a folder together: all of them, or none."""

import contextlib
import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Self

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(?:tmp|old)", re.DOTALL)


def staged_name(name: str) -> str | None:
    """Return the name of which a file is the temporary one, such as a kill leaves it; None if it is none."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else None


def is_plain_name(name: str) -> bool:
    """Tell whether a name from a file that anyone may have written is that of something beside that file."""
    parts = {PurePosixPath(name).name, PureWindowsPath(name).name}
    return parts == {name} and name not in {"", ".."} and name.isprintable()


class Staging:
    """New files of a folder, kept under temporary names until `install` gives them their own.

    Leaving the context removes what was not installed.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._token = secrets.token_hex(4)
        self._staged: dict[str, Path] = {}  # name -> temporary file, in the order of installation

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for temporary in self._staged.values():
            with contextlib.suppress(OSError):  # what led here matters more
                temporary.unlink(missing_ok=True)

    def add(self, name: str, blocks: Iterable[bytes | memoryview]) -> None:
        """Write a file under a temporary name, safely on disk when this returns.

        Args:
            name: the name it will have.
            blocks: its content; each block is let go before the next is asked for.
        """
        temporary = self._staged[name] = self._folder / f".{name}.{self._token}.tmp"
        write_new(temporary, blocks, self._folder / name)

    def install(self) -> list[Path]:
        """Give the staged files their names, the one that was added last as the last.

        That one is taken for an index: where names of other files are in use, the old index is moved away
        first and comes back if anything fails, so that it never stands beside files that are not its own.

        Returns:
            The new files.
        """
        targets = [self._folder / name for name in self._staged]
        with refusals_explained(self._folder):
            with contextlib.ExitStack() as undo:
                set_aside = self._set_aside(targets, undo)
                for temporary, target in zip(self._staged.values(), targets, strict=True):
                    if target == targets[-1]:
                        sync_folder(self._folder)
                    elif not target.exists():
                        undo.callback(target.unlink, missing_ok=True)
                    temporary.replace(target)
                undo.pop_all()
            sync_folder(self._folder)
            for old in set_aside:
                old.unlink()
        return targets

    def _set_aside(self, targets: list[Path], undo: contextlib.ExitStack) -> list[Path]:
        if not any(target.exists() for target in targets[:-1]):
            return []  # replacing the last one is then the only step from the old files to the new ones
        set_aside = []
        for old in reversed(targets):
            if old.exists():
                aside = old.with_name(f".{old.name}.{self._token}.old")
                old.replace(aside)
                undo.callback(aside.replace, old)
                set_aside.append(aside)
        return set_aside


@contextlib.contextmanager
def refusals_explained(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a sentence that names the file."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # a sentence of ours
            raise
        raise OSError(error.errno, f"{path} could not be written: {error.strerror}") from error


def write_new(path: Path, blocks: Iterable[bytes | memoryview], target: Path) -> None:
    """Write a file that is not there yet, safely on disk when this returns; `target` is its name in errors."""
    with refusals_explained(target):
        # Not tempfile, whose files only their owner may read. Unbuffered, or closing would fail again.
        file = path.open("xb", buffering=0)
    with file:
        for block in blocks:  # an OSError raised here comes from the block's source, not from this file
            with refusals_explained(target):
                _write_all(file, block)
            del block
        with refusals_explained(target):
            os.fsync(file.fileno())


def _write_all(file: io.FileIO, block: bytes | memoryview) -> None:
    rest = memoryview(block)
    while rest:  # one call takes at most 2 GiB
        rest = rest[file.write(rest) :]


def sync_folder(folder: Path) -> None:
    """Make what was done to the names in a folder safe on disk."""
    if os.name != "posix":
        return  # Windows cannot open a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
