"""A file that holds weights: what it really is, what is known of its tensors, and how their bytes become arrays.

This is the one way to a tensor or a slice of one, of .safetensors and .bin alike. The safetensors library's `get_slice`
is not: it has no float8 for numpy, its arrays are not aligned, so that jax copies each, it maps the file, whose pages
count as memory of the process, and it says of a damaged file only the first fault, without the tensor's name.
"""

import dataclasses
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.files.json_file import parse_json
from altclip_jax.machine import aligned_empty

# What describes tensors (a header, an index, a pickle) is parsed in memory, where it may grow a hundredfold.
# The largest AltCLIP needs 0.12 MB; the bound keeps a hostile file from filling the memory of its reader.
MAX_CATALOGUE_BYTES = 8 << 20

_SCRATCH_BYTES = 16 << 20  # what is read at a time where the wanted elements do not lie side by side
_SHORTEST_RUN = 64  # bytes side by side that are worth a reading of their own

SAFETENSORS = "a safetensors file"
ZIP = "a zip archive, as torch.save has written since torch 1.6"

_PLAIN_PICKLE = "a pickle, which could run any code when loaded, and is not read here"
_LEGACY_TORCH = "written by torch.save in its format from before torch 1.6, which is not read here"
_RESAVE = "where you trust it, load and save it again: torch.save(torch.load(old, weights_only=True), new)"

# (first bytes, what such a file is, what to do)
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, a few lines of text that stand for the weights",
        "fetch the real file, for example with `git lfs pull`",
    ),
    (b"PK\x03\x04", ZIP, "if torch wrote it, name it .bin"),
    (b"PK\x05\x06", "an empty zip archive", "fetch or save it again"),
    # Protocol 2, then the long integer with which the old format begins.
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", _LEGACY_TORCH, _RESAVE),
    *((bytes([0x80, protocol]), _PLAIN_PICKLE, _RESAVE) for protocol in range(2, 6)),
    (b"\x1f\x8b", "compressed with gzip", "decompress it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as TensorFlow's h5 weights are", "convert it with transformers"),
    (b"GGUF", "a GGUF file", "use the safetensors or PyTorch weights of the model"),
)
_TAR = (257, b"ustar")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file: Path

    @property
    def nbytes(self) -> int:
        """Size of the tensor as a contiguous array, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor and where its elements lie in its file."""

    info: TensorInfo
    begin: int  # byte offset of the first element
    strides: tuple[int, ...]  # in elements, none negative


