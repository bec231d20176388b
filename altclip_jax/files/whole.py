"""A folder that changes as a whole: whoever reads it sees what was there before, or all that is new.

A change keeps what is its own in FOLDER/.altclip_jax.save: the new files in `new` and, as long as it may have to be
undone, the earlier ones in `old`, all under their own names. Its steps:

    1. new/NAME is written, safely on disk.
    2. `journal.json` is written: what was there, and what is to be.
    3. NAME goes to old/NAME, the files that the others are read by first.
    4. new/NAME goes to NAME, those same files last.
    5. `journal.json` is removed: the change is done.
    6. old/NAME is removed.

A change that is killed or fails between 2 and 5 is undone: at once, or by the next that reads or changes the folder
here. Programs that know nothing of this never see a new file beside an earlier one, and from 3 to 5 they lack the files
that they read the others by.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self, TypeVar

from altclip_jax.files.json_file import parse_json
from altclip_jax.files.lock import ALLOWED, hold_in_turn
from altclip_jax.files.staging import is_plain_name, refusals_explained, sync_folder, write_new

PLACE, LOCK, _JOURNAL = ".altclip_jax.save", ".altclip_jax.save.lock", "journal.json"
_ATTEMPTS = 8
_WITHOUT_LOCK = 2  # attempts to read before those who save are kept waiting
_PATIENCE = 2.0  # seconds until who may not write believes that a save was killed

T = TypeVar("T")
_read_now: ContextVar[frozenset[str]] = ContextVar("_read_now", default=frozenset())


class Change:
    """New files of a folder, which take the place of earlier ones all together or not at all.

    Who changes a folder holds its lock from the first file to the last, so that of two the later one wins whole.
    Leaving the context without `install` leaves the folder as it was.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.staged = self.folder / PLACE / "new"
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as entered:
            with refusals_explained(self.folder):
                if not self.folder.exists():
                    entered.callback(_remove_if_empty, self.folder)
                self.folder.mkdir(parents=True, exist_ok=True)
            entered.enter_context(_turn(self.folder))
            entered.callback(_clear, self.folder)
            with refusals_explained(self.folder):
                self.staged.mkdir(parents=True)
                (self.folder / PLACE / "old").mkdir()
            self._held = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def add(self, name: str, blocks: Iterable[bytes | memoryview]) -> None:
        """Write a new file, safely on disk when this returns; whoever writes in another way does so in `staged`.

        Args:
            name: the name that it will have.
            blocks: its content; each block is let go before the next is asked for.
        """
        write_new(self.staged / name, blocks, self.folder / name)

    def install(self, names: Sequence[str]) -> None:
        """Put the new files into the place of the earlier ones.

        Args:
            names: the files that the new ones replace; those without a new one are removed. The others are not read
                without the first of them.
        """
        staged = {entry.name for entry in self.staged.iterdir()}
        names = [*names, *sorted(staged.difference(names))]
        new = [name for name in reversed(names) if name in staged]
        old = [name for name in names if os.path.lexists(self.folder / name)]
        with refusals_explained(self.folder):
            if len(new) == 1 and set(old) <= staged:
                (self.staged / new[0]).replace(self.folder / new[0])
            else:
                try:
                    self._exchange(old, new)
                except BaseException:
                    with contextlib.suppress(OSError):  # then whoever comes next does it
                        _undo(self.folder)
                    raise
        with contextlib.suppress(OSError):  # it is done
            sync_folder(self.folder)
            sync_folder(self.folder / PLACE)

    def _exchange(self, old: list[str], new: list[str]) -> None:
        place = self.folder / PLACE
        told = {"old": old, "new": [[name, *_identity(self.staged / name)] for name in new]}
        write_new(place / f"{_JOURNAL}.tmp", [json.dumps(told).encode()], place / _JOURNAL)
        (place / f"{_JOURNAL}.tmp").replace(place / _JOURNAL)
        sync_folder(place)
        for name in old:
            (self.folder / name).replace(place / "old" / name)
        for name in new:
            if name == new[-1]:
                sync_folder(self.folder)
            (self.staged / name).replace(self.folder / name)
        sync_folder(self.folder)
        (place / _JOURNAL).unlink()


def replace_files(folder: str | os.PathLike[str], files: Mapping[str, bytes], names: Sequence[str]) -> None:
    """Put files into the place of earlier ones, as `Change.install` does."""
    with Change(folder) as change:
        for name, data in files.items():
            change.add(name, [data])
        change.install(names)


