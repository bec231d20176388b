"""What this computer is, as far as compiled programs depend on it, and which of its devices is meant."""

from __future__ import annotations

import contextlib
import hashlib
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    import numpy as np
    from numpy.typing import NDArray

_ALIGNMENT = 64  # bytes: from here on jax adopts a host array on CPU without copying it


def processor() -> str:
    """Returns a short name for what this processor can do: equal names, equal instructions."""
    flags = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    told = f"{platform.machine()} {platform.processor()} {flags}"
    return f"{platform.machine() or 'unknown'}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def default_device() -> jax.Device:
    """Returns the device on which jax puts what nobody has placed: of `jax.default_device`, if the user said one."""
    import jax

    (device,) = jax.device_put(0).devices()
    return device


def aligned_empty(shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns an uninitialised contiguous array whose memory begins at a multiple of 64 bytes."""
    import numpy as np

    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)
