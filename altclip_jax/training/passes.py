"""One pass of an encoder over all samples: for evaluation, and for features that are computed ahead."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from altclip_jax import parallel
from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import HostBatch
from altclip_jax.data.samples import ImageTextSource
from altclip_jax.data.sources import Mixture
from altclip_jax.distributed import OtherProcessError
from altclip_jax.evaluation.collection import collect
from altclip_jax.inference.encoders import pad_rows
from altclip_jax.training.interrupt import Stopped, StopRequest
from altclip_jax.training.processes import Concern, OtherSamplesError, digest, exchanged, is_first
from altclip_jax.weights.convert import Params

Walk = Callable[..., Iterator[HostBatch]]  # such as `ImageTextStream.all_pictures`
Encoder = Callable[[Params, dict[str, np.ndarray], dict[str, np.ndarray]], tuple[np.ndarray, dict[str, np.ndarray]]]
_LANGUAGE_BYTES = 32  # of a language's name; what is longer is cut


class Piece(NamedTuple):
    """Some of the samples, in no particular order."""

    values: np.ndarray  # (samples, width), what the encoder says
    kept: dict[str, np.ndarray]  # the arrays that were asked for, row by row
    languages: list[str]  # "any" where the data do not say


class Passes:
    """Passes over data with the rows, the threads and the log of bad samples of one run.

    Each process reads samples for the rows of the mesh that it holds, those that hold the same rows the same samples,
    and gets what the encoder says of all of them.
    """

    def __init__(
        self, mesh: Mesh, rows: int, *, threads: int, log: Path, max_bad_share: float, stop: StopRequest | None = None
    ):
        """Takes what all passes share.

        Args:
            mesh: The devices; `rows` can be dealt over them.
            rows: Of a batch of all processes.
            threads: How many read and decode in each process.
            log: Where bad samples are named.
            max_bad_share: How many there may be.
            stop: Ends a pass between two batches, with `Stopped`.
        """
        self._mesh, self._rows, self._stop = mesh, rows, stop
        self._mine = parallel.local_rows(mesh, rows)
        self._shares = parallel.row_shares(mesh, rows)
        self._held = [
            [number for number, share in enumerate(self._shares) if process in share.holders]
            for process in range(jax.process_count())
        ]
        self._threads, self._log, self._max_bad_share = threads, log, max_bad_share

    def things(self, mixture: Mixture[ImageTextSource]) -> Int[np.ndarray, " samples"]:
        """Returns which thing each sample is about: samples with a picture in common are about one."""
        bad = BadSamples(self._log, max_bad_share=self._max_bad_share, logs=is_first())
        return collect(mixture, bad).sample_ids

    def encoder(self, function: Callable[..., jax.Array], prefix: str = "") -> Encoder:
        """Returns an encoder from a function of (params, batch) that gives one row for each.

        Args:
            function: Pure; compiled once.
            prefix: Of which part of a model the params are, see `parallel.gathered`.
        """

        @functools.partial(jax.jit, out_shardings=parallel.sharding(self._mesh))
        def compiled(params: Params, batch: Any, beside: Any) -> Any:
            return function(parallel.gathered(self._mesh, params, prefix), batch), beside

        def run(params: Params, *local: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            placed = (parallel.place_batch(self._mesh, arrays, self._rows, self._mine) for arrays in local)
            values, beside = jax.tree.map(np.asarray, compiled(params, *placed))
            return values, beside

        return run

    def over(
        self, walk: Walk, encode: Encoder, params: Params, inputs: Sequence[str], keep: Sequence[str], **options: Any
    ) -> Iterator[Piece]:
        """Yields what an encoder says of everything that a walk gives.

        Args:
            walk: Of a stream.
            encode: From `encoder`.
            params: Its parameters, on the mesh.
            inputs: Arrays of the walk's batches that the encoder reads.
            keep: Arrays of the batches that come back beside the values, such as the ids.
            options: For the walk.

        Raises:
            Stopped: it was asked to.
            TooManyBadSamples: more than are allowed, of all that the processes have read.
            OtherSamplesError: processes that hold the same rows have read different samples.
            OtherProcessError: another process could not go on.
        """
        known = int(options["but"].sum()) if options.get("but") is not None else 0
        walk = functools.partial(walk, threads=self._threads, **options)
        readers = [self._reader(walk, number, known) for number in self._held[jax.process_index()]]
        while self._fetched(readers):
            local = {name: self._in_order([reader.arrays[name] for reader in readers]) for name in readers[0].arrays}
            beside = {name: local[name] for name in (*keep, "language", "counts")}
            values, beside = encode(params, {name: local[name] for name in inputs}, beside)
            counts = beside.pop("counts")
            names = beside.pop("language")[counts].view(f"S{_LANGUAGE_BYTES}").reshape(-1)
            yield Piece(
                values[counts],
                {name: rows[counts] for name, rows in beside.items()},
                [name.decode("utf-8", "ignore") for name in names.tolist()],
            )

    def _reader(self, walk: Walk, number: int, known: int) -> _Reader:
        share, of = self._shares[number], len(self._shares)
        leads = share.holders[0] == jax.process_index()
        bad = BadSamples(self._log, max_bad_share=self._max_bad_share, logs=leads, read=known // of, parts=of)
        return _Reader(walk, len(share.rows), (number, of), bad, leads=leads)

    def _in_order(self, parts: list[np.ndarray]) -> np.ndarray:
        """Joins rows of the shares that this process holds."""
        if len(parts) == 1:
            return parts[0]
        rows = np.concatenate([self._shares[number].rows for number in self._held[jax.process_index()]])
        joined: np.ndarray = np.concatenate(parts)[np.argsort(rows)]
        return joined

    def _fetched(self, readers: Sequence[_Reader]) -> bool:
        """Reads this process's next rows; returns whether any process has some, and all know what one has met."""
        error: Exception | None = None
        concern = Concern.NONE
        if self._stop is not None and self._stop.asked():
            concern = Concern.ASKED_TO_STOP
        try:
            for reader in readers:
                reader.fetch()
        except Exception as found:
            error, concern = found, Concern.CANNOT_READ
        bad, read = np.sum([(0, 0), *((each.bad.bad, each.bad.read) for each in readers if each.leads)], axis=0)
        digests = [reader.digest for reader in readers] + [0] * (max(map(len, self._held)) - len(readers))
        more = any(reader.batch is not None for reader in readers)
        told = exchanged(np.array([more, concern, bad, read, *digests], np.int32))
        most = told[:, 1].max()
        if error is not None:
            raise error
        if most == Concern.CANNOT_READ:
            raise OtherProcessError
        self._require_same(told[:, 4:])
        readers[0].bad.judge(*told[:, 2:4].sum(axis=0, dtype=np.int64).tolist())
        if most == Concern.ASKED_TO_STOP:
            raise Stopped
        some = bool(told[:, 0].any())
        if some:
            for reader in readers:
                reader.fill()
        return some

    def _require_same(self, digests: Int[np.ndarray, "processes shares"]) -> None:
        """Raises OtherSamplesError where one process has read other samples than another for the same rows."""
        for number, share in enumerate(self._shares):
            found = {digests[process, self._held[process].index(number)] for process in share.holders}
            if len(found) > 1:
                raise OtherSamplesError


