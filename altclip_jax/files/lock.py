"""Locks on files: who works in a folder keeps others out of it, where its file system has locks."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from altclip_jax.files.staging import refusals_explained

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ALLOWED = "ALTCLIP_ALLOW_UNLOCKED"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextlib.contextmanager
def hold_alone(file: Path, *, busy: str, risk: str) -> Iterator[bool]:
    """Holds a lock that one process can hold; gives False where there are none and the user allowed to go on without.

    Args:
        file: What is locked, made if need be. The lock goes with the context, or with the process.
        busy: The sentence where another process holds it.
        risk: What happens if nothing keeps another process out, as the end of a sentence.

    Raises:
        OSError: another process holds it; or there are no locks, and to go on without is not allowed.
    """
    with _opened(file) as lock:
        try:
            guarded = _acquire(lock, "LOCK_EX")
        except BlockingIOError:
            raise OSError(busy) from None
        if not guarded and os.environ.get(ALLOWED) != "1":
            raise OSError(
                f"Where {file.parent} lies there are no file locks, so nothing keeps {risk}. If you see to that"
                f" yourself, set {ALLOWED}=1 in the environment and go on; or choose a folder on a file system that has"
                " locks (Lustre has, when it is mounted with -o flock)."
            )
        yield guarded


@contextlib.contextmanager
def hold_together(file: Path, when_alone: Callable[[], object]) -> Iterator[None]:
    """Holds a lock that many processes can hold; whoever finds nobody else first does what is to be done alone.

    Without locks nobody knows of the others, and it is not done.

    Args:
        file: What is locked, made if need be. The lock goes with the context, or with the process.
        when_alone: Is called while no other process holds the lock, and none can come in.
    """
    with _opened(file) as lock:
        try:
            alone = _acquire(lock, "LOCK_EX")
        except BlockingIOError:
            alone = False
        if alone:
            when_alone()
        _acquire(lock, "LOCK_SH", wait=True)  # for no longer than another does what is to be done alone
        yield


@contextlib.contextmanager
def hold_in_turn(file: Path) -> Iterator[bool]:
    """Waits for the lock that one process, or one thread, can hold, and holds it; gives False where there are none.

    Args:
        file: What is locked. It is there only while somebody holds the lock or waits for it.
    """
    while True:
        with _opened(file) as lock:
            guarded = _acquire(lock, "LOCK_EX", wait=True)
            if guarded and not _is_there(lock, file):
                continue  # whoever held it has removed it meanwhile
            try:
                yield guarded
            finally:
                with contextlib.suppress(OSError):
                    file.unlink()
            return


def _is_there(lock: IO[bytes], file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _opened(file: Path) -> IO[bytes]:
    with refusals_explained(file):
        return file.open("ab")  # some file systems lock only what is open for writing


def _acquire(lock: IO[bytes], kind: str, *, wait: bool = False) -> bool:
    """Returns False where there are no locks.

    Raises:
        BlockingIOError: another process is in the way, and we do not wait.
        OSError: something else is.
    """
    if fcntl is None:
        return False  # type: ignore[unreachable]
    try:
        fcntl.flock(lock, getattr(fcntl, kind) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise OSError(error.errno, f"{lock.name} could not be locked: {error.strerror}") from error
    return True
