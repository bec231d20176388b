"""Exact search: every row is compared, in blocks that the device takes one after the other.

What is found is decided in float64: the score of a row is the sum of its products with the query, and of equal scores
the row that comes first wins. The device, in float32, only chooses candidates, and as many as are needed to be certain
that no other row can be among the first k: its scores are off by at most `width` roundings.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

_BLOCK = 65_536  # rows that the device has at once
_SPARE = 16  # candidates beyond k that are asked for at first
_QUERIES = 512  # that are compared at once: their scores of a block are 128 MiB
_EXACT_AT_ONCE = 8192  # rows that are copied as float64


class Hits(NamedTuple):
    """The best rows for each query, best first."""

    rows: Int[np.ndarray, "queries k"]
    scores: Float[np.ndarray, "queries k"]


def search(
    values: Float[np.ndarray, "rows width"], queries: Float[np.ndarray, "queries width"], k: int, *, block: int = _BLOCK
) -> Hits:
    """Returns the k rows with the largest scores for each query, or all if they are fewer.

    Args:
        values: Unit rows, perhaps mapped from a file; float32 or float16. One with NaN is behind all others.
        queries: Of the same width.
        k: At least 1.
        block: Rows that are compared at once.

    Raises:
        ValueError: k is less than 1, or the widths differ.
    """
    check_question(values, queries, k)
    total = len(values)
    k, block = min(k, total), min(block, max(total, 1))
    found = Hits(np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float64))
    for start in range(0, len(queries) if k else 0, _QUERIES):
        some = slice(start, start + _QUERIES)
        _search(values, queries[some], Hits(found.rows[some], found.scores[some]), block)
    return found


def check_question(values: np.ndarray, queries: np.ndarray, k: int) -> None:
    """Raises ValueError where k is less than 1, or queries and rows have other widths."""
    if k < 1:
        raise ValueError(f"k={k} must be at least 1.")
    if values.shape[1] != queries.shape[1]:
        raise ValueError(f"The queries have {queries.shape[1]} numbers each and the rows {values.shape[1]}.")


def _search(values: np.ndarray, queries: np.ndarray, found: Hits, block: int) -> None:
    """Fills in the hits of some queries."""
    total, k = len(values), found.rows.shape[1]
    waiting = np.arange(len(queries))
    wanted = min(k + _SPARE, total)
    while waiting.size:
        scores, rows = _candidates(values, queries[waiting], wanted, block)
        still = []
        for place, near, candidates in zip(waiting.tolist(), scores, rows, strict=True):
            best, exact = ranked(values, queries[place], candidates)
            found.rows[place], found.scores[place] = best[:k], exact[:k]
            # what the device left out has, exactly, at most the least score it kept and its error
            if wanted < total and near[-1] + _error(values, queries[place]) >= exact[k - 1]:
                still.append(place)
        waiting, wanted = np.array(still, np.int64), min(wanted * 8, total)


def ranked(
    values: Float[np.ndarray, "rows width"], query: Float[np.ndarray, " width"], rows: Int[np.ndarray, " some"]
) -> tuple[Int[np.ndarray, " some"], Float[np.ndarray, " some"]]:
    """Returns some of the rows and their scores, best first; of equal ones the first is before the others."""
    rows = np.sort(rows)
    pieces = [rows[start : start + _EXACT_AT_ONCE] for start in range(0, len(rows), _EXACT_AT_ONCE)]
    scores = np.concatenate([exact_scores(values[piece], query) for piece in pieces])
    order = np.argsort(-scores, kind="stable")
    return rows[order], scores[order]


def exact_scores(
    values: Float[np.ndarray, "rows width"], query: Float[np.ndarray, " width"]
) -> Float[np.ndarray, " rows"]:
    """Returns the scores that decide, float64; those of equal rows are equal."""
    products = values.astype(np.float64) * query.astype(np.float64)[None]
    scores: np.ndarray = products.sum(axis=1)
    return scores


def _error(values: np.ndarray, query: np.ndarray) -> float:
    """Returns how far a score of the device may be from the exact one, for rows of a length up to 1.01."""
    eps = float(np.finfo(np.float32).eps)
    length = float(np.linalg.norm(query.astype(np.float64)))
    return 1.01 * length * (int(values.shape[1]) + 2) * eps


def _candidates(values: np.ndarray, queries: np.ndarray, wanted: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of the device and the rows of the best, best first."""
    there = jax.device_put(queries.astype(np.float32))
    best = jnp.full((len(queries), wanted), -jnp.inf, jnp.float32), jnp.full((len(queries), wanted), -1, jnp.int32)
    for start in range(0, len(values), block):
        rows = np.ascontiguousarray(values[start : start + block])
        if len(rows) < block:  # the last one
            rows = np.concatenate([rows, np.zeros((block - len(rows), rows.shape[1]), rows.dtype)])
        # the device begins, and the next block is read meanwhile
        best = _better(best, there, jax.device_put(rows), start, len(values), wanted)
    return np.asarray(best[0]), np.asarray(best[1]).astype(np.int64)


@functools.partial(jax.jit, static_argnums=5)
def _better(
    best: tuple[Array, Array], queries: Array, rows: Array, start: Any, total: Any, wanted: int
) -> tuple[Array, Array]:
    """Returns the best of those so far and a block."""
    scores = jnp.einsum("qp,rp->qr", queries, rows.astype(jnp.float32), precision="highest")
    numbers = start + jnp.arange(rows.shape[0], dtype=jnp.int32)
    scores = jnp.where(jnp.isnan(scores), np.finfo(np.float32).min, scores)  # still before what is no row
    scores = jnp.where((numbers < total)[None], scores, -jnp.inf)
    top, places = jax.lax.top_k(scores, min(wanted, rows.shape[0]))
    merged, order = jax.lax.top_k(jnp.concatenate([best[0], top], axis=1), wanted)
    return merged, jnp.take_along_axis(jnp.concatenate([best[1], numbers[places]], axis=1), order, axis=1)
