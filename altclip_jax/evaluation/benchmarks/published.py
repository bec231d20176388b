"""Published numbers, as data."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altclip_jax.files.json_file import parse_toml

_FILE = Path(__file__).with_name("published.toml")
_OURS = ("AltCLIP", "AltCLIP-m9")  # the models that a run is compared with


@dataclass(frozen=True)
class Table:
    """A row of columns for each model.

    Attributes:
        benchmark: As in `suite`.
        language: Of its texts.
        source: Where the numbers were published.
        models: By model, {metric: value in %}.
    """

    benchmark: str
    language: str
    source: str
    models: Mapping[str, Mapping[str, float]]


@functools.cache
def _file() -> dict[str, Any]:
    return parse_toml(_FILE.read_text(encoding="utf-8"))


def pictures_of(benchmark: str) -> int | None:
    """Returns how many pictures a benchmark has; None if nothing was published for it."""
    count: int | None = _file()["pictures"].get(benchmark)
    return count


def published() -> tuple[Table, ...]:
    """Returns all tables."""
    values = _file()
    return tuple(
        Table(
            table["benchmark"],
            table["language"],
            values["sources"][table["source"]],
            {model: dict(zip(table["columns"], row, strict=True)) for model, row in table["models"].items()},
        )
        for table in values["table"]
    )


@dataclass(frozen=True)
class Reference:
    """What was published for AltCLIP on a benchmark in a language.

    Attributes:
        model: Which AltCLIP; "" if none was.
        values: {metric: value in %}.
        sources: Where each of them was published.
    """

    model: str
    values: Mapping[str, float]
    sources: Mapping[str, str]


def reference(benchmark: str, language: str) -> Reference:
    """Returns the numbers of AltCLIP; where two sources have one, that of the first in the file."""
    model = ""
    values: dict[str, float] = {}
    sources: dict[str, str] = {}
    for table in published():
        name = next((name for name in _OURS if name in table.models), None)
        if (table.benchmark, table.language) == (benchmark, language) and name is not None:
            model = model or name
            for metric, value in table.models[name].items():
                values.setdefault(metric, value)
                sources.setdefault(metric, table.source)
    return Reference(model, values, sources)