class _Reader:
    """Reads what one share of the rows is filled with, batch by batch.

    Attributes:
        batch: The latest, None at the end.
        arrays: Its arrays with as many rows as the share, once they are filled.
        digest: Says which samples it has.
        bad: The bad samples of the share.
        leads: Whether no process before this one reads the same.
    """

    def __init__(self, walk: Walk, rows: int, share: tuple[int, int], bad: BadSamples, *, leads: bool):
        self.batch: HostBatch | None = None
        self.arrays: dict[str, np.ndarray] = {}
        self.digest = 0
        self.bad, self.leads = bad, leads
        self._rows = rows
        self._own = walk(rows, share=share, bad_samples=bad)
        self._any: Any = functools.partial(walk, 1, bad_samples=BadSamples(max_bad_share=1.0))

    def fetch(self) -> None:
        """Reads the next batch."""
        self.batch = next(self._own, None)
        if self.batch is not None:
            self._show(self.batch)
        self.digest = digest(None if self.batch is None else self.batch.ids)

    def fill(self) -> None:
        """Says which rows count; where the share has never had a sample, all rows show one that does not.

        Raises:
            OtherSamplesError: there is none, while another process has some.
        """
        if not self.arrays:
            with contextlib.closing(self._any()) as others:
                shown = next(others, None)
            if shown is None:
                raise OtherSamplesError
            self._show(shown)
        self.arrays["counts"] = np.arange(self._rows) < (0 if self.batch is None else len(self.batch.names))

    def _show(self, batch: HostBatch) -> None:
        languages = [(language or "any").encode()[:_LANGUAGE_BYTES] for language in batch.languages]
        named = np.array(languages, f"S{_LANGUAGE_BYTES}").view(np.uint8).reshape(-1, _LANGUAGE_BYTES)
        arrays = {**batch.arrays, "language": named}
        self.arrays = {name: pad_rows(rows[: self._rows], self._rows) for name, rows in arrays.items()}


def joined(pieces: Iterator[Piece], ids: str) -> Piece:
    """Returns all pieces as one in the order of `ids`; rows of one id stay as they came."""
    found = list(pieces)
    if not found:
        raise ValueError("There is nothing to measure: no sample of the evaluation could be read.")
    kept = {name: np.concatenate([piece.kept[name] for piece in found]) for name in found[0].kept}
    order = np.argsort(kept[ids], kind="stable")
    languages = [language for piece in found for language in piece.languages]
    return Piece(
        np.concatenate([piece.values for piece in found])[order],
        {name: rows[order] for name, rows in kept.items()},
        [languages[place] for place in order.tolist()],
    )
