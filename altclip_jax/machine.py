"""What this computer is, as far as compiled programs depend on it."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from pathlib import Path


def processor() -> str:
    """Returns a short name for what this processor can do: equal names, equal instructions."""
    flags = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    told = f"{platform.machine()} {platform.processor()} {flags}"
    return f"{platform.machine() or 'unknown'}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
