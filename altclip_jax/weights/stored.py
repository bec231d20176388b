"""Tensors that lie in a file: what is known of each, and how its bytes become an array."""

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
from altclip_jax.machine import aligned_empty

# What describes tensors (a header, an index, a pickle) is parsed in memory, where it may grow a hundredfold.
# The largest AltCLIP needs 0.12 MB; the bound keeps a hostile file from filling the memory of its reader.
MAX_CATALOGUE_BYTES = 8 << 20

_SCRATCH_BYTES = 16 << 20  # what is read at a time where the wanted elements do not lie side by side
_SHORTEST_RUN = 64  # bytes side by side that are worth a reading of their own


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
        """Close the file; arrays that were read stay valid."""
        self._file.close()

    def fileno(self) -> int:
        """Descriptor of the open file."""
        return self._file.fileno()

    def read_bytes(self, begin: int, count: int) -> bytes:
        """Read bytes [begin, begin + count); the caller has checked that `count` is no wild claim."""
        buffer = bytearray(count)
        self._read_into(memoryview(buffer), begin)
        return bytes(buffer)

    def read(self, tensor: StoredTensor, index: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Read a tensor, or the box of it that `index` names, into a new contiguous aligned array.

        Args:
            tensor: one of this file.
            index: slices of step 1 for the first axes; the others are read whole.
        """
        begin, shape = tensor.begin, list(tensor.info.shape)
        for axis, wanted in enumerate(_checked_index(tensor.info, index)):
            begin += wanted.start * tensor.strides[axis] * tensor.info.dtype.itemsize
            shape[axis] = len(wanted)
        out = aligned_empty(shape, tensor.info.dtype)
        if out.size and is_contiguous(shape, tensor.strides):
            self._read_into(_bytes_of(out), begin)
        elif out.size and not self._read_runs(out, begin, tensor.strides):
            self._gather(out, begin, tensor.strides)
        return out

    def _read_runs(self, out: NDArray[Any], begin: int, strides: Sequence[int]) -> bool:
        """Read all that lies side by side at a time, and nothing between; tell whether that is worth it."""
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


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major array."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements lie side by side in row-major order; axes of one element may have any stride."""
    return all(
        n == 1 or stride == wanted for n, stride, wanted in zip(shape, strides, contiguous_strides(shape), strict=True)
    )


def shape_fault(shape: object) -> str | None:
    """Say why `shape`, as found in a file, is no shape that an array can have; None if it is one."""
    if not isinstance(shape, (list, tuple)) or any(type(n) is not int or n < 0 for n in shape):
        return "its shape is not a list of whole numbers"
    if len(shape) > 32 or math.prod(max(n, 1) for n in shape) >= 1 << 56:
        return f"no array can have its shape {list(shape)}"
    return None


def _checked_index(info: TensorInfo, index: tuple[slice, ...]) -> list[range]:
    if len(index) > len(info.shape):
        raise ValueError(f"{info.name!r} has {len(info.shape)} axes, but {len(index)} slices were given")
    ranges = [range(*wanted.indices(n)) for wanted, n in zip(index, info.shape, strict=False)]
    if any(wanted.step != 1 for wanted in ranges):
        raise ValueError(f"slices of {info.name!r} must have step 1, got {index}")
    return ranges


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
