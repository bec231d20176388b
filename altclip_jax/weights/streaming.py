"""A tensor of a file to the dtype or the few bits of its parameter, a block of rows at a time.

No more of it is held in the dtype of the file than a block: a float32 checkpoint becomes a bfloat16 or a quantized
model without ever being a float32 model. Rows are the first axis in PyTorch's layout, which is the output.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altclip_jax.weights import rules
from altclip_jax.weights.codes import SCALE_DTYPES, int4_codes, int8_codes, pack
from altclip_jax.weights.narrowing import NarrowingError, narrow
from altclip_jax.weights.quantization import Form
from altclip_jax.weights.stored import CheckpointError, TensorInfo, aligned_empty

Read = Callable[..., NDArray[Any]]  # takes slices, or nothing for the whole tensor
_READ_ELEMENTS = 1 << 20  # of a tensor, at a time
_BLOCK_ELEMENTS = 1 << 14  # in which codes are searched: what a core's cache holds


def converted_tensor(read: Read, info: TensorInfo, transform: rules.Transform, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns a parameter in a dtype, in our layout."""
    if info.dtype == dtype or math.prod(info.shape) <= _READ_ELEMENTS:
        return rules.to_param(read(), transform, dtype)
    out = aligned_empty(rules.param_shape(info.shape, transform), dtype)
    axis = rules.output_axis(transform)
    for rows in _slices(info.shape[0], max(1, _READ_ELEMENTS // math.prod(info.shape[1:]))):
        where = (*(slice(None) for _ in range(axis % out.ndim)), rows)
        out[where] = rules.to_param(read((rows,)), transform, dtype)
    return out


def quantized_tensor(read: Read, shape: tuple[int, ...], form: Form, subject: str) -> dict[str, NDArray[Any]]:
    """Returns the parts of a quantized parameter, each in PyTorch's layout.

    Args:
        read: Gives a part of the tensor.
        shape: Of the tensor.
        form: How it is stored.
        subject: What an error message calls it.

    Raises:
        CheckpointError: it holds values that are not finite.
        NarrowingError: what it is stored as has no place for its values.
    """
    outputs, tail = shape[0], shape[1:]
    width = math.prod(tail)
    if form.scheme == "int8":
        sizes: dict[str, tuple[int, Any]] = {"codes": (width, np.dtype(np.int8)), "scales": (1, SCALE_DTYPES["int8"])}
    else:
        group = (width // form.group_size, SCALE_DTYPES["int4"])
        sizes = {"codes": (width // 2, np.dtype(np.uint8)), "scales": group, "zero_points": group}
    made = {name: aligned_empty((outputs, size), dtype) for name, (size, dtype) in sizes.items()}

    def encode(rows: slice) -> None:
        values = narrow(read((rows,)).reshape(-1, width), np.dtype(np.float32))
        if not np.isfinite(values).all():
            raise CheckpointError(f"{subject} holds values that are not finite, which cannot be quantized")
        for block in _slices(len(values), max(1, _BLOCK_ELEMENTS // width)):
            where = slice(rows.start + block.start, rows.start + block.stop)
            with np.errstate(over="ignore", invalid="ignore"):
                found = _encoded(values[block], form)
            for name, part in found.items():
                made[name][where] = part

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(encode, _slices(outputs, max(1, _READ_ELEMENTS // width))))
    if not all(np.isfinite(part).all() for name, part in made.items() if name != "codes"):
        raise NarrowingError(f"holds numbers too large for {form.scheme}, whose scales are {made['scales'].dtype}")
    if form.scheme == "int8":  # scales have as many axes as the codes
        made["codes"] = made["codes"].reshape(shape)
        made["scales"] = made["scales"].reshape(outputs, *(1 for _ in tail))
    return made


def _encoded(values: NDArray[Any], form: Form) -> dict[str, NDArray[Any]]:
    if form.scheme == "int8":
        return int8_codes(values)._asdict()
    found = int4_codes(values, form.group_size)
    return found._replace(codes=pack(found.codes))._asdict()


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
