"""Write tensors to safetensors files, one at a time, so that a model is never in memory twice."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from altclip_jax.files.staging import Staging, refusals_explained
from altclip_jax.weights.safetensors_file import DTYPES
from altclip_jax.weights.stored import CheckpointError

# transformers reads a safetensors file only where it says so.
_FORMAT: Final[Mapping[str, str]] = MappingProxyType({"format": "pt"})
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_OF_EARLIER_SAVES: Final = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|\.model.*\.safetensors.*\.[0-9a-f]{8}\.(tmp|old)"
)
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


def save_sharded(
    folder: str | os.PathLike[str],
    tensors: Iterable[TensorSource],
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] = _FORMAT,
) -> list[Path]:
    """Write model.safetensors, or shards and an index where tensors take more than `max_shard_bytes`.

    Names and index are those of transformers. All files are written under temporary names before the first
    takes its place, the index comes last, then weights of an earlier save are removed. Whatever raises, the
    earlier checkpoint stays. A process that is killed just while it puts shards in the place of shards with
    the same names leaves no index, never an index over a mixture.

    Args:
        folder: made where it does not exist.
        tensors: in the order in which they fill the shards.
        max_shard_bytes: of tensor data in a file; a larger tensor gets a shard of its own.
        metadata: text for the header of each file.

    Returns:
        The files of the new checkpoint.

    Raises:
        CheckpointError, OSError: as `write_safetensors` does.
    """
    if max_shard_bytes <= 0:
        raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}")
    folder = Path(folder)
    shards = _cut(_checked(tensors), max_shard_bytes)
    with refusals_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with Staging(folder) as staging:
        if len(shards) == 1:
            staging.add(_SINGLE, safetensors_blocks(shards[0], metadata))
        else:
            weight_map: dict[str, str] = {}
            for number, shard in enumerate(shards, start=1):
                shard_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
                staging.add(shard_name, safetensors_blocks(shard, metadata))
                weight_map |= dict.fromkeys((tensor.name for tensor in shard), shard_name)
            total = sum(tensor.nbytes for shard in shards for tensor in shard)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            staging.add(_INDEX, [json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"])
        return staging.install(stale=_OF_EARLIER_SAVES)


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
