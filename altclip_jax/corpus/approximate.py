"""An approximate index through faiss: a few of many lists of rows are looked through, not every row.

What it finds is ranked as the exact search ranks, by scores in float64; what it can miss are rows. How many is measured
when it is made, against the exact search, with questions of the kind that will be asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from altclip_jax.corpus.index import Index
from altclip_jax.corpus.search import Hits, check_question, ranked, search
from altclip_jax.files.json_file import read_json_object
from altclip_jax.files.staging import Staging

_BLOCK = 65_536  # rows that are added at once
_WANTED = 10  # the hits by which an index is measured
_ENOUGH = 0.95  # of them, found: as many lists are looked through as that takes
_QUESTIONS = 256
_ROWS_OF_A_LIST = 39  # with fewer, faiss says that its clusters mean little
_CANDIDATES = 4  # for each hit, whose order the coarser numbers of the index may not know


@dataclasses.dataclass(frozen=True, kw_only=True)
class Approximation:
    """What an approximate index says of itself.

    Attributes:
        recipe: In faiss' words, such as "IVF1024,SQfp16".
        probes: How many lists are looked through unless a search says otherwise.
        recall: Which share of the ten best rows that finds, the mean over the questions; none if there were none.
        questions: How many, and of which kind.
        of: Tells the rows that it was made of.
    """

    recipe: str
    probes: int
    recall: float | None
    questions: tuple[int, str]
    of: str


class ApproximateIndex:
    """The approximate index that stands beside an index."""

    def __init__(self, index: Index, lists: Any, told: Approximation):
        """Joins the parts; see `build` and `open`."""
        self.index, self.told, self._lists = index, told, lists

    @classmethod
    def build(cls, index: Index, recipe: str | None = None, *, like: Index | None = None) -> Self:
        """Makes it, measures it, and writes it beside the index.

        Args:
            index: Of the rows that are searched.
            recipe: For faiss' index_factory, an inverted file ("IVF..."); None: by the number of rows, in float16.
            like: Rows that are like the queries, such as captions where pictures are searched. None: the rows.

        Raises:
            ValueError: faiss is not installed, does not know the recipe, or it has no lists.
            OSError: the folder cannot be written.
        """
        faiss = _faiss()
        values = index.values
        recipe = recipe or f"IVF{_list_count(len(values))},SQfp16"
        lists = _made(faiss, recipe, values.shape[1])
        sample = np.random.default_rng(0).permutation(len(values))[: 256 * lists.nlist]
        lists.train(_float32(values[np.sort(sample)]))
        for start in range(0, len(values), _BLOCK):
            lists.add(_float32(values[start : start + _BLOCK]))
        kind = index.kind if like is None else like.kind
        told = Approximation(recipe=recipe, probes=1, recall=None, questions=(0, kind), of=_identity(index))
        made = cls(index, lists, told)
        made.told = made._measured(index if like is None else like)
        made._write(faiss)
        return made

    @classmethod
    def open(cls, index: Index) -> Self:
        """Opens what `build` has written; the lists stay on disk until they are looked through.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is of other rows, or faiss is not installed.
        """
        path = _description(index)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no approximate index of {index.kind} in {index.folder}: make it with `altclip index STORE"
                " --approximate`, or search without."
            )
        told = read_json_object(path)
        told["questions"] = tuple(told["questions"])
        approximation = Approximation(**told)
        if approximation.of != _identity(index):
            raise ValueError(
                f"{path} is of other rows than the index beside it: make it again with `altclip index STORE"
                " --approximate`."
            )
        faiss = _faiss()
        return cls(index, faiss.read_index(str(_lists_file(index)), faiss.IO_FLAG_MMAP), approximation)

    def search(self, queries: Float[np.ndarray, "queries width"], k: int, *, probes: int | None = None) -> Hits:
        """Returns k rows for each query, best first, or all if they are fewer.

        Args:
            queries: Of the width of the rows.
            k: At least 1.
            probes: How many lists are looked through; more where they hold too few rows. None: as measured.

        Raises:
            ValueError: k or probes is less than 1, or the widths differ.
        """
        values = self.index.values
        check_question(values, queries, k)
        if probes is not None and probes < 1:
            raise ValueError(f"probes={probes} must be at least 1.")
        k = min(k, len(values))
        found = Hits(np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float64))
        waiting, lists = np.arange(len(queries)), min(probes or self.told.probes, self._lists.nlist)
        while waiting.size:
            self._lists.nprobe = lists
            _, candidates = self._lists.search(_float32(queries[waiting]), min(_CANDIDATES * k, len(values)))
            still = []
            for place, rows in zip(waiting.tolist(), candidates, strict=True):
                rows = rows[rows >= 0]
                if len(rows) < k:
                    still.append(place)
                    continue
                best, scores = ranked(values, queries[place], rows)
                found.rows[place], found.scores[place] = best[:k], scores[:k]
            waiting, lists = np.array(still, np.int64), min(2 * lists, self._lists.nlist)
        return found

    def _measured(self, like: Index) -> Approximation:
        """Returns the description with as many probes as are enough, in powers of two."""
        chosen = np.sort(np.random.default_rng(1).permutation(len(like))[:_QUESTIONS])
        questions, k = _float32(like.values[chosen]), min(_WANTED, len(self.index))
        right = search(self.index.values, questions, k).rows
        probes, recall = 1, 0.0
        while True:
            found = self.search(questions, k, probes=probes).rows
            recall = float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(found, right, strict=True)]))
            if recall >= _ENOUGH or probes >= self._lists.nlist:
                return dataclasses.replace(self.told, probes=probes, recall=recall, questions=(len(chosen), like.kind))
            probes = min(2 * probes, self._lists.nlist)

    def _write(self, faiss: Any) -> None:
        folder, name = self.index.folder, _lists_file(self.index).name
        temporary = folder / f".{name}.tmp"
        try:
            faiss.write_index(self._lists, str(temporary))
            with Staging(folder) as staging:
                staging.add(name, _blocks(temporary))
                staging.add(
                    _description(self.index).name, [(json.dumps(dataclasses.asdict(self.told)) + "\n").encode()]
                )
                staging.install()
        finally:
            temporary.unlink(missing_ok=True)


def _made(faiss: Any, recipe: str, width: int) -> Any:
    """Returns an empty inverted file."""
    try:
        lists = faiss.index_factory(width, recipe, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"faiss makes no index of the recipe {recipe!r} for {width} numbers a row: {reason}") from None
    if not hasattr(lists, "nlist"):
        raise ValueError(f"The recipe {recipe!r} makes no inverted file: expected one such as 'IVF1024,SQfp16'.")
    return lists


def _list_count(rows: int) -> int:
    """Returns how many lists so many rows are dealt over."""
    return max(1, min(4 * math.isqrt(rows), rows // _ROWS_OF_A_LIST))


def _identity(index: Index) -> str:
    """Returns what changes with the rows of an index: a hash of some of them, of their number and their model."""
    step = max(1, len(index) // 64)
    some = np.ascontiguousarray(index.values[::step])
    digest = hashlib.sha256(f"{index.told['fingerprint']} {index.values.shape} {some.dtype}".encode())
    digest.update(some.tobytes())
    return digest.hexdigest()[:16]


def _description(index: Index) -> Path:
    return index.folder / f"{index.kind}.approximate.json"


def _lists_file(index: Index) -> Path:
    return index.folder / f"{index.kind}.faiss"


def _float32(values: np.ndarray) -> np.ndarray:
    """Returns rows as faiss takes them; one with NaN, which is behind all others, as zeros."""
    return np.ascontiguousarray(np.nan_to_num(np.asarray(values, np.float32), nan=0.0))


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            yield block


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise ValueError(
            "An approximate index needs faiss, which is not installed: pip install 'altclip-jax[approximate]'. The"
            " exact search does not."
        ) from None
    return faiss
