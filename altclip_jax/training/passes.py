"""One pass of an encoder over all samples: for evaluation, and for features that are computed ahead."""

from __future__ import annotations

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
from altclip_jax.training.processes import Concern, exchanged
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

    Each process reads its share of the samples and gets what the encoder says of all of them.
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
        self._threads, self._log, self._max_bad_share = threads, log, max_bad_share

    def things(self, mixture: Mixture[ImageTextSource]) -> Int[np.ndarray, " samples"]:
        """Returns which thing each sample is about: samples with a picture in common are about one."""
        bad = BadSamples(self._log, max_bad_share=self._max_bad_share)
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
            TooManyBadSamples: more than are allowed.
            OtherProcessError: another process could not go on.
        """
        bad = BadSamples(self._log, max_bad_share=self._max_bad_share)
        walk = functools.partial(walk, len(self._mine), threads=self._threads, bad_samples=bad, **options)
        own = walk(share=(jax.process_index(), jax.process_count()))
        arrays: dict[str, np.ndarray] | None = None
        while (found := self._next(own)) is not None:
            batch = found[0]
            if batch is not None:
                languages = [(language or "any").encode()[:_LANGUAGE_BYTES] for language in batch.languages]
                named = np.array(languages, f"S{_LANGUAGE_BYTES}").view(np.uint8).reshape(-1, _LANGUAGE_BYTES)
                arrays = {**batch.arrays, "language": named}
            elif arrays is None:  # this process has no samples of its own: any will do for rows that do not count
                arrays = {**next(walk()).arrays, "language": np.zeros((1, _LANGUAGE_BYTES), np.uint8)}
            padded = {name: pad_rows(rows[: len(self._mine)], len(self._mine)) for name, rows in arrays.items()}
            padded["counts"] = np.arange(len(self._mine)) < (0 if batch is None else len(batch.names))
            beside = {name: padded[name] for name in (*keep, "language", "counts")}
            values, beside = encode(params, {name: padded[name] for name in inputs}, beside)
            counts = beside.pop("counts")
            names = beside.pop("language")[counts].view(f"S{_LANGUAGE_BYTES}").reshape(-1)
            yield Piece(
                values[counts],
                {name: rows[counts] for name, rows in beside.items()},
                [name.decode("utf-8", "ignore") for name in names.tolist()],
            )

    def _next(self, own: Iterator[HostBatch]) -> tuple[HostBatch | None] | None:
        """Returns this process's next batch, which is None while only others have some, or None at the end of all."""
        batch: HostBatch | None = None
        error: Exception | None = None
        concern = Concern.NONE
        if self._stop is not None and self._stop.asked():
            concern = Concern.ASKED_TO_STOP
        try:
            batch = next(own, None)
        except Exception as found:
            error, concern = found, Concern.CANNOT_READ
        more, most = exchanged(np.array([batch is not None, concern], np.int32)).max(axis=0)
        if error is not None:
            raise error
        if most == Concern.CANNOT_READ:
            raise OtherProcessError
        if most == Concern.ASKED_TO_STOP:
            raise Stopped
        return (batch,) if more else None


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
