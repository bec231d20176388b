"""The format .safetensors, read and written; tensors are written one at a time, so that none is in memory twice.

Source: the format's description at github.com/huggingface/safetensors. First 8 bytes, the length of the
header, little-endian; then the header, JSON, from names to {dtype, shape, data_offsets}; then the data.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from numpy.typing import NDArray

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.files.staging import Staging
from altclip_jax.files.whole import Change
from altclip_jax.weights.stored_file import (
    MAX_CATALOGUE_BYTES,
    SAFETENSORS,
    StoredFile,
    StoredTensor,
    TensorInfo,
    contiguous_strides,
    load_object,
    require_kind,
    shape_fault,
)

# In the order in which the library puts tensors into a file.
DTYPES: dict[str, np.dtype[Any]] = {
    code: np.dtype(dtype)
    for code, dtype in {
        "U64": np.uint64,
        "I64": np.int64,
        "F64": np.float64,
        "C64": np.complex64,
        "F32": np.float32,
        "U32": np.uint32,
        "I32": np.int32,
        "BF16": ml_dtypes.bfloat16,
        "F16": np.float16,
        "U16": np.uint16,
        "I16": np.int16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
# transformers reads a safetensors file only where it says so.
_FORMAT: Final[Mapping[str, str]] = MappingProxyType({"format": "pt"})
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_CODES: Final = {dtype: code for code, dtype in DTYPES.items()}


def read_safetensors(file: StoredFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Reads the tensors and the metadata that a safetensors file declares; no tensor data is read.

    The header is checked here, where every fault is named, then by the safetensors library too.

    Raises:
        CheckpointError: the file is no sound safetensors file.
    """
    require_kind(file, SAFETENSORS)
    length = int.from_bytes(file.read_bytes(0, 8), "little")
    if length > MAX_CATALOGUE_BYTES:
        raise CheckpointError(
            f"{file.path} declares a header of {length} bytes; at most {MAX_CATALOGUE_BYTES} are read"
        )
    header = load_object(file.read_bytes(8, length), f"The header of {file.path}")
    metadata = header.pop("__metadata__", {})
    faults = []
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        faults.append("its __metadata__ is not a map from text to text")
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        found = _stored_tensor(file, name, entry, data_begin=8 + length)
        if isinstance(found, StoredTensor):
            tensors[name] = found
        else:
            faults.append(f"{name!r}: {found}")
    if not faults:  # a refused entry leaves a gap, which would be a second message for the same fault
        faults = _layout_faults(list(tensors.values()), 8 + length, file.size)
    if faults:
        raise CheckpointError(str(file.path), faults)
    try:
        with safetensors.safe_open(file.path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file.path} is refused by the safetensors library: {error}") from error
    return tensors, metadata


def _stored_tensor(file: StoredFile, name: str, entry: object, data_begin: int) -> StoredTensor | str:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "a dtype, a shape and data_offsets were expected"
    if not isinstance(entry["dtype"], str):
        return "its dtype is not text"
    if entry["dtype"] not in DTYPES:
        return f"its dtype {entry['dtype']!r} is not one of {', '.join(DTYPES)}"
    if fault := shape_fault(entry["shape"]):
        return fault
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_offset, offsets)):
        return "its data_offsets are not two byte offsets"
    begin, end = (data_begin + offset for offset in offsets)
    shape = tuple(entry["shape"])
    info = TensorInfo(name, shape, DTYPES[entry["dtype"]], file.path)
    if end - begin != info.nbytes:
        expected = f"{entry['dtype']} of shape {shape} takes {info.nbytes} bytes"
        return f"{expected}, but its data_offsets {offsets} span {end - begin}"
    return StoredTensor(info, begin, contiguous_strides(shape))


def _is_offset(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _layout_faults(tensors: list[StoredTensor], begin: int, size: int) -> list[str]:
    faults = []
    position, before = begin, "the header"
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.info.nbytes)):
        name, end = tensor.info.name, tensor.begin + tensor.info.nbytes
        if tensor.begin != position:
            what = "overlaps" if tensor.begin < position else "leaves a gap after"
            where = f"{before}, which ends at byte {position}"
            faults.append(f"{name!r} begins at byte {tensor.begin} and {what} {where}")
        if end > size:
            faults.append(f"{name!r} ends at byte {end}, but the file was cut short after {size} bytes")
        position, before = max(position, end), repr(name)
    if position < size:
        faults.append(f"{size - position} bytes follow {before}, the last of its tensors")
    return faults


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
    """Writes one safetensors file, whole or not at all.

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
        staging.add(path.name, safetensors_blocks(_check(tensors), metadata))
        staging.install()


def add_weights(
    change: Change,
    tensors: Iterable[TensorSource],
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] = _FORMAT,
) -> None:
    """Adds model.safetensors, or shards and an index where tensors take more than `max_shard_bytes`.

    Names and index are those of transformers.

    Args:
        change: of the folder.
        tensors: in the order in which they fill the shards.
        max_shard_bytes: of tensor data in a file; a larger tensor gets a shard of its own.
        metadata: text for the header of each file.

    Raises:
        CheckpointError, OSError: as `write_safetensors` does.
    """
    shards = _cut(_check(tensors), max_shard_bytes)
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


def _check(tensors: Iterable[TensorSource]) -> list[TensorSource]:
    names: set[str] = set()
    listed, faults = [], []
    for tensor in tensors:
        if tensor.name in names or tensor.name == "__metadata__":
            faults.append(f"the name {tensor.name!r} is taken")
        if tensor.dtype not in _CODES:
            faults.append(f"{tensor.name!r} is {tensor.dtype}, which is none of {', '.join(map(str, _CODES))}")
        names.add(tensor.name)
        listed.append(tensor)
    if faults:
        raise CheckpointError("The tensors cannot be written as safetensors", faults)
    return listed


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
    """Gives the content of a safetensors file, a tensor at a time; names are different, and dtypes the format's."""
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
        yield _load(tensor)


def _load(tensor: TensorSource) -> memoryview:
    array = tensor.load()
    if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
        declared, found = f"{tensor.dtype}{list(tensor.shape)}", f"{array.dtype}{list(array.shape)}"
        raise CheckpointError(f"{tensor.name!r} was declared as {declared}, but its source gave {found}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
