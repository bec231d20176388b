"""The catalogue of a file written by torch.save, read without torch: which tensors it holds, and where.

Source: torch 2.13, torch/serialization.py. A zip archive of stored (not compressed) members under one folder:
data.pkl, a pickle in which each storage is ("storage", type, key, device, elements); data/<key>, its bytes;
byteorder, "little" or "big", absent in old files.
"""

import io
import os
import struct
import zipfile
import zlib
from typing import Any, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.weights.file_kind import ZIP, require_kind
from altclip_jax.weights.stored import (
    MAX_CATALOGUE_BYTES,
    StoredFile,
    StoredTensor,
    TensorInfo,
    shape_fault,
)
from altclip_jax.weights.torch_pickle import Global, PersistentId, TensorView, read_pickle

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "torch.DoubleStorage": np.float64,
        "torch.FloatStorage": np.float32,
        "torch.HalfStorage": np.float16,
        "torch.BFloat16Storage": ml_dtypes.bfloat16,
        "torch.LongStorage": np.int64,
        "torch.IntStorage": np.int32,
        "torch.ShortStorage": np.int16,
        "torch.CharStorage": np.int8,
        "torch.ByteStorage": np.uint8,
        "torch.BoolStorage": np.bool_,
        "torch.storage.UntypedStorage": np.uint8,
    }.items()
}
# Settings that are saved beside the weights name these.
_SCALAR_TYPES = {f"torch.{dtype}" for dtype in _DTYPES.values()}
# Under which key training programs (Lightning, FlagAI, DeepSpeed) keep the weights beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "module", "model")


def read_torch(file: StoredFile) -> dict[str, StoredTensor]:
    """Read the tensors that a file by torch.save declares; no tensor data is read and no code of it is run.

    A dict without tensors of its own whose entry "state_dict", "model_state_dict", "module" or "model" is a
    dict with tensors is unwrapped: {"state_dict": {...}, "epoch": 3}. Tensors may share a storage and have
    any strides; one that repeats elements (torch's `expand`) must not be larger than the file. Checksums of
    tensor data are not compared (torch does not either).

    Raises:
        CheckpointError: the file is damaged, of another kind, or asks for more than tensors.
    """
    require_kind(file, ZIP)
    entries = _zip_entries(file)
    folder = _archive_folder(file, [entry.filename for entry in entries])
    members = _members(file, entries)
    byte_order = members.get(f"{folder}/byteorder")
    if byte_order is not None and file.read_bytes(byte_order.begin, min(byte_order.size, 16)) != b"little":
        raise CheckpointError(
            f"{file.path} is not marked as little-endian: save it again with torch on a little-endian machine"
        )
    pickled = members[f"{folder}/data.pkl"]
    if pickled.size > MAX_CATALOGUE_BYTES:
        raise CheckpointError(
            f"The pickle of {file.path} has {pickled.size} bytes; at most {MAX_CATALOGUE_BYTES} are read"
        )
    data = file.read_bytes(pickled.begin, pickled.size)
    if pickled.checksum and zlib.crc32(data) != pickled.checksum:
        raise CheckpointError(f"The pickle of {file.path} is not what its checksum says: it is damaged")
    allowed = _DTYPES.keys() | _SCALAR_TYPES
    state = _unwrap(file, read_pickle(data, f"The pickle of {file.path}", allowed))
    prefix = f"{folder}/data/"
    storages = {name.removeprefix(prefix): m for name, m in members.items() if name.startswith(prefix)}
    tensors, faults = {}, []
    for name, value in state.items():
        found = _stored_tensor(file, name, value, storages)
        if isinstance(found, StoredTensor):
            tensors[found.info.name] = found
        else:
            faults.append(f"{name!r}: {found}")
    if faults:
        raise CheckpointError(str(file.path), faults)
    return tensors


class _Member(NamedTuple):
    """Where the bytes of a member of the archive lie."""

    begin: int
    size: int
    checksum: int  # CRC-32, or 0: torch has an option to leave it out


class _DirectoryFile(io.FileIO):
    """The archive as zipfile sees it, which reads as many bytes of directory as the file claims to have."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like FileIO, but no more than a catalogue may have."""
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > MAX_CATALOGUE_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes; {MAX_CATALOGUE_BYTES} are the most that is read")
        return super().read(size) or b""


def _zip_entries(file: StoredFile) -> list[zipfile.ZipInfo]:
    try:
        with _DirectoryFile(os.dup(file.fileno())) as directory, zipfile.ZipFile(directory) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, ValueError) as error:
        raise CheckpointError(f"{file.path} is a damaged zip archive, perhaps cut short: {error}") from error


