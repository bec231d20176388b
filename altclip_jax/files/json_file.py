"""The small JSON files beside the weights: read with a sentence when it fails, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altclip_jax.files.staging import Staging, refusals_explained


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else; the message names the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
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
    write_bytes(path, (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, making its folder if need be."""
    with refusals_explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with Staging(path.parent) as staging:
        staging.add(path.name, [data])
        staging.install()
