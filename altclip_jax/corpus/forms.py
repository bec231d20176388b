"""The files in which a part keeps its rows of one kind, and what each row is of."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

FORMS = ("npy", "safetensors", "parquet")
_COLUMNS = ("item", "id", "text", "language")


class Rows(NamedTuple):
    """Embeddings, and what each row is of."""

    values: Float[np.ndarray, "rows width"]
    of: Sequence[Mapping[str, Any]]


def names_of(stem: str, form: str) -> tuple[str, ...]:
    """Returns the names of the files that `files_of` yields."""
    return (f"{stem}.parquet",) if form == "parquet" else (f"{stem}.{form}", f"{stem}.jsonl")


def files_of(stem: str, rows: Rows, form: str) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Yields the names and contents of files with at least one row; the names begin with `stem`."""
    names = names_of(stem, form)
    if form == "parquet":
        yield names[0], [_parquet_bytes(rows)]
        return
    yield names[0], [_array_bytes(rows.values, form)]
    yield names[1], json_lines(rows.of)


def values_in(folder: Path, stem: str, form: str) -> Float[np.ndarray, "rows width"]:
    """Returns the embeddings, mapped from the file where the form allows it."""
    path = folder / f"{stem}.{form}"
    if form == "npy":
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped
    if form == "safetensors":
        from safetensors.numpy import load_file

        loaded: np.ndarray = load_file(path)["embeddings"]
        return loaded
    column = _parquet(path, ["embedding"]).column("embedding").combine_chunks()
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1)


def lines_in(folder: Path, stem: str, form: str) -> bytes:
    """Returns a line of JSON for each row."""
    if form != "parquet":
        return (folder / f"{stem}.jsonl").read_bytes()
    table = _parquet(folder / f"{stem}.parquet", None).drop_columns(["embedding"])
    rows = ({name: value for name, value in row.items() if value is not None} for row in table.to_pylist())
    return b"".join(json_lines(rows))


def json_lines(values: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Yields a line of JSON for each value; names that are not UTF-8 are escaped, and come back as they were."""
    for value in values:
        try:
            line = json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            line = json.dumps(value).encode()
        yield line + b"\n"


def require(form: str) -> None:
    """Checks that a form can be written here.

    Raises:
        ValueError: it is unknown, or parquet without pyarrow.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is not one of {', '.join(FORMS)}.")
    if form == "parquet":
        _pyarrow()


def _array_bytes(values: np.ndarray, form: str) -> bytes:
    if form == "safetensors":
        from safetensors.numpy import save

        data: bytes = save({"embeddings": np.ascontiguousarray(values)})
        return data
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _parquet_bytes(rows: Rows) -> bytes:
    r"""Returns columns item, id, perhaps text and language, and embedding: a list of fixed length.

    A name that is not UTF-8 has \udcXX for a byte that is not.
    """
    arrow, parquet = _pyarrow()
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        if any(name in row for row in rows.of):
            values = [row.get(name) for row in rows.of]
            columns[name] = [_utf8(value) for value in values] if name != "item" else values
    flat = arrow.array(np.ascontiguousarray(rows.values).reshape(-1))
    columns["embedding"] = arrow.FixedSizeListArray.from_arrays(flat, rows.values.shape[1])
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(columns), buffer)
    return buffer.getvalue()


def _utf8(value: str | None) -> str | None:
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()


def _parquet(path: Path, columns: list[str] | None) -> Any:
    return _pyarrow()[1].read_table(path, columns=columns)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install 'altclip-jax[parquet]', or choose another form.") from None
    return pyarrow, parquet
