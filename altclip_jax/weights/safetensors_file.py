"""The catalogue of a .safetensors file: which tensors it holds, and where.

Source: the format's description at github.com/huggingface/safetensors. First 8 bytes, the length of the
header, little-endian; then the header, JSON, from names to {dtype, shape, data_offsets}; then the data.
"""

from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.weights.file_kind import SAFETENSORS, require_kind
from altclip_jax.weights.stored import (
    MAX_CATALOGUE_BYTES,
    StoredFile,
    StoredTensor,
    TensorInfo,
    contiguous_strides,
    shape_fault,
)
from altclip_jax.weights.strict_json import load_object

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


def read_safetensors(file: StoredFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read the tensors and the metadata that a safetensors file declares; no tensor data is read.

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
