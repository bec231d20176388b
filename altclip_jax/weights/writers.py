"""Write tensors to safetensors files, one at a time, so that a model is never in memory twice."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.files.staging import Staging
from altclip_jax.files.whole import Change
from altclip_jax.weights.safetensors_file import DTYPES

# transformers reads a safetensors file only where it says so.
_FORMAT: Final[Mapping[str, str]] = MappingProxyType({"format": "pt"})
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_CODES: Final = {dtype: code for code, dtype in DTYPES.items()}


class TensorSource(NamedTuple):
    """A tensor to be written, made only when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: str | os.PathLike[str], tensors: Iterable[TensorSource], metadata: Mapping[str, str] = _FORMAT
) -> None:
    """Write one safetensors file, whole or not at all.

    The tensors stand in the order of the safetensors library: wide dtypes first, then by name.

    Args:
        path: the file; what stands there is replaced when the new one is safely on disk.
        tensors: their `load` is called one after the other, and each array is let go before the next.
        metadata: text for the header.

    Raises:
        CheckpointError: a name stands twice, the format lacks a dtype, an array is not as it was declared.
        OSError: the file system refused; what stood there before is as it was.
    """
    path = Path(path)
    with Staging(path.parent) as staging:
        staging.add(path.name, safetensors_blocks(_checked(tensors), metadata))
        staging.install()


def add_weights(
    change: Change,
    tensors: Iterable[TensorSource],
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] = _FORMAT,
) -> None:
    """Add model.safetensors, or shards and an index where tensors take more than `max_shard_bytes`.

    Names and index are those of transformers.

    Args:
        change: of the folder.
        tensors: in the order in which they fill the shards.
        max_shard_bytes: of tensor data in a file; a larger tensor gets a shard of its own.
        metadata: text for the header of each file.

    Raises:
        CheckpointError, OSError: as `write_safetensors` does.
    """
    shards = _cut(_checked(tensors), max_shard_bytes)
    if len(shards) == 1:
        change.add(_SINGLE, safetensors_blocks(shards[0], metadata))
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        shard_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        change.add(shard_name, safetensors_blocks(shard, metadata))
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), shard_name)
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    change.add(_INDEX, [json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"])


def _checked(tensors: Iterable[TensorSource]) -> list[TensorSource]:
    names: set[str] = set()
    checked, faults = [], []
    for tensor in tensors:
        if tensor.name in names or tensor.name == "__metadata__":
            faults.append(f"the name {tensor.name!r} is taken")
        if tensor.dtype not in _CODES:
            faults.append(f"{tensor.name!r} is {tensor.dtype}, which is none of {', '.join(map(str, _CODES))}")
        names.add(tensor.name)
        checked.append(tensor)
    if faults:
        raise CheckpointError("The tensors cannot be written as safetensors", faults)
    return checked


def _cut(tensors: Sequence[TensorSource], max_bytes: int) -> list[list[TensorSource]]:
    if max_bytes <= 0:
        raise ValueError(f"max_shard_bytes must be positive, got {max_bytes}")
    shards: list[list[TensorSource]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def safetensors_blocks(tensors: Sequence[TensorSource], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Give the content of a safetensors file, a tensor at a time; names are different, and dtypes the format's."""
    order = list(DTYPES.values())
    tensors = sorted(tensors, key=lambda tensor: (order.index(tensor.dtype), tensor.name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in tensors:
        offsets = [offset, offset := offset + tensor.nbytes]
        header[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors:
        yield _loaded(tensor)


def _loaded(tensor: TensorSource) -> memoryview:
    array = tensor.load()
    if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
        declared, found = f"{tensor.dtype}{list(tensor.shape)}", f"{array.dtype}{list(array.shape)}"
        raise CheckpointError(f"{tensor.name!r} was declared as {declared}, but its source gave {found}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
