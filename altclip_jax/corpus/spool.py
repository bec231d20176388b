"""Standard input as a file of the store: a pipe cannot be read again after a kill, a file can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from altclip_jax.corpus.store import DESCRIPTION
from altclip_jax.files.ownership import claim, kind_of
from altclip_jax.files.staging import Staging, refusals_explained, staged_name

_BLOCK = 2**20
NAME = "standard_input.txt"


def spooled(folder: Path, stream: BinaryIO) -> Path:
    """Returns a file of what comes on standard input, whole; if an earlier run has written it, nothing is read.

    Raises:
        FileExistsError: the folder holds something else than a store.
        OSError: it cannot be written.
    """
    claim(folder, "store")
    path = folder / NAME
    if not path.is_file():
        with refusals_explained(folder):
            for left in list(folder.iterdir()):
                if staged_name(left.name) == NAME:
                    left.unlink()
        with Staging(folder) as staging:
            staging.add(NAME, _blocks(stream))
            staging.install()
    return path


def forget(folder: Path) -> None:
    """Removes what an earlier run has written, if it did not come to begin a store."""
    if kind_of(folder) == "store" and not (folder / DESCRIPTION).exists():
        (folder / NAME).unlink(missing_ok=True)


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block
