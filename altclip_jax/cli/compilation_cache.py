"""What the command compiled, kept for the next time: the first answer of a large model comes in seconds."""

from __future__ import annotations

import os
from pathlib import Path

from altclip_jax.files.user_cache import user_cache
from altclip_jax.machine import processor

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
    cache = Path(said) if said else user_cache()
    if cache is None:
        return
    folder = (cache if said else cache / "compiled") / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # no home, or one that cannot be written: everything works without
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
