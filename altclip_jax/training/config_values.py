"""The values of a run's configuration before they are checked: defaults of a stage, paths of a file, overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from altclip_jax.files.json_file import DEEPEST, parse_toml

# Chen et al. 2022, table 6; what a stage's file does not say.
_STAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "teacher": {
        "steps": 238_620,
        "model": {"train": ["text_model"]},
        "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.1, "warmup_steps": 500, "clip_norm": 1.0},
    },
    "contrastive": {
        "steps": 2_000,
        "model": {"train": ["text_model", "text_projection", "logit_scale"]},
        "optimizer": {"learning_rate": 2e-6, "weight_decay": 0.05, "warmup_steps": 2_000, "clip_norm": 5.0},
    },
}
# An optimizer's own custom where the paper's table, which is of AdamW, does not speak of it.
_OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"weight_decay": 0.0},
    "sgd": {"weight_decay": 0.0, "betas": (0.9, 0.999)},  # the first is the momentum
    "lion": {"betas": (0.9, 0.99)},
    "lamb": {"betas": (0.9, 0.999)},
    "muon": {"betas": (0.9, 0.999)},  # of Adam, for what is no matrix of a layer
}


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values with the defaults of their stage, and of their optimizer, where they say nothing."""
    merged = dict(values)
    for name, default in _STAGE_DEFAULTS.get(str(values.get("stage")), {}).items():
        given = merged.setdefault(name, {} if isinstance(default, Mapping) else default)
        if isinstance(default, Mapping) and isinstance(given, Mapping):
            own = _OPTIMIZER_DEFAULTS.get(str(given.get("name")), {}) if name == "optimizer" else {}
            merged[name] = {**default, **own, **given}
    return merged


def anchor(values: dict[str, Any], folder: Path) -> None:
    """Makes paths that exist beside the file independent of where the command runs."""
    data = values.get("data")
    sources = [
        item for name in ("train", "evaluate") for item in (data.get(name) or [] if isinstance(data, dict) else [])
    ]
    for table, key in [
        (values.get("model"), "source"),
        (values.get("teacher"), "source"),
        *((item, "path") for item in sources),
    ]:
        if isinstance(table, dict) and isinstance(table.get(key), str):
            beside = folder / table[key]
            is_path = key == "path" or beside.exists() or table[key].startswith((".", "/"))
            table[key] = str(beside.resolve()) if is_path else table[key]


def override(values: dict[str, Any], setting: str) -> None:
    """Puts what "key=value" says into the values.

    Raises:
        ValueError: it is not of that form, or there is no such place.
    """
    name, equals, text = setting.partition("=")
    if not equals or not name:
        raise ValueError(f"{setting!r} is not of the form key=value, such as optimizer.learning_rate=1e-3.")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a string that needs no quotes, as on any command line
    except ValueError as error:
        raise ValueError(f"{shown(setting)} is no setting: {error}.") from None
    *parents, last = name.split(".")
    if len(parents) > DEEPEST:
        raise ValueError(f"{shown(setting)} names no setting: it nests more than {DEEPEST} levels deep.")
    try:
        node: Any = values
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        node[int(last) if isinstance(node, list) else last] = value
    except (TypeError, ValueError, IndexError, AttributeError):
        raise ValueError(f"{setting!r} names no setting: there is no place {name} in this file.") from None


def table_of(values: Any, name: str) -> tuple[dict[str, Any], str]:
    """Returns the table that a dotted name lies in, made if need be, and its last part; for null a table of nobody."""
    *parents, last = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if values is None:
            return {}, last
    return values, last


def place(location: Sequence[Any]) -> str:
    """Returns where a fault lies, in front of a sentence that tells it."""
    return ".".join(map(str, location)) + ": " if location else ""


def shown(value: Any) -> str:
    """Returns a value as a sentence quotes it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested values by dotted names."""
    if isinstance(values, Mapping) and values:
        return {name: leaf for key, value in values.items() for name, leaf in flat(value, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): list(values) if isinstance(values, tuple) else values}
