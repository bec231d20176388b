"""Shards of pictures and captions in tar files, as img2dataset and webdataset write them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from altclip_jax.data.fields import captions_of, image_text_roles, may_have, present_roles
from altclip_jax.data.files import OpenFiles
from altclip_jax.data.samples import ImageText, Picture, SampleError

_IMAGE, _TEXT, _JSON = range(3)
_KINDS = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp"), _IMAGE),
    "txt": _TEXT,
    "json": _JSON,
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class _Shard(NamedTuple):
    """Where the members of each sample lie in a tar file."""

    path: Path
    keys: list[bytes]
    offsets: np.ndarray  # int64 (samples, kinds); -1: the sample has no such member
    sizes: np.ndarray  # int64 (samples, kinds)


class WebDataset:
    """A source of tar shards with key.jpg (or .jpeg, .png, .webp, .gif, .bmp) and key.txt or key.json.

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
        self._files = OpenFiles()
        self._shards, faults = [], []
        for path in paths:
            shard, fault = _scanned(path)
            self._shards.append(shard)
            faults += [SampleError(str(path), fault)] if fault else []
        self.faults = tuple(faults)
        self.groups: tuple[int, ...] | None = None
        self._ends = np.cumsum([len(shard.keys) for shard in self._shards])
        self._kept: np.ndarray | None = None  # the samples that are in the languages; None: all
        if languages is not None:
            kept = [index for index in range(self._ends[-1]) if self._may_have(index, languages)]
            self._kept = np.array(kept, np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    def first_picture(self, index: int) -> int:
        """Returns how many pictures the samples before this one have."""
        return index

    def read(self, index: int) -> ImageText:
        """Returns a sample.

        Raises:
            SampleError: it cannot be used.
        """
        shard, place = self._find(index if self._kept is None else int(self._kept[index]))
        name = _name(shard, place)
        captions = captions_of(name, self._fields(shard, place), self._languages)
        if shard.offsets[place, _IMAGE] < 0:
            raise SampleError(name, "it has no picture beside its caption")
        return ImageText(name, captions, (Picture(name, partial(self._member, shard, place, _IMAGE)),))

    def _find(self, index: int) -> tuple[_Shard, int]:
        place = int(np.searchsorted(self._ends, index, "right"))
        shard = self._shards[place]
        return shard, index - int(self._ends[place]) + len(shard.keys)

    def _member(self, shard: _Shard, place: int, kind: int) -> bytes:
        size = int(shard.sizes[place, kind])
        data = self._files.read(shard.path, int(shard.offsets[place, kind]), size)
        if len(data) < size:
            raise SampleError(_name(shard, place), "its shard has become shorter than it was when it was opened")
        return data

    def _fields(self, shard: _Shard, place: int) -> dict[str, Any]:
        """Returns the caption and what else the sample says, by our names.

        Raises:
            SampleError: it is not UTF-8, or not JSON.
        """
        name = _name(shard, place)
        fields: dict[str, Any] = {}
        try:
            if shard.offsets[place, _JSON] >= 0:
                values = json.loads(self._member(shard, place, _JSON).decode())
                if not isinstance(values, dict):
                    raise SampleError(name, f"its json is a {type(values).__name__}, expected an object")
                fields = {role: values[key] for role, key in present_roles(self._roles, values).items()}
            if not fields.get("caption") and not fields.get("captions") and shard.offsets[place, _TEXT] >= 0:
                fields["caption"] = self._member(shard, place, _TEXT).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SampleError(name, f"its caption is not UTF-8 ({error.reason} at byte {error.start})") from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise SampleError(name, f"its json is damaged ({error})") from None
        return fields

    def _may_have(self, index: int, languages: Sequence[str]) -> bool:
        try:
            return may_have(self._fields(*self._find(index)), languages)
        except SampleError:
            return True  # it is told when it is read as a sample


def _name(shard: _Shard, place: int) -> str:
    return f"{shard.path}/{shard.keys[place].decode('utf-8', 'replace')}"


def _scanned(path: Path) -> tuple[_Shard, str | None]:
    """Returns the samples of a shard, and what is wrong with it if it is cut or damaged."""
    members: dict[bytes, dict[int, tuple[int, int]]] = {}
    with path.open("rb") as file:
        start = file.read(6)
        kinds = [kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)]
        if kinds:
            raise ValueError(f"{path} is compressed with {kinds[0]}: samples are read from their places; unpack it.")
        file.seek(0)
        fault = None
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    _note(members, member)
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
    table = np.full((len(keys), len(set(_KINDS.values())), 2), -1, np.int64)
    for place, key in enumerate(keys):
        for kind, where in members[key].items():
            table[place, kind] = where
    return _Shard(path, keys, table[..., 0].copy(), table[..., 1].copy()), fault


def _note(members: dict[bytes, dict[int, tuple[int, int]]], member: tarfile.TarInfo) -> None:
    folder, slash, file = member.name.rpartition("/")
    key, _, ending = file.partition(".")
    kind = _KINDS.get(ending.lower())
    if kind is not None and member.isreg() and not member.issparse():
        name = f"{folder}{slash}{key}".encode("utf-8", "surrogateescape")
        members.setdefault(name, {})[kind] = (member.offset_data, member.size)


def _drop_cut(members: dict[bytes, dict[int, tuple[int, int]]], size: int) -> None:
    """Takes the last sample of a cut shard away, if what it still has makes none."""
    if not members:
        return
    key = next(reversed(members))
    whole = {kind: (offset, length) for kind, (offset, length) in members[key].items() if offset + length <= size}
    if _IMAGE in whole and len(whole) > 1:
        members[key] = whole
    else:
        del members[key]
