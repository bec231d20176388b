"""Whether a folder is ours: only there do we overwrite and remove files, and never what is read.

A folder becomes ours when it is empty: the first thing that we write into it is a marker, which says what it is. The
manifest of a folder of programs is its marker.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from altclip_jax.files.json_file import read_json_object, write_json
from altclip_jax.files.staging import staged_name
from altclip_jax.files.whole import LOCK, PLACE
from altclip_jax.sentences import list_some

Kind = Literal["store", "run", "index", "programs"]
MARKER = ".altclip_jax.json"
_VERSION = 1  # of what the marker says
_WRITTEN_BY: dict[Kind, str] = {
    "store": "altclip embed",
    "run": "altclip train",
    "index": "altclip index",
    "programs": "altclip export --format stablehlo",
}
# Beside the temporary files of a kill this counts as nothing: what a run of 0.1.0 wrote before all else, what systems
# put into every folder, and what a change keeps.
_NOTHING = {".lock", "lost+found", ".DS_Store", PLACE, LOCK}
_SHOWN = 5


def claim(folder: Path, kind: Kind) -> None:
    """Takes a folder for what we are about to write: one that is ours already, or an empty one, made if need be.

    Raises:
        FileExistsError: it holds something else, which stays as it is.
        OSError: it cannot be written.
    """
    refuse_others(folder, kind)
    if not (folder / MARKER).is_file():
        write_json(folder / MARKER, {"kind": kind, "version": _VERSION})


def refuse_others(folder: Path, kind: Kind) -> None:
    """Checks that a folder can be claimed, and leaves it as it is.

    Raises:
        FileExistsError: it holds something else.
    """
    names = sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208 - before the marker is looked for
    found = kind_of(folder)
    if found not in (kind, None):
        raise FileExistsError(
            f"{folder} was written by `{_WRITTEN_BY[found]}`, and `{_WRITTEN_BY[kind]}` would mix its own files with"
            " those: name another folder."
        )
    others = [name for name in names if name not in _NOTHING and staged_name(name) is None]
    if found is None and others:
        shown = list_some(others, _SHOWN)
        raise FileExistsError(
            f"{folder} is not empty, and `{_WRITTEN_BY[kind]}` has not written what is there ({shown}), so it changes"
            " nothing: name a folder that is new or empty."
        )


def refuse_ours(folder: Path, what: str) -> None:
    """Checks that a folder is none of ours, for those who write `what` into folders of others.

    Raises:
        FileExistsError: it is one.
    """
    found = kind_of(folder)
    if found is not None:
        raise FileExistsError(
            f"{folder} was written by `{_WRITTEN_BY[found]}`, and {what} would take the place of its files: name"
            " another folder."
        )


def kind_of(folder: Path) -> Kind | None:
    """Returns what we have written into a folder, None if nothing says that we have.

    Version 0.1.0 wrote no markers: what it wrote is known by what it put there.

    Raises:
        ValueError: a later version of the library wrote it.
    """
    if (folder / MARKER).is_file():
        told = read_json_object(folder / MARKER)
        if told.get("version") != _VERSION or told.get("kind") not in _WRITTEN_BY:
            raise ValueError(
                f"{folder} was written by another version of altclip_jax, which says {told} in {MARKER}: use that"
                " version, or name another folder."
            )
        return told["kind"]  # type: ignore[no-any-return]
    return next((kind for kind, is_one in _WITHOUT_MARKER.items() if is_one(folder)), None)


def keep_apart(inputs: Iterable[str | os.PathLike[str]], *outputs: Path) -> None:
    """Checks that no input is an output or lies in one.

    Raises:
        ValueError: one is or does.
    """
    output_of = containing(*outputs)
    for path in inputs:
        output = output_of(path)
        if output is not None:
            same = _identity(Path(path)) == _identity(output)
            where = "to be written" if same else f"in {output}, which is to be written"
            raise ValueError(f"{path} is read, and is {where}: name another output, so that nothing read is lost.")


def containing(*folders: Path) -> Callable[[str | os.PathLike[str]], Path | None]:
    """Returns a function that gives the one of some folders that a path is or lies in, None if it is none of them.

    It goes by what the file system says is the same, so links, relative paths and other cases hide nothing. Each
    folder is looked at once.
    """
    known = {identity: folder for folder in folders if (identity := _identity(folder))}

    @functools.cache
    def around(real: Path) -> Path | None:
        identity = _identity(real)
        found = None if identity is None else known.get(identity)
        return around(real.parent) if found is None and real != real.parent else found

    return lambda path: around(Path(os.path.realpath(path))) if known else None


def says(path: Path, *names: str, **values: Any) -> bool:
    """Returns whether a JSON file has these names, and these values."""
    try:
        found = read_json_object(path)
    except (OSError, ValueError):
        return False
    return all(name in found for name in names) and all(found.get(name) == value for name, value in values.items())


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns what is the same for all names of a file or folder, None if there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


_WITHOUT_MARKER: dict[Kind, Callable[[Path], bool]] = {
    "store": lambda folder: says(folder / "store.json", "fingerprint", "part_items"),
    "run": lambda folder: (
        ((folder / "checkpoints").is_dir() or (folder / "locked").is_dir())
        and says(folder / "config.json", "stage", "steps")
    ),
    "index": lambda folder: any(
        says(folder / f"{kind}.index.json", "fingerprint", "rows") for kind in ("images", "texts")
    ),
    "programs": lambda folder: says(folder / "manifest.json", format="altclip_jax.programs"),
}