def _archive_folder(file: StoredFile, names: list[str]) -> str:
    pickles = [name.split("/") for name in names if name.endswith("/data.pkl")]
    folders = {parts[0] for parts in pickles if len(parts) == 2}
    if len(folders) != 1:
        raise CheckpointError(
            f"{file.path} is a zip archive, but torch.save did not write it: one member <folder>/data.pkl "
            f"was expected, found {len(folders)} among {len(names)} members"
        )
    folder = folders.pop()
    if f"{folder}/constants.pkl" in names:
        raise CheckpointError(
            f"{file.path} is a TorchScript program, which holds code. Where you trust it, take its weights: "
            "torch.save(torch.jit.load(old).state_dict(), new)"
        )
    return folder


def _members(file: StoredFile, entries: list[zipfile.ZipInfo]) -> dict[str, _Member]:
    faults = []
    if packed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        faults.append(
            f"{len(packed)} of its {len(entries)} members, {packed[0]!r} the first, are compressed, which "
            "torch never does: unpack the archive and pack it again without compression (zip -0)"
        )
    members: dict[str, _Member] = {}
    for entry in entries:
        # 30 bytes, of which the last four are the lengths of the name and of the extra field that follow.
        local = entry.header_offset
        header = file.read_bytes(local, 30) if 0 <= local <= file.size - 30 else b""
        begin = local + 30 + sum(struct.unpack("<2H", header[26:])) if header else 0
        if not header.startswith(b"PK\x03\x04") or begin + entry.file_size > file.size:
            faults.append(f"member {entry.filename!r} of {entry.file_size} bytes does not lie in the file")
        if entry.flag_bits & 1:
            faults.append(f"member {entry.filename!r} is encrypted")
        if entry.filename in members:
            faults.append(f"member {entry.filename!r} stands twice")
        members[entry.filename] = _Member(begin, entry.file_size, entry.CRC)
    if faults:
        raise CheckpointError(str(file.path), faults)
    return members


def _unwrap(file: StoredFile, state: object) -> dict[Any, Any]:
    if _has_tensors(state):
        return state
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise CheckpointError(f"{file.path} holds a {kind}; a dict from names to tensors was expected")
    found = [key for key in _WRAPPERS if _has_tensors(state.get(key))]
    if len(found) == 1:
        return dict(state[found[0]])
    keys = ", ".join(repr(key) for key in found or state) or "nothing"
    raise CheckpointError(
        f"{file.path} should hold tensors by name, or one dict of them under one of {', '.join(_WRAPPERS)}; "
        f"it holds {'several: ' if found else ''}{keys}"
    )


def _has_tensors(value: object) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict) and any(isinstance(entry, TensorView) for entry in value.values())


def _stored_tensor(file: StoredFile, name: Any, value: Any, storages: dict[str, _Member]) -> StoredTensor | str:
    if not isinstance(name, str):
        return f"the name is a {type(name).__name__}; text was expected"
    if not isinstance(value, TensorView):
        return f"a {type(value).__name__}; a tensor was expected"
    storage = _storage(value.storage, storages)
    if isinstance(storage, str):
        return storage
    member, dtype, elements = storage
    if fault := shape_fault(value.shape):
        return fault
    strides = value.strides
    if not isinstance(strides, tuple) or len(strides) != len(value.shape) or not all(map(_is_count, strides)):
        return f"its strides are not {len(value.shape)} whole numbers"
    if not _is_count(value.offset):
        return "its offset is not a whole number"
    info = TensorInfo(name, tuple(value.shape), dtype, file.path)
    last = value.offset + sum((n - 1) * stride for n, stride in zip(info.shape, strides, strict=True))
    if info.nbytes and last >= elements:
        return f"shape {info.shape}, strides {strides} reach element {last} of a storage that has {elements}"
    if info.nbytes > file.size:
        return f"shape {info.shape} repeats its elements to {info.nbytes} bytes, more than the whole file has"
    # Where an axis has one element, torch leaves any number as its stride.
    strides = tuple(stride if n > 1 else 0 for n, stride in zip(info.shape, strides, strict=True))
    return StoredTensor(info, member.begin + value.offset * dtype.itemsize, strides)


def _storage(found: Any, storages: dict[str, _Member]) -> tuple[_Member, np.dtype[Any], int] | str:
    match found:
        case PersistentId(("storage", Global(kind), str(key), str(), int(elements))) if elements >= 0:
            pass
        case _:
            return "its storage is not described as torch does it"
    if kind not in _DTYPES:
        return f"its storage is a {kind}, which is not one of {', '.join(_DTYPES)}"
    if key not in storages:  # which may be very long, and the same for all tensors
        return f"its storage, member data/{key[:100]} of the archive, is missing"
    dtype = _DTYPES[kind]
    if storages[key].size < elements * dtype.itemsize:
        return (
            f"its storage data/{key}, {elements} elements of {dtype}, should have "
            f"{elements * dtype.itemsize} bytes, found {storages[key].size}"
        )
    return storages[key], dtype, elements


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
