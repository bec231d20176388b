"""A checkpoint in any of its file forms, opened as one map from names to arrays."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from altclip_jax.files.checkpoint_folder import ORBAX, WEIGHT_SUFFIXES, CheckpointError, weights_in
from altclip_jax.files.staging import is_plain_name
from altclip_jax.weights.safetensors_file import read_safetensors
from altclip_jax.weights.stored_file import (
    MAX_CATALOGUE_BYTES,
    StoredFile,
    StoredTensor,
    TensorInfo,
    load_object,
    open_regular,
)
from altclip_jax.weights.torch_file import read_torch

__all__ = ["Checkpoint", "CheckpointError", "TensorInfo", "open_checkpoint", "weights_in"]

_INDEX_SUFFIX = ".index.json"
_TORCH_SUFFIXES = (".bin", ".pt", ".pth")


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens the weights in a folder, or one file of weights; no tensor data is read yet.

    Args:
        path: a folder, whose weights `weights_in` finds, or a file *.safetensors, *.bin, *.pt, *.pth or *.index.json.

    Raises:
        CheckpointError: what is there is damaged, of another kind or at odds with itself.
        FileNotFoundError: there are no weights; the message says what is there instead.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_in(path)
        if path.name == ORBAX:
            raise CheckpointError(f"{path} is of orbax: make safetensors of {path.parent} with `altclip convert`")
    elif not os.path.lexists(path):
        raise FileNotFoundError(f"{path} does not exist; a folder or a file of weights was expected")
    if not path.name.endswith(WEIGHT_SUFFIXES):
        raise CheckpointError(f"{path} is none of *{', *'.join(WEIGHT_SUFFIXES)}, the kinds of files that are read")
    if path.name.endswith(_INDEX_SUFFIX):
        return _open_shards(path)
    return Checkpoint([_Part(path)])


class Checkpoint:
    """The tensors of one or more files, read one by one on request; a context manager that closes the files.

    Reading is safe from several threads.
    """

    def __init__(self, parts: list[_Part]):
        self._parts = parts
        self._owners = {name: part for part in parts for name in part.tensors}
        infos = {name: part.tensors[name].info for name, part in self._owners.items()}
        self.infos: Mapping[str, TensorInfo] = MappingProxyType(infos)
        self.files = tuple(part.file.path for part in parts)
        self.metadata: dict[str, str] = {}  # of safetensors files; empty for torch's
        for part in reversed(parts):
            self.metadata |= part.metadata

    def read(self, name: str, index: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Reads a tensor, or the part of it that `index` names, into a new contiguous array, aligned to 64 bytes.

        Where a part lies in the file as runs of 64 bytes or more, only these are read; where its bits are
        smaller, all from the first to the last. Little more memory is used than the result takes.

        Args:
            name: the tensor.
            index: slices of step 1 for the first axes; the others are read whole.
        """
        if name not in self._owners:
            raise CheckpointError(f"{name!r} is not among the {len(self.infos)} tensors of {self.files[0].parent}")
        part = self._owners[name]
        return part.file.read(part.tensors[name], index)

    def close(self) -> None:
        """Closes the files; arrays that were read stay valid."""
        for part in self._parts:
            part.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Part:
    """One open file and what it declares."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]

    def __init__(self, path: Path):
        self.file: StoredFile = open_regular(path)
        try:
            if path.name.endswith(_TORCH_SUFFIXES):
                self.tensors, self.metadata = read_torch(self.file), {}
            else:
                self.tensors, self.metadata = read_safetensors(self.file)
        except BaseException:
            self.file.close()
            raise


def _open_shards(index: Path) -> Checkpoint:
    weight_map = _read_index(index)
    counts = collections.Counter(weight_map.values())
    faults: list[str] = []
    with contextlib.ExitStack() as opened:
        parts: dict[str, _Part] = {}
        for shard, count in sorted(counts.items()):
            try:
                parts[shard] = _Part(index.parent / shard)
                opened.callback(parts[shard].file.close)
            except FileNotFoundError as error:
                faults.append(f"the shard {shard}, which should hold {count} tensors, is missing ({error})")
            except (CheckpointError, OSError) as error:
                faults.append(str(error))
        faults += _placement_faults(weight_map, {shard: part.tensors for shard, part in parts.items()})
        if faults:
            raise CheckpointError(str(index), faults)
        opened.pop_all()
    return Checkpoint(list(parts.values()))


def _read_index(path: Path) -> dict[str, str]:
    """Reads the map from tensors to shards, which are plain names of files beside the index.

    A link of such a name may lead anywhere: the cache of the Hugging Face hub consists of links.

    Raises:
        CheckpointError: not a sound index, or a shard that is no plain file name; all of them are listed.
    """
    file = open_regular(path)
    try:
        if file.size > MAX_CATALOGUE_BYTES:
            raise CheckpointError(f"{path} has {file.size} bytes; at most {MAX_CATALOGUE_BYTES} are read")
        content = load_object(file.read_bytes(0, file.size), str(path))
    finally:
        file.close()
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} should have a weight_map from names of tensors to names of files")
    suffix = Path(path.name.removesuffix(_INDEX_SUFFIX)).suffix
    faults = []
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            faults.append(f"{name!r} should be in a file, found a {type(shard).__name__} instead of its name")
        elif not is_plain_name(shard) or not shard.endswith(suffix):
            faults.append(f"{name!r} should be in a file *{suffix} beside the index, found {shard!r}")
    if faults:
        raise CheckpointError(str(path), faults)
    return weight_map


def _placement_faults(weight_map: Mapping[str, str], shards: Mapping[str, Collection[str]]) -> list[str]:
    """Lists where the index and the shards disagree.

    Args:
        weight_map: name of the tensor -> name of the shard.
        shards: name of the shard -> the tensors in it, for each shard that could be opened.
    """
    holders: dict[str, list[str]] = {}
    for shard, names in shards.items():
        for name in names:
            holders.setdefault(name, []).append(shard)
    faults = []
    for name, expected in weight_map.items():
        found = holders.get(name, [])
        if not found and expected in shards:
            faults.append(f"{name!r} should be in {expected}, which lacks it")
        elif len(found) > 1:
            faults.append(f"{name!r} is in more than one shard: {', '.join(found)}")
        elif found and found[0] != expected:
            faults.append(f"{name!r} should be in {expected}, found in {found[0]}")
    faults += [
        f"{name!r} is in {', '.join(found)} but not in the index"
        for name, found in holders.items()
        if name not in weight_map
    ]
    return faults
