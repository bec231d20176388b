"""Features that a run computes once: of a locked image tower, or of the teacher."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from altclip_jax.staging import Staging, refusals_explained

Rows = Float32[np.ndarray, "rows width"]
Pieces = Iterable[tuple[Int64[np.ndarray, " piece"], np.ndarray]]


def computed_once(path: Path, rows: int, compute: Callable[[], Pieces]) -> Rows:
    """Returns the features in a file, which is made first if it is not there or holds another number of them.

    Args:
        path: An .npy file.
        rows: How many there are; what `compute` does not give becomes NaN.
        compute: Gives (ids, features) piece by piece.

    Raises:
        OSError: the file cannot be written.
    """
    if path.is_file():
        stored: np.ndarray = np.load(path, mmap_mode="r")
        if len(stored) == rows:
            return stored
    table: np.ndarray | None = None
    for ids, values in compute():
        if table is None:
            table = np.full((rows, values.shape[1]), np.nan, np.float32)
        table[ids] = values
    if table is None:
        raise ValueError(f"There is nothing to compute {path.name} of: no sample could be read.")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(table))
    with refusals_explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with Staging(path.parent) as staging:
        staging.add(path.name, [header.getvalue(), table.reshape(-1).view(np.uint8).data])
        staging.install()
    return table


def missing(features: Rows) -> frozenset[int]:
    """Returns the ids without features."""
    return frozenset(np.flatnonzero(np.isnan(features[:, 0])).tolist())
