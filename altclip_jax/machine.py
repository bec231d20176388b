"""What this computer is, as far as compiled programs depend on it, and which of its devices is meant."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


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
