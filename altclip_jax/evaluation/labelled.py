"""Pictures with the name of their class: folders, tables, and tar shards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.files import find_files
from altclip_jax.data.records import Records
from altclip_jax.data.samples import Picture, SampleError
from altclip_jax.data.webdataset import IMAGE, Shards
from altclip_jax.processing.image_files import PICTURE_SUFFIXES

_TABLES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
_ROLES = {
    "image": ("image", "filepath", "file_name"),
    "label": ("label", "class", "category"),
}


class Labelled(NamedTuple):
    """A picture, and its class as the data call it."""

    picture: Picture
    label: str


def open_labelled(data: Sequence[str], bad: BadSamples) -> list[Labelled]:
    """Opens a folder with a sub-folder for each class, a table with an image and a label, or shards with key.cls.

    Args:
        data: Folders, files or patterns.
        bad: Is told the samples that cannot be used.

    Raises:
        FileNotFoundError: a file does not exist.
        TooManyBadSamples: `bad` allows no more.
        ValueError: data of another kind, or without a picture.
    """
    found: list[Labelled] = []
    for place in data:
        path = Path(place)
        if path.is_dir():
            own = folder_pictures(path)
            bad.record(range(len(found), len(found) + len(own)), [])
        else:
            own = _from_files(place, bad, first=len(found))
        if not own:
            raise ValueError(bad.explain(f"{place} holds no picture with a class") if bad.names else _nothing(path))
        found += own
    return found


def folder_pictures(folder: Path) -> list[Labelled]:
    """Returns the pictures in the sub-folders of a folder, whose names are their classes; sorted."""
    return [
        Labelled(Picture(str(file), file.read_bytes, file), sub.name)
        for sub in sorted(folder.iterdir())
        if sub.is_dir()
        for file in sorted(sub.rglob("*"))
        if file.suffix.lower() in PICTURE_SUFFIXES
    ]


def _nothing(path: Path) -> str:
    if path.is_dir():
        return f"{path} holds no picture in a sub-folder: expected one sub-folder for each class."
    return f"{path} holds no samples."


def _from_files(pattern: str, bad: BadSamples, first: int) -> list[Labelled]:
    paths = find_files(pattern)
    forms = {_TABLES.get(path.suffix.lower(), path.suffix.lower()) for path in paths}
    form = forms.pop()
    if forms or form not in ("jsonl", "csv", "tsv", ".tar"):
        raise ValueError(
            f"{pattern} is neither a folder with a sub-folder for each class, nor a table of images and labels (.jsonl"
            " .csv .tsv), nor shards with key.cls (.tar)."
        )
    if form == ".tar":
        return _from_shards(paths, bad, first)
    records, found = Records(paths, form, _ROLES, required=("image", "label")), []
    for index in range(len(records)):
        try:
            found.append(_from_record(records, index))
        except SampleError as error:
            bad.record([first + index], [error])
        else:
            bad.record([first + index], [])
    return found


def _from_record(records: Records, index: int) -> Labelled:
    name, fields = records.name(index), records.read(index)
    image, label = fields.get("image"), fields.get("label")
    if not isinstance(image, str) or not image:
        raise SampleError(name, "it names no image: expected a path")
    if isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip():
        raise SampleError(name, "it has no label: expected a string or a whole number")
    file = records.path(index).parent / image
    return Labelled(Picture(image, file.read_bytes, file), str(label).strip())


def _from_shards(paths: Sequence[Path], bad: BadSamples, first: int) -> list[Labelled]:
    shards, found = Shards(paths, {"cls": "class"}), []
    bad.record_faults(shards.faults, len(shards))
    for index in range(len(shards)):
        try:
            found.append(_from_shard(shards, index))
        except SampleError as error:
            bad.record([first + index], [error])
        else:
            bad.record([first + index], [])
    return found


def _from_shard(shards: Shards, index: int) -> Labelled:
    name = shards.name(index)
    if not shards.has(index, "class") or not shards.has(index, IMAGE):
        raise SampleError(name, "it has no picture, or no .cls beside it")
    label = shards.read(index, "class").decode("utf-8", "replace").strip()
    if not label:
        raise SampleError(name, "its .cls is empty")
    return Labelled(Picture(name, partial(shards.read, index, IMAGE)), label)
