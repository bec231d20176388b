"""Arrays in few bits: how scales, zero points and codes are chosen, in numpy and PyTorch's layout: rows are outputs.

With `search=False` it is what torchao does. The search tries narrower ranges, which clip what lies outside them, and
in int4 then fits scale and zero point to the codes by least squares; of all that it tries, each row or group keeps what
has the smallest squared error, so it is never worse than plain min-max.

Source: torchao 0.18, choose_qparams_affine (symmetric, int8) and its tinygemm form (asymmetric, int4, with a float
zero point).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float, Float32, Int8, UInt8
from numpy.typing import NDArray

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.machine import aligned_empty
from altclip_jax.quantization.narrowing import NarrowingError, narrow
from altclip_jax.quantization.rules import Form

SCALE_DTYPES = {"int8": np.dtype(np.float32), "int4": np.dtype(ml_dtypes.bfloat16)}
_INT8_RANGES = (1.0, 0.995, 0.98, 0.95, 0.9, 0.8)  # of the largest magnitude
_INT4_RANGES = (1.0, 0.9, 0.8, 0.7)  # about the middle of a group
_INT4_FITS = 2
_INT8_EPSILON = float(np.finfo(np.float32).eps)  # the smallest scales
_INT4_EPSILON = 1e-6
READ_ELEMENTS = 1 << 20  # of a tensor, at a time
_BLOCK_ELEMENTS = 1 << 14  # in which codes are searched: what a core's cache holds

Read = Callable[..., NDArray[Any]]  # takes slices, or nothing for the whole tensor


class Int8Codes(NamedTuple):
    """codes * scales is about the array."""

    codes: Int8[np.ndarray, "rows inputs"]
    scales: Float32[np.ndarray, "rows 1"]


class Int4Codes(NamedTuple):
    """(codes - 8) * scales + zero_points is about the array, group by group."""

    codes: UInt8[np.ndarray, "rows inputs"]  # 0 to 15, one in a byte
    scales: Float[np.ndarray, "rows groups"]
    zero_points: Float[np.ndarray, "rows groups"]


def quantize_tensor(read: Read, shape: tuple[int, ...], form: Form, subject: str) -> dict[str, NDArray[Any]]:
    """Returns the parts of a quantized parameter, each in PyTorch's layout.

    Args:
        read: Gives a part of the tensor.
        shape: Shape of the tensor.
        form: How it is to be stored.
        subject: What an error message calls it.

    Raises:
        CheckpointError: it holds values that are not finite.
        NarrowingError: its values are too large for its scales.
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
        for block in slices(len(values), max(1, _BLOCK_ELEMENTS // width)):
            where = slice(rows.start + block.start, rows.start + block.stop)
            with np.errstate(over="ignore", invalid="ignore"):
                found = _encode(values[block], form)
            for name, part in found.items():
                made[name][where] = part

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(encode, slices(outputs, max(1, READ_ELEMENTS // width))))
    if not all(np.isfinite(part).all() for name, part in made.items() if name != "codes"):
        raise NarrowingError(f"holds numbers too large for {form.scheme}, whose scales are {made['scales'].dtype}")
    if form.scheme == "int8":  # scales have as many axes as the codes
        made["codes"] = made["codes"].reshape(shape)
        made["scales"] = made["scales"].reshape(outputs, *(1 for _ in tail))
    return made


def _encode(values: NDArray[Any], form: Form) -> dict[str, NDArray[Any]]:
    if form.scheme == "int8":
        return int8_codes(values)._asdict()
    found = int4_codes(values, form.group_size)
    return found._replace(codes=pack(found.codes))._asdict()


def int8_codes(values: Float32[np.ndarray, "rows inputs"], *, search: bool = True) -> Int8Codes:
    """Symmetric int8 with one scale for each row."""
    largest = np.abs(values).max(axis=1, keepdims=True)
    best = _Best()
    for part in _INT8_RANGES if search else (1.0,):
        scales = np.maximum(largest * np.float32(part / 127.5), np.float32(_INT8_EPSILON))
        codes = np.clip(np.rint(values / scales), -128, 127)
        best.offer(np.square(codes * scales - values).sum(axis=1), codes, scales)
    codes, scales = best.kept
    return Int8Codes(codes.astype(np.int8), scales)


def int4_codes(
    values: Float32[np.ndarray, "rows inputs"],
    group_size: int,
    *,
    search: bool = True,
    scale_dtype: Any = SCALE_DTYPES["int4"],
) -> Int4Codes:
    """Asymmetric int4 with a scale and a zero point, the value of code 8, for each group of neighbours in a row."""
    rows, width = values.shape
    groups = values.reshape(-1, group_size)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    best = _Best()
    for part in _INT4_RANGES if search else (1.0,):
        cut = (high - low) * np.float32((1 - part) / 2)
        scales = np.maximum((high - low - 2 * cut) / 15, np.float32(_INT4_EPSILON))
        _offer_int4(best, groups, scales, low + cut + 8 * scales, scale_dtype)
    for _ in range(_INT4_FITS if search else 0):
        _offer_int4(best, groups, *_fit(groups, *best.kept), scale_dtype)
    codes, scales, zero_points = best.kept
    shape = (rows, width // group_size)
    return Int4Codes(
        codes.astype(np.uint8).reshape(rows, width),
        scales.astype(scale_dtype).reshape(shape),
        zero_points.astype(scale_dtype).reshape(shape),
    )


def pack(codes: UInt8[np.ndarray, "rows inputs"]) -> UInt8[np.ndarray, "rows pairs"]:
    """Puts two codes into a byte, the first of them into its low four bits."""
    packed: NDArray[np.uint8] = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return packed


class _Best:
    """Keeps for each row, of all codes, scales (and zero points) that are offered, those with the smallest error."""

    kept: tuple[NDArray[Any], ...]

    def __init__(self) -> None:
        self._errors: NDArray[Any] | None = None

    def offer(self, errors: Float32[np.ndarray, " rows"], *found: NDArray[Any]) -> None:
        if self._errors is None:
            self._errors, self.kept = errors, found
            return
        better = np.flatnonzero(errors < self._errors)
        self._errors[better] = errors[better]
        for old, new in zip(self.kept, found, strict=True):
            old[better] = new[better]


def _offer_int4(
    best: _Best, groups: NDArray[Any], scales: NDArray[Any], zero_points: NDArray[Any], scale_dtype: Any
) -> None:
    # codes are chosen for the scales as they are stored
    scales, zero_points = (part.astype(scale_dtype).astype(np.float32) for part in (scales, zero_points))
    codes = groups - zero_points
    codes /= scales
    np.rint(codes, out=codes)
    np.clip(codes, -8, 7, out=codes)
    back = codes * scales
    back += zero_points
    back -= groups
    codes += 8
    best.offer(np.einsum("gi,gi->g", back, back), codes, scales, zero_points)


def _fit(
    groups: NDArray[Any], codes: NDArray[Any], scales: NDArray[Any], zero_points: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the scales and zero points that reproduce the groups best with these codes."""
    steps = codes - 8
    mean, mean_step = groups.mean(axis=1, keepdims=True), steps.mean(axis=1, keepdims=True)
    spread = np.square(steps - mean_step).sum(axis=1, keepdims=True)
    together = ((steps - mean_step) * (groups - mean)).sum(axis=1, keepdims=True)
    fitted = np.where(spread > 0, together / np.maximum(spread, 1), scales)
    fitted = np.maximum(fitted, np.float32(_INT4_EPSILON))
    return fitted, mean - fitted * mean_step


def slices(length: int, step: int) -> Iterator[slice]:
    """Returns slices of a length, which follow one another."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
