"""The folder in which the library keeps, for one user, what it would otherwise compute again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """Returns `altclip_jax` in $XDG_CACHE_HOME or ~/.cache, whether or not it is there; None without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "altclip_jax"
    except RuntimeError:
        return None
