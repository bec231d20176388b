"""How often the right item is among the first few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

_BLOCK = 1024


def recall(
    queries: Float[np.ndarray, "queries width"],
    items: Float[np.ndarray, "items width"],
    right: Int[np.ndarray, " queries"],
    at: Sequence[int] = (1, 5, 10),
) -> dict[int, float]:
    """Returns {k: share of queries whose right item is among the k of the largest product}.

    An item that scores as the right one does counts as before it, so that equal embeddings, or NaN, are no success.

    Args:
        queries: One row per query.
        items: One row per item, of the same width.
        right: The index of each query's item.
        at: The values of k.
    """
    ranks = np.concatenate(
        [
            _ranks(queries[start : start + _BLOCK], items, right[start : start + _BLOCK])
            for start in range(0, len(queries), _BLOCK)
        ]
        or [np.zeros(0, np.int64)]
    )
    return {k: float(np.mean(ranks < k)) if len(ranks) else float("nan") for k in at}


def chance(items: int, at: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Returns {k: recall of guessing} among `items`."""
    return {k: min(k / items, 1.0) for k in at}


def _ranks(queries: np.ndarray, items: np.ndarray, right: np.ndarray) -> np.ndarray:
    scores = queries @ items.T
    own = scores[np.arange(len(queries)), right]
    ranks: np.ndarray = np.sum(~(scores < own[:, None]), axis=1) - 1  # so that NaN is no success either
    return ranks
