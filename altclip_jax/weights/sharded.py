"""A parameter out of its file straight onto the devices that keep it; each process reads what its own devices keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Sharding
from numpy.typing import NDArray

from altclip_jax.weights import rules

Box = tuple[tuple[int, int], ...]  # for each axis, where a part of an array begins and ends
_TOGETHER_BYTES = 64 << 20  # pieces of a tensor that take no more are cut out of one reading


def read_sharded(
    read: Callable[[tuple[slice, ...]], NDArray[Any]],
    shape: tuple[int, ...],
    transform: rules.Transform,
    dtype: np.dtype[Any],
    sharding: Sharding,
) -> Array:
    """Reads a parameter piece by piece; the host holds one piece of it at a time, or 64 MiB.

    Args:
        read: Gives a part of the tensor, in PyTorch's layout.
        shape: Of the parameter.
        transform: From PyTorch's layout.
        dtype: Of the parameter.
        sharding: Which device keeps which piece. A piece that several devices of this process keep is read once.
    """
    owners: dict[Box, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        owners.setdefault(_box(index, shape), []).append(device)
    arrays: list[Array] = []
    for whole, pieces in _readings(list(owners), dtype.itemsize):
        found = read(rules.torch_index(_slices(whole), transform))
        for piece in pieces:
            part: Any = (*rules.torch_index(_slices(piece, whole), transform), ...)  # which keeps a scalar an array
            made = rules.to_param(found[part], transform, dtype)
            arrays += [jax.device_put(made, device) for device in owners[piece]]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def _readings(pieces: Sequence[Box], itemsize: int) -> list[tuple[Box, Sequence[Box]]]:
    """Returns what is read at a time, with the pieces in it.

    Neighbours share the rows of the file: read one by one, each would take as many system calls as all of them.
    """
    if not pieces:
        return []
    ranges = [[piece[axis] for piece in pieces] for axis in range(len(pieces[0]))]
    whole = tuple((min(begin for begin, _ in axis), max(end for _, end in axis)) for axis in ranges)
    size = _size(whole)
    if size == sum(map(_size, pieces)) and size * itemsize <= _TOGETHER_BYTES:
        return [(whole, pieces)]
    return [(piece, [piece]) for piece in pieces]


def _box(index: Sequence[slice], shape: Sequence[int]) -> Box:
    return tuple(wanted.indices(size)[:2] for wanted, size in zip(index, shape, strict=True))


def _slices(box: Box, within: Box | None = None) -> tuple[slice, ...]:
    within = within or ((0, 0),) * len(box)
    return tuple(slice(begin - first, end - first) for (begin, end), (first, _) in zip(box, within, strict=True))


def _size(box: Box) -> int:
    return math.prod(end - begin for begin, end in box)