def read_whole(folder: Path, names: Sequence[str], read: Callable[[], T]) -> T:
    """Returns what a function reads in a folder, all of it before or all of it after any change.

    The function is called again if the folder has changed meanwhile. Within it, this is only a call.

    Args:
        folder: What a killed change has left half done in it is undone first.
        names: the files that it may read.
        read: the function.

    Raises:
        OSError: a killed change cannot be undone here, or the folder changes all the time.
    """
    place = os.path.realpath(folder)
    if place in _read_now.get():
        return read()
    for attempt in range(_ATTEMPTS):
        with contextlib.ExitStack() as held:
            held.callback(_read_now.reset, _read_now.set(_read_now.get() | {place}))
            if attempt >= _WITHOUT_LOCK:
                with contextlib.suppress(OSError):  # where we may not write
                    held.enter_context(_turn(folder))
            settle(folder)
            before = _state(folder, names)
            try:
                found = read()
            except Exception:
                if _state(folder, names) == before:
                    raise
                continue
            if _state(folder, names) == before:
                return found
    raise OSError(f"{folder} was saved into each of the {_ATTEMPTS} times that it was read: wait until that ends.")


def settle(folder: Path) -> None:
    """Undoes what a killed change has left half done in a folder.

    Raises:
        OSError: it cannot be done; the message says who can.
    """
    journal = folder / PLACE / _JOURNAL
    if not journal.is_file():
        return
    try:
        with _turn(folder):  # which does it; or somebody was at work there
            return
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            time.sleep(0.05)
            if not journal.is_file():
                return
        raise PermissionError(
            error.errno,
            f"A save into {folder} was killed half way, and its files can be put back only by who may write there: load"
            " it once as such a user.",
        ) from error


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder in which no other change is left, neither done nor half done."""
    with hold_in_turn(folder / LOCK) as guarded:
        if (folder / PLACE).exists():
            if not guarded and os.environ.get(ALLOWED) != "1":
                raise OSError(
                    f"Another process saves into {folder}, or was killed while it did: where there are no file locks,"
                    f" nobody can tell which. If none is at work, set {ALLOWED}=1 in the environment and try again."
                )
            with refusals_explained(folder):
                _undo(folder)
                shutil.rmtree(folder / PLACE)
        yield


def _clear(folder: Path) -> None:
    """Removes what a change kept, unless it is still needed to undo it."""
    if not (folder / PLACE / _JOURNAL).exists():
        shutil.rmtree(folder / PLACE, ignore_errors=True)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _undo(folder: Path) -> None:
    """Puts the files of a change that was not done back to where they were; may be killed and done again."""
    place = folder / PLACE
    if not (place / _JOURNAL).exists():
        return
    old, new = _told(place)
    strange = [name for name in {*old, *new} if not _is_expected(folder, name, old, new)]
    if strange:
        raise OSError(
            f"A save into {folder} was killed half way, and {', '.join(sorted(strange))} changed after that. The files"
            f" from before it are in {place / 'old'}: put into the folder what shall be there, and remove {place}."
        )
    for name in reversed(new):
        if os.path.lexists(folder / name) and not os.path.lexists(place / "new" / name):
            (folder / name).replace(place / "new" / name)
    for name in reversed(old):
        if os.path.lexists(place / "old" / name):
            (place / "old" / name).replace(folder / name)
    sync_folder(folder)
    (place / _JOURNAL).unlink()


def _told(place: Path) -> tuple[list[str], dict[str, list[Any]]]:
    """Reads a journal, which whoever made the folder may have written: it is obeyed within the folder alone."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        told = parse_json((place / _JOURNAL).read_bytes())
        old, new = list(told["old"]), {name: identity for name, *identity in told["new"]}
        plain = all(is_plain_name(name) for name in (*old, *new))
        if plain and not any(path.is_symlink() for path in (place, place / "old", place / "new")):
            return old, new
    raise OSError(f"{place / _JOURNAL} is none that this library has written: look at it, and remove {place}.")


def _is_expected(folder: Path, name: str, old: Sequence[str], new: Mapping[str, list[Any]]) -> bool:
    """Tells whether what has a name is what the change has left there, and nothing that came later."""
    place = folder / PLACE
    if not os.path.lexists(folder / name):
        return True
    if name in new and not os.path.lexists(place / "new" / name):
        return _identity(folder / name) == new[name]
    return name in old and not os.path.lexists(place / "old" / name)


def _identity(path: Path) -> list[Any]:
    """Tells a file from one that is written later, even where it was copied; of a folder nothing is told."""
    state = path.lstat()
    return [] if path.is_dir() else [state.st_size, state.st_mtime_ns]


def _state(folder: Path, names: Sequence[str]) -> list[Any]:
    found: list[Any] = []
    for name in (*names, f"{PLACE}/{_JOURNAL}"):
        with contextlib.suppress(OSError):
            state = (folder / name).stat()
            found.append((name, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return found
