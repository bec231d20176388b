"""JSON and TOML from outside, read with a sentence when it fails; JSON of ours, written whole or not at all."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from altclip_jax.files.staging import Staging, refusals_explained

DEEPEST = 100  # levels of brackets; the deepest of the files that we ship, a tokenizer.json, has five


def parse_json(data: str | bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Returns what JSON says; `hook` makes what stands for an object of its pairs.

    Raises:
        ValueError: it is none, is not UTF-8, or nests so deep that code which follows it down would fail.
    """

    def count(bracket: str) -> int:
        return data.count(bracket) if isinstance(data, str) else data.count(bracket.encode())

    parsed = _unless_too_deep(lambda: json.loads(data, object_pairs_hook=hook))
    if count("[") + count("{") > DEEPEST:  # counted fast, where most lines of a data set end
        _refuse_deep(parsed)
    return parsed


def parse_toml(text: str) -> dict[str, Any]:
    """Returns what TOML says.

    Raises:
        ValueError: it nests too deep; otherwise, as a tomllib.TOMLDecodeError, it is none.
    """
    parsed: dict[str, Any] = _unless_too_deep(lambda: tomllib.loads(text))
    _refuse_deep(parsed)
    return parsed


def _unless_too_deep(parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def _refuse_deep(parsed: Any) -> None:
    level = [parsed] if isinstance(parsed, (dict, list)) else []
    for _ in range(DEEPEST):
        below = (item for value in level for item in (value.values() if isinstance(value, dict) else value))
        level = [item for item in below if isinstance(item, (dict, list))]
    if level:
        raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"it nests more than {DEEPEST} levels deep"


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else; the message names the file.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no {path.name} in {path.parent}: expected the folder of a checkpoint, as transformers'"
            " save_pretrained writes it."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__}, expected an object.")  # noqa: TRY004
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file; what stood there is replaced when the new one is safely on disk."""
    write_bytes(path, json_bytes(values))


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Returns the content of a JSON file."""
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, making its folder if need be."""
    with refusals_explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with Staging(path.parent) as staging:
        staging.add(path.name, [data])
        staging.install()
