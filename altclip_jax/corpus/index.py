"""A store's rows of one kind in one file, to be mapped into memory and searched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from altclip_jax.corpus.store import KINDS, Kind, Store
from altclip_jax.data.files import OpenFiles
from altclip_jax.files.json_file import parse_json, read_json_object
from altclip_jax.files.ownership import claim, keep_apart
from altclip_jax.files.staging import Staging

DESCRIPTION = "index.json"


class Index:
    """Rows and what each is of; millions of them, since both stay on disk until they are asked for.

    Attributes:
        folder: Where it is.
        kind: "images" or "texts".
        values: Unit embeddings, mapped from the file.
        told: What the store says of itself.
    """

    def __init__(self, folder: Path, kind: Kind):
        """Opens what `build` has written.

        Raises:
            FileNotFoundError: there is no index of this kind.
            ValueError: its files do not fit.
        """
        path = folder / f"{kind}.{DESCRIPTION}"
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no index of {kind} in {folder}: make one with `altclip index`, of a store that has {kind}."
            )
        self.folder, self.kind, self.told = folder, kind, read_json_object(path)
        self.values: Float[np.ndarray, "rows width"] = np.load(folder / f"{kind}.npy", mmap_mode="r")
        self._offsets: np.ndarray = np.load(folder / f"{kind}.offsets.npy", mmap_mode="r")
        self._files = OpenFiles()
        if len(self._offsets) != len(self.values) + 1:
            raise ValueError(f"{path} and the files beside it do not fit: make the index again with `altclip index`.")

    def __len__(self) -> int:
        return len(self.values)

    def of(self, row: int) -> dict[str, Any]:
        """Returns what a row is of: its item, id, and a caption's text and language."""
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        path = self.folder / f"{self.kind}.jsonl"
        try:
            line: dict[str, Any] = parse_json(self._files.read(path, start, end - start))
        except ValueError as error:
            raise ValueError(f"row {row} of {path} is damaged ({error}): make the index again.") from None
        return line


def build(store: Store, folder: Path) -> dict[Kind, int]:
    """Joins the parts of a store, each kind in files that replace older ones whole; returns the number of rows.

    Raises:
        FileExistsError: the folder holds something else than an index.
        ValueError: parts are missing, there are no rows, or the store lies in the folder.
        OSError: the folder cannot be written.
    """
    missing = store.missing()
    if missing:
        raise ValueError(
            f"{store.folder} lacks {len(missing)} of {store.parts} parts: finish it first, with `altclip embed"
            " --resume`."
        )
    total = store.total()
    rows: dict[Kind, int] = {kind: getattr(total, kind) for kind in KINDS if getattr(total, kind)}
    if not rows:
        raise ValueError(f"{store.folder} holds no embeddings: nothing in it could be read.")
    keep_apart([store.folder], folder)
    claim(folder, "index")
    for kind, count in rows.items():
        offsets = [0]
        with Staging(folder) as staging:
            staging.add(f"{kind}.npy", _joined(store, kind, count))
            staging.add(f"{kind}.jsonl", _lines(store, kind, offsets))
            staging.add(f"{kind}.offsets.npy", _array(np.array(offsets, np.int64)))
            told = {"model": store.description.model, "fingerprint": store.description.fingerprint, "rows": count}
            staging.add(f"{kind}.{DESCRIPTION}", [(json.dumps(told, ensure_ascii=False) + "\n").encode()])
            staging.install()
    return rows


def _joined(store: Store, kind: Kind, count: int) -> Iterator[bytes | memoryview]:
    dtype = np.dtype(store.description.stored)
    yield _header(dtype, (count, store.description.width))
    for part in range(store.parts):
        yield np.ascontiguousarray(store.values(part, kind)).reshape(-1).view(np.uint8).data


def _lines(store: Store, kind: Kind, offsets: list[int]) -> Iterator[bytes]:
    for part in range(store.parts):
        if getattr(store.counts(part), kind):
            data = store.lines(part, kind)
            ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
            offsets += (ends + offsets[-1]).tolist()
            yield data


def _array(values: np.ndarray) -> Iterator[bytes | memoryview]:
    yield _header(values.dtype, values.shape)
    yield values.view(np.uint8).data


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    import io

    file = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()
