"""Finite numbers that a narrower dtype makes infinite: refused, and never stored so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from altclip_jax.files.checkpoint_folder import CheckpointError


class NarrowingError(ValueError):
    """An array does not fit into a dtype; the message is the end of a sentence that begins with its name."""


def narrow(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns an array in a dtype; the same array if it has that dtype.

    Raises:
        NarrowingError: a finite number of it would be infinite.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    if array.size and reaches_further(array.dtype, dtype):
        most = largest_number(dtype)
        # two fast passes, which leave little to look at: NaN, infinity, and what is rounded to the largest number
        if not (array.min() >= -most and array.max() <= most):
            lost = array[np.isfinite(array) & np.isinf(made)]
            if lost.size:
                raise NarrowingError(too_large(float(np.abs(lost).max()), dtype))
    return made


def reaches_further(dtype: Any, other: Any) -> bool:
    """Tells whether both are dtypes of floats and the first holds larger numbers."""
    both = [np.dtype(dtype), np.dtype(other)]
    return all(kind.kind in "fV" for kind in both) and largest_number(both[0]) > largest_number(both[1])


def too_large(value: float, dtype: Any) -> str:
    """Says that a dtype has no such number, as the end of a sentence."""
    wider = [name for name in ("bfloat16", "float32") if reaches_further(name, dtype)]
    reach = f" ({' and '.join(wider)} reach{'' if wider[1:] else 'es'} further)" if wider else ""
    return f"holds {value:.6g}, and {np.dtype(dtype).name} ends at {largest_number(dtype):.6g}{reach}"


def refuse_infinite(subject: str, faults: Sequence[str]) -> None:
    """Raises CheckpointError if there are faults, which say what of `subject` does not fit."""
    if faults:
        raise CheckpointError(f"{subject} would have infinite numbers", faults)


def largest_number(dtype: Any) -> float:
    """Returns the largest number of a dtype of floats."""
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
