"""Pictures and captions in tar files, as img2dataset and webdataset write them: key.jpg beside key.txt or key.json."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from altclip_jax.data.files import OpenFiles
from altclip_jax.data.samples import (
    ImageText,
    Picture,
    Roles,
    SampleError,
    captions_of,
    image_text_roles,
    parse_fields,
    select_languages,
)
from altclip_jax.processing.image_files import PICTURE_SUFFIXES

IMAGE = "image"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class WebDataset:
    """A source of tar shards with key.jpg (or another of `PICTURE_SUFFIXES`) and key.txt or key.json.

    The JSON holds "caption" or "captions", and perhaps "language"; the text stands in for it if it holds neither.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        languages: Sequence[str] | None = None,
        caption_key: str | None = None,
        language_key: str | None = None,
    ):
        """Reads the headers of all shards; of a cut one, what is complete counts and the rest is a fault.

        Raises:
            OSError: a shard cannot be read.
            ValueError: a shard is compressed.
        """
        self._languages = None if languages is None else tuple(languages)
        self._roles = image_text_roles(None, caption_key, language_key)
        self._shards = Shards(paths, {"txt": "text", "json": "json"})
        self.faults = self._shards.faults
        self.groups: tuple[int, ...] | None = None
        self._kept: np.ndarray | None = None  # the samples that are in the languages; None: all
        if languages is not None:
            fields = partial(sample_fields, self._shards, roles=self._roles)
            self._kept = select_languages(len(self._shards), fields, languages)

    def __len__(self) -> int:
        return len(self._shards) if self._kept is None else len(self._kept)

    def first_picture(self, index: int) -> int:
        """Returns how many pictures the samples before this one have."""
        return index

    def read(self, index: int) -> ImageText:
        """Returns a sample.

        Raises:
            SampleError: it cannot be used.
        """
        place = index if self._kept is None else int(self._kept[index])
        name = self._shards.name(place)
        captions = captions_of(name, sample_fields(self._shards, place, self._roles), self._languages)
        if not self._shards.has(place, IMAGE):
            raise SampleError(name, "it has no picture beside its caption")
        return ImageText(name, captions, (Picture(name, partial(self._shards.read, place, IMAGE)),))


def sample_fields(shards: Shards, place: int, roles: Roles) -> dict[str, Any]:
    """Returns the caption and what else the sample says, by our names.

    Args:
        shards: With members of the kinds "json" and "text".
        place: Of the sample.
        roles: The names that each role may have in its JSON.

    Raises:
        SampleError: it is not UTF-8, or not JSON.
    """
    name = shards.name(place)
    fields: dict[str, Any] = {}
    try:
        if shards.has(place, "json"):
            fields = parse_fields(name, shards.read(place, "json").decode(), roles, within=True)
        if not fields.get("caption") and not fields.get("captions") and shards.has(place, "text"):
            fields["caption"] = shards.read(place, "text").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(name, f"its caption is not UTF-8 ({error.reason} at byte {error.start})") from None
    return fields


class _Shard(NamedTuple):
    path: Path
    keys: list[bytes]
    offsets: np.ndarray  # int64 (samples, kinds); -1: the sample has no such member
    sizes: np.ndarray  # int64 (samples, kinds)


class Shards:
    """The samples of tar files, numbered through; may be pickled and shared between threads."""

    def __init__(self, paths: Sequence[Path], others: Mapping[str, str]):
        """Reads the headers of all shards; of a cut one, what is complete counts and the rest is a fault.

        Args:
            paths: The tar files.
            others: The endings of members that are wanted beside pictures, and what kind each is.

        Raises:
            OSError: a shard cannot be read.
            ValueError: a shard is compressed.
        """
        kinds = {**dict.fromkeys((suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES), IMAGE), **others}
        self._columns = {kind: column for column, kind in enumerate(dict.fromkeys(kinds.values()))}
        self._files = OpenFiles()
        self._shards, faults = [], []
        for path in paths:
            shard, fault = _scan(path, kinds, self._columns)
            self._shards.append(shard)
            faults += [SampleError(str(path), fault)] if fault else []
        self.faults = tuple(faults)
        self._ends = np.cumsum([len(shard.keys) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        """Returns shard/key."""
        shard, place = self._find(index)
        return f"{shard.path}/{shard.keys[place].decode('utf-8', 'replace')}"

    def has(self, index: int, kind: str) -> bool:
        """Tells whether a sample has such a member."""
        shard, place = self._find(index)
        return bool(shard.offsets[place, self._columns[kind]] >= 0)

    def read(self, index: int, kind: str) -> bytes:
        """Returns a member that the sample has.

        Raises:
            SampleError: it is no longer there.
        """
        shard, place = self._find(index)
        offset, size = (int(table[place, self._columns[kind]]) for table in (shard.offsets, shard.sizes))
        data = self._files.read(shard.path, offset, size)
        if len(data) < size:
            raise SampleError(self.name(index), "its shard has become shorter than it was when it was opened")
        return data

    def _find(self, index: int) -> tuple[_Shard, int]:
        place = int(np.searchsorted(self._ends, index, "right"))
        shard = self._shards[place]
        return shard, index - int(self._ends[place]) + len(shard.keys)


def _scan(path: Path, kinds: Mapping[str, str], columns: Mapping[str, int]) -> tuple[_Shard, str | None]:
    """Returns the samples of a shard, and what is wrong with it if it is cut or damaged."""
    members: dict[bytes, dict[str, tuple[int, int]]] = {}
    with path.open("rb") as file:
        start = file.read(6)
        packed = [name for magic, name in _COMPRESSED.items() if start.startswith(magic)]
        if packed:
            raise ValueError(f"{path} is compressed with {packed[0]}: samples are read from their places; unpack it.")
        file.seek(0)
        fault = None
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    _note(members, member, kinds)
                    tar.members.clear()  # type: ignore[attr-defined]  # or it remembers all of them
                end = tar.offset
            file.seek(end)
            if file.read(512) != bytes(512):
                fault = f"the shard is cut or damaged at byte {end}; what came before is used"
        except tarfile.TarError as error:
            fault = f"the shard is cut or damaged ({error}); what came before is used"
        if fault is not None:
            _drop_cut(members, size=file.seek(0, 2))
    keys = list(members)
    table = np.full((len(keys), len(columns), 2), -1, np.int64)
    for place, key in enumerate(keys):
        for kind, where in members[key].items():
            table[place, columns[kind]] = where
    return _Shard(path, keys, table[..., 0].copy(), table[..., 1].copy()), fault


def _note(members: dict[bytes, dict[str, tuple[int, int]]], member: tarfile.TarInfo, kinds: Mapping[str, str]) -> None:
    folder, slash, file = member.name.rpartition("/")
    key, _, ending = file.partition(".")
    kind = kinds.get(ending.lower())
    if kind is not None and member.isreg() and not member.issparse():
        name = f"{folder}{slash}{key}".encode("utf-8", "surrogateescape")
        members.setdefault(name, {})[kind] = (member.offset_data, member.size)


def _drop_cut(members: dict[bytes, dict[str, tuple[int, int]]], size: int) -> None:
    """Takes the last sample of a cut shard away, if what it still has makes none."""
    if not members:
        return
    key = next(reversed(members))
    whole = {kind: (offset, length) for kind, (offset, length) in members[key].items() if offset + length <= size}
    if IMAGE in whole and len(whole) > 1:
        members[key] = whole
    else:
        del members[key]
