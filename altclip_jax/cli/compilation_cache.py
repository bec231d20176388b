"""What the command compiled, kept for the next time: the first answer of a large model comes in seconds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from pathlib import Path

SWITCH = "ALTCLIP_COMPILATION_CACHE"


def keep_compiled_programs() -> None:
    """Tells jax, before it is imported, in which folder it keeps compiled programs.

    That is what the environment's ALTCLIP_COMPILATION_CACHE says ("off": nowhere), or jax's own
    JAX_COMPILATION_CACHE_DIR, or a folder in the user's cache; one for each kind of processor, since programs for CPUs
    use the instructions of the one they were compiled on.
    """
    said = os.environ.get(SWITCH)
    if said == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path(said) if said else cache / "altclip_jax" / "compiled") / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # no home, or one that cannot be written: everything works without
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def _processor() -> str:
    """Returns a short name for what this processor can do."""
    flags = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    told = f"{platform.machine()} {platform.processor()} {flags}"
    return f"{platform.machine() or 'unknown'}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
