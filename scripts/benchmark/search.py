"""Exact search over a mapped file against faiss' flat index in memory, and an approximate index, in turn."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from altclip_jax.corpus.approximate import ApproximateIndex
from altclip_jax.corpus.index import Index
from altclip_jax.corpus.search import exact_scores, search
from scripts.benchmark.process import say

HITS = 10
CENTRES = 2000


def run(repeats: int, rows: int, width: int, *, approximate: bool) -> dict[str, Any]:
    """Return the lines of the table; every rank of ours is compared with numpy's in float64."""
    import faiss

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say("making rows")
        values, queries = heaps(rows, width, 0), heaps(512, width, 1)
        index = write(folder, values)
        flat = faiss.IndexFlatIP(width)
        flat.add(values)
        ways: dict[str, Callable[[np.ndarray], Any]] = {
            "ours": lambda some: search(index.values, some, HITS),
            "faiss flat": lambda some: flat.search(some, HITS),
        }
        result: dict[str, Any] = {"rows": rows, "width": width, "hits": HITS, "exact": measure(ways, queries, repeats)}
        result["ranks_compared_with_numpy"] = compared(index.values, queries[:64])
        say(f"{result['ranks_compared_with_numpy']} ranks are numpy's")
        if not approximate:
            return result
        say("building an approximate index")
        begin = time.perf_counter()
        told = ApproximateIndex.build(index).told
        opened = ApproximateIndex.open(index)
        built = {"seconds": time.perf_counter() - begin, "recipe": told.recipe, "probes": told.probes}
        say(f"built in {built['seconds']:,.0f} s: {told.recipe}, {told.probes} probes, recall {told.recall}")
        ways["approximate"] = lambda some: opened.search(some, HITS)
        return result | {"approximate": {**built, "recall": told.recall, "lines": measure(ways, queries, repeats)}}


def measure(ways: dict[str, Callable[[np.ndarray], Any]], queries: np.ndarray, repeats: int) -> list[dict[str, Any]]:
    """Return how many queries a second each way answers, given one, 64 or 512 at a time."""
    lines = []
    for count in (1, 64, 512):
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(1 + repeats):
            for name, way in ways.items():
                begin = time.perf_counter()
                way(queries[:count])
                if turn:
                    times[name].append(time.perf_counter() - begin)
        speeds = {name: count / statistics.median(own) for name, own in times.items()}
        lines.append({"queries": count, "queries_per_second": speeds})
        print(count, "queries:", *(f"{name} {speed:,.1f}/s" for name, speed in speeds.items()), flush=True)
    return lines


def compared(values: np.ndarray, queries: np.ndarray) -> int:
    """Return how many ranks were found equal to numpy's.

    Raises:
        ValueError: one was not.
    """
    found = search(values, queries, HITS)
    for place, query in enumerate(queries):
        right = np.argsort(-exact_scores(values, query), kind="stable")[:HITS]
        if not np.array_equal(found.rows[place], right):
            raise ValueError(f"Query {place}: {found.rows[place]} and not {right}.")
    return len(queries) * HITS


def heaps(rows: int, width: int, seed: int) -> np.ndarray:
    """Return unit rows that lie in heaps, as embeddings do."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((CENTRES, width), dtype=np.float32)
    values = generator.standard_normal((rows, width), dtype=np.float32)
    values += centres[generator.integers(CENTRES, size=rows)]
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def write(folder: Path, values: np.ndarray) -> Index:
    """Return an index of rows that are not of anything."""
    np.save(folder / "images.npy", values)
    np.save(folder / "images.offsets.npy", np.zeros(len(values) + 1, np.int64))
    told = {"model": "none", "fingerprint": "", "rows": len(values)}
    (folder / "images.index.json").write_text(json.dumps(told), encoding="utf-8")
    return Index(folder, "images")