class StoredFile:
    """A file open for reading at any offset, from any thread.

    Bytes are read, not mapped: pages of a mapping count as resident memory of the process, which would then
    hold a checkpoint twice.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file; arrays that were read stay valid."""
        self._file.close()

    def fileno(self) -> int:
        """Descriptor of the open file."""
        return self._file.fileno()

    def read_bytes(self, begin: int, count: int) -> bytes:
        """Reads bytes [begin, begin + count); the caller has checked that `count` is no wild claim."""
        buffer = bytearray(count)
        self._read_into(memoryview(buffer), begin)
        return bytes(buffer)

    def read(self, tensor: StoredTensor, index: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Reads a tensor, or the box of it that `index` names, into a new contiguous aligned array.

        Args:
            tensor: one of this file.
            index: slices of step 1 for the first axes; the others are read whole.
        """
        begin, shape = tensor.begin, list(tensor.info.shape)
        for axis, wanted in enumerate(_check_index(tensor.info, index)):
            begin += wanted.start * tensor.strides[axis] * tensor.info.dtype.itemsize
            shape[axis] = len(wanted)
        out = aligned_empty(shape, tensor.info.dtype)
        if out.size and is_contiguous(shape, tensor.strides):
            self._read_into(_bytes_of(out), begin)
        elif out.size and not self._read_runs(out, begin, tensor.strides):
            self._gather(out, begin, tensor.strides)
        return out

    def _read_runs(self, out: NDArray[Any], begin: int, strides: Sequence[int]) -> bool:
        """Reads all that lies side by side at a time, and nothing between; tells whether that is worth it."""
        outer = next(axis for axis in range(out.ndim + 1) if is_contiguous(out.shape[axis:], strides[axis:]))
        run = math.prod(out.shape[outer:]) * out.itemsize
        span = 1 + sum((n - 1) * stride for n, stride in zip(out.shape, strides, strict=True))
        if run < _SHORTEST_RUN or span <= out.size:
            return False
        offsets = np.array(begin)
        for n, stride in zip(out.shape[:outer], strides, strict=False):
            offsets = np.add.outer(offsets, np.arange(n) * stride * out.itemsize)
        buffer = _bytes_of(out)
        for number, offset in enumerate(map(int, offsets.flat)):
            self._read_into(buffer[number * run : (number + 1) * run], offset)
        return True

    def _gather(self, out: NDArray[Any], begin: int, strides: Sequence[int]) -> None:
        # Blocks along the axis that moves furthest in the file: each byte is read about once and the scratch
        # stays small, whatever the order of the other axes.
        order = sorted(range(out.ndim), key=lambda axis: -strides[axis])
        rows, inner = out.transpose(order), [strides[axis] for axis in order[1:]]
        step, itemsize = strides[order[0]], out.dtype.itemsize
        inner_span = 1 + sum((n - 1) * stride for n, stride in zip(rows.shape[1:], inner, strict=True))
        block = max(1, _SCRATCH_BYTES // max(1, step * itemsize))
        for first in range(0, len(rows), block):
            target = rows[first : first + block]
            scratch = np.empty((len(target) - 1) * step + inner_span, out.dtype)
            self._read_into(_bytes_of(scratch), begin + first * step * itemsize)
            byte_strides = [stride * itemsize for stride in (step, *inner)]
            target[...] = np.lib.stride_tricks.as_strided(scratch, target.shape, byte_strides)

    def _read_into(self, buffer: memoryview, begin: int) -> None:
        with self._lock:
            self._file.seek(begin)
            done = 0
            while done < len(buffer):  # one call gives at most 2 GiB
                count = self._file.readinto(buffer[done:])
                if not count:
                    raise CheckpointError(
                        f"{self.path} ended at byte {begin + done} where {len(buffer) - done} bytes more "
                        "were expected: it was changed while it was open"
                    )
                done += count


def require_kind(file: StoredFile, wanted: str) -> None:
    """Raises a CheckpointError that says what the file is unless it looks like `wanted`.

    Args:
        file: the opened file.
        wanted: `SAFETENSORS` or `ZIP`.
    """
    head = file.read_bytes(0, min(file.size, 512))
    found, advice = _tell_kind(head, file.size)
    if found == wanted:
        return
    if found == SAFETENSORS:
        advice = "name it .safetensors"
    raise CheckpointError(f"{file.path} is {found}; {wanted} was expected. To go on: {advice}")


def open_regular(path: Path) -> StoredFile:
    """Opens a file that can be read at any offset.

    Raises:
        CheckpointError: the path is a folder, a pipe or a device.
        OSError: the file system refused; a link that leads nowhere is FileNotFoundError.
    """
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link to {path.readlink()}, which is not there: fetch it again")
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device or pipe"
        raise CheckpointError(f"{path} is a {kind}; a file of weights was expected")
    return StoredFile(path)


def _tell_kind(head: bytes, size: int) -> tuple[str, str]:
    # First, because the length with which a safetensors file begins may look like anything.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return SAFETENSORS, ""
    again = "fetch or save it again"
    if not head:
        return "empty", again
    for magic, kind, advice in _KINDS:
        if head.startswith(magic):
            return kind, advice
    if head[_TAR[0] :].startswith(_TAR[1]):
        return "a tar archive", f"unpack it, or if torch wrote it (before 0.2), {_RESAVE}"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        return "a web page, perhaps the error page of a download that failed", again
    if text.startswith((b"{", b"[")):
        return "JSON text, perhaps the error message of a download that failed", again
    return f"of an unknown kind (it begins with {head[:8].hex(' ')})", again


def load_object(data: bytes, subject: str) -> dict[str, Any]:
    """Parses a JSON object in UTF-8.

    Args:
        data: the bytes.
        subject: what they are, for errors.

    Raises:
        CheckpointError: not JSON, not an object, or a key stands twice in an object (the last would win).
    """
    repeated: list[str] = []

    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                repeated.append(key)
            found[key] = value
        return found

    try:
        parsed = parse_json(data.decode("utf-8"), refuse_repeats)
    except ValueError as error:
        raise CheckpointError(f"{subject} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{subject} is not a JSON object but a {type(parsed).__name__}")
    if repeated:
        raise CheckpointError(subject, [f"{key!r} stands twice" for key in sorted(set(repeated))])
    return parsed


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major array."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Tells whether elements lie side by side in row-major order; axes of one element may have any stride."""
    return all(
        n == 1 or stride == wanted for n, stride, wanted in zip(shape, strides, contiguous_strides(shape), strict=True)
    )


def shape_fault(shape: object) -> str | None:
    """Says why `shape`, as found in a file, is no shape that an array can have; None if it is one."""
    if not isinstance(shape, (list, tuple)) or any(type(n) is not int or n < 0 for n in shape):
        return "its shape is not a list of whole numbers"
    if len(shape) > 32 or math.prod(max(n, 1) for n in shape) >= 1 << 56:
        return f"no array can have its shape {list(shape)}"
    return None


def _check_index(info: TensorInfo, index: tuple[slice, ...]) -> list[range]:
    if len(index) > len(info.shape):
        raise ValueError(f"{info.name!r} has {len(info.shape)} axes, but {len(index)} slices were given")
    ranges = [range(*wanted.indices(n)) for wanted, n in zip(index, info.shape, strict=False)]
    if any(wanted.step != 1 for wanted in ranges):
        raise ValueError(f"slices of {info.name!r} must have step 1, got {index}")
    return ranges


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
