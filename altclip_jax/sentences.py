"""Pieces of the sentences that errors are: some of many names or lines, and how many there are beside."""

from __future__ import annotations

from collections.abc import Sequence


def list_some(names: Sequence[object], most: int = 10) -> str:
    """Returns the first names, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def some_lines(lines: Sequence[str], most: int = 20) -> list[str]:
    """Returns the first lines, and one that says how many more there are."""
    return [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]
