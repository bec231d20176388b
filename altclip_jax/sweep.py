"""One pass of an encoder over data on a mesh: for features, evaluations, and whatever else is embedded whole.

The mesh may be of one device or of many in several processes. Who reads what is decided by the mesh alone, and what
one process meets, all know before the next batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from altclip_jax import parallel
from altclip_jax.data.augment import Augmentation
from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import HostBatch, Loaded, keep_tokenizers_single
from altclip_jax.data.pixels import Pixels
from altclip_jax.data.samples import Picture, SampleError
from altclip_jax.data.walk import walk
from altclip_jax.distributed import (
    Concern,
    OtherProcessError,
    OtherSamplesError,
    Stopped,
    digest,
    exchange,
    exchange_json,
)
from altclip_jax.inference.encoder import devices_of, encode_images, pad_rows, pictures_at_once
from altclip_jax.inference.pipeline import AltCLIP
from altclip_jax.machine import default_device
from altclip_jax.pretrained import TwoTowerModel
from altclip_jax.weights.convert import Params

Walk = Callable[..., Iterator[HostBatch]]  # such as `ImageTextStream.all_pictures`
Encode = Callable[[Params, dict[str, np.ndarray], dict[str, np.ndarray]], tuple[np.ndarray, dict[str, np.ndarray]]]
Progress = Callable[[int], None]
Known = dict[Path | str, np.ndarray]  # by file, or by name where a picture has no file of its own
_LANGUAGE_BYTES = 32  # of a language's name; what is longer is cut


class Piece(NamedTuple):
    """Some of the samples, in no particular order."""

    values: np.ndarray  # (samples, width), what the encoder says
    kept: dict[str, np.ndarray]  # the arrays that were asked for, row by row
    languages: list[str]  # "any" where the data do not say


class Sweep:
    """Passes over data with the same mesh, rows, threads and log of bad samples.

    Each process reads samples for the rows of the mesh that it holds, those that hold the same rows the same samples,
    and gets what the encoder says of all of them.
    """

    def __init__(
        self,
        mesh: Mesh,
        rows: int,
        *,
        threads: int = 4,
        log: Path | None = None,
        max_bad_share: float = 0.01,
        stop: Callable[[], bool] = lambda: False,
    ):
        """Takes what all passes share.

        Args:
            mesh: The devices; `rows` can be dealt over them.
            rows: Of a batch of all processes.
            threads: How many read and decode in each process.
            log: Where bad samples are named.
            max_bad_share: How many there may be.
            stop: Whether a pass shall end, asked between two batches.
        """
        self._mesh, self._rows, self.stop = mesh, rows, stop
        self._mine = parallel.local_rows(mesh, rows)
        self._shares = parallel.row_shares(mesh, rows)
        self._held = [
            [number for number, share in enumerate(self._shares) if process in share.holders]
            for process in range(jax.process_count())
        ]
        self._threads, self._log, self._max_bad_share = threads, log, max_bad_share

    def encoder(self, function: Callable[..., jax.Array], prefix: str = "") -> Encode:
        """Returns an encoder from a function of (params, batch) that gives one row for each.

        Args:
            function: Pure; compiled once.
            prefix: Of which part of a model the params are, see `parallel.gathered`.
        """
        return self._run(_jit(function, self._mesh, prefix))

    def tower(self, clip: AltCLIP) -> Encode:
        """Returns the image tower of a model as an encoder."""
        return self._run(_jit_image_tower(clip.model, self._mesh, pictures_at_once(clip.params)))

    def over(
        self,
        walk: Walk,
        encode: Encode,
        params: Params,
        inputs: Sequence[str],
        keep: Sequence[str],
        *,
        bad: BadSamples | None = None,
        **options: Any,
    ) -> Iterator[Piece]:
        """Yields what an encoder says of everything that a walk gives.

        Args:
            walk: Of a stream.
            encode: From `encoder`.
            params: Its parameters, on the mesh.
            inputs: Arrays of the walk's batches that the encoder reads.
            keep: Arrays of the batches that come back beside the values, such as the ids.
            bad: The same in all processes, as far as these samples have been read before; in the end it has what could
                not be read now, in all processes. None: the sweep's log names that as it comes.
            options: For the walk.

        Raises:
            Stopped: it was asked to.
            TooManyBadSamples: more than are allowed, of all that the processes have read.
            OtherSamplesError: processes that hold the same rows have read different samples.
            OtherProcessError: another process could not go on.
        """
        known = int(options["but"].sum()) if options.get("but") is not None else 0
        walk = functools.partial(walk, threads=self._threads, **options)
        readers = [self._reader(walk, number, known, bad) for number in self._held[jax.process_index()]]
        while self._fetch(readers, bad):
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
        if bad is not None:
            _tell(readers, bad)

    def _run(self, compiled: Any) -> Encode:
        def run(params: Params, *local: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            placed = (parallel.place_batch(self._mesh, arrays, self._rows, self._mine) for arrays in local)
            values, beside = jax.tree.map(np.asarray, compiled(params, *placed))
            return values, beside

        return run

    def _reader(self, walk: Walk, number: int, known: int, bad: BadSamples | None) -> _Reader:
        share, of = self._shares[number], len(self._shares)
        leads = share.holders[0] == jax.process_index()
        if bad is None:
            own = BadSamples(self._log, max_bad_share=self._max_bad_share, logs=leads, read=known // of, parts=of)
        else:
            own = BadSamples(max_bad_share=1.0)
        return _Reader(walk, len(share.rows), (number, of), own, leads=leads)

    def _in_order(self, parts: list[np.ndarray]) -> np.ndarray:
        """Joins rows of the shares that this process holds."""
        if len(parts) == 1:
            return parts[0]
        rows = np.concatenate([self._shares[number].rows for number in self._held[jax.process_index()]])
        joined: np.ndarray = np.concatenate(parts)[np.argsort(rows)]
        return joined

    def _fetch(self, readers: Sequence[_Reader], bad: BadSamples | None) -> bool:
        """Reads this process's next rows; returns whether any process has some, and all know what one has met."""
        error: Exception | None = None
        concern = Concern.NONE
        if self.stop():
            concern = Concern.ASKED_TO_STOP
        try:
            for reader in readers:
                reader.fetch()
        except Exception as found:
            error, concern = found, Concern.CANNOT_READ
        lost, read = np.sum([(0, 0), *((each.bad.bad, each.bad.read) for each in readers if each.leads)], axis=0)
        digests = [reader.digest for reader in readers] + [0] * (max(map(len, self._held)) - len(readers))
        more = any(reader.batch is not None for reader in readers)
        told = exchange(np.array([more, concern, lost, read, *digests], np.int32))
        most = told[:, 1].max()
        if error is not None:
            raise error
        if most == Concern.CANNOT_READ:
            raise OtherProcessError
        self._require_same(told[:, 4:])
        lost, read = told[:, 2:4].sum(axis=0, dtype=np.int64).tolist()
        if bad is None:
            readers[0].bad.judge(lost, read)
        elif bad.is_exceeded(bad.bad + lost, bad.read):
            _tell(readers, bad)
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


def join(pieces: Iterator[Piece], ids: str) -> Piece:
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


def embed_pictures(
    clip: AltCLIP,
    pictures: Sequence[Picture],
    bad: BadSamples,
    *,
    batch_size: int = 32,
    threads: int = 4,
    progress: Progress | None = None,
    known: Known | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Float32[np.ndarray, "readable projection"], Int[np.ndarray, " readable"]]:
    """Returns the unit embeddings of the pictures that can be read, and their places among `pictures`.

    Args:
        clip: The model; where its parameters are on a mesh, all processes of it call this together.
        pictures: Read here, each once; the same in all processes.
        bad: Is told those that cannot be read.
        batch_size: Pictures that the model sees at once, on all devices together.
        threads: How many decode.
        progress: Called with the number of pictures done.
        known: Pictures whose embeddings are known; what is embedded here is added.
        stop: As of `Sweep`.

    Raises:
        Stopped: it was asked to.
        TooManyBadSamples: `bad` allows no more.
        OtherSamplesError: another process has other pictures.
    """
    known = {} if known is None else known
    names = digest(np.frombuffer("\0".join(picture.name for picture in pictures).encode("utf-8", "replace"), np.uint8))
    if len(set(exchange(np.array([names], np.int32))[:, 0].tolist())) > 1:
        raise OtherSamplesError
    rows = np.zeros((len(pictures), clip.model.config.projection_dim), np.float32)
    there = np.zeros(len(pictures), np.bool_)
    for place, picture in enumerate(pictures):
        if (key := picture.file or picture.name) in known:
            rows[place], there[place] = known[key], True
    unknown = np.flatnonzero(~there).tolist()
    one = next(iter(devices_of(clip.params)), default_device())
    mesh = clip.encoder.mesh or parallel.make_mesh(devices=[one])
    at_once = _rows_at_once(len(unknown), batch_size, parallel.batch_devices(mesh))
    sweep = Sweep(mesh, at_once, threads=threads, stop=stop)
    encode = sweep.tower(clip)
    pixels = Pixels(clip.processor.image_processor, Augmentation())

    def load(place: int) -> list[Loaded]:
        name = pictures[place].name
        return [Loaded(place, name, None, {"pixels": pixels(name, pictures[place], None)})]

    def collate(loaded: Sequence[Loaded]) -> dict[str, np.ndarray]:
        values = [(row.values or {})["pixels"] for row in loaded]
        return {"example": np.array([row.example for row in loaded], np.int64), "pixel_values": np.stack(values)}

    def all_unknown(batch_size: int, **options: Any) -> Iterator[HostBatch]:
        return walk(None, iter(unknown), load, collate, int, batch_size, **options)

    told = len(pictures) - len(unknown)
    if progress and told:
        progress(told)
    for piece in sweep.over(all_unknown, encode, clip.params, ["pixel_values"], ["example"], bad=bad):
        rows[piece.kept["example"]], there[piece.kept["example"]] = piece.values, True
        told += len(piece.values)
        if progress:
            progress(len(piece.values))
    if progress and told < len(pictures):
        progress(len(pictures) - told)
    places = np.flatnonzero(there)
    known |= {pictures[place].file or pictures[place].name: rows[place] for place in places.tolist()}
    return rows[places], places


def embed_texts(
    clip: AltCLIP, texts: Sequence[str], *, batch_size: int = 64, progress: Progress | None = None
) -> Float32[np.ndarray, "texts projection"]:
    """Returns unit embeddings; equal texts are embedded once, so theirs are equal bit for bit.

    Args:
        clip: The model; where its parameters are on a mesh, all processes of it call this together.
        texts: The same in all processes.
        batch_size: How many texts of 32 tokens the model sees at once, on all devices together.
        progress: Called with the number of different texts done.
    """
    keep_tokenizers_single()
    places: dict[str, int] = {}
    of_texts = [places.setdefault(text, len(places)) for text in texts]
    return clip.encode_text(list(places), batch_size=batch_size, progress=progress)[of_texts]


def _rows_at_once(rows: int, batch_size: int, devices: int) -> int:
    """Returns how many rows a batch has, so that all have the same number and the last is nearly full."""
    batches = max(1, -(-rows // batch_size))
    each = min(-(-rows // batches), batch_size) if batches < 8 else batch_size
    each = 1 << max(each - 1, 0).bit_length() if each <= 8 else -(-each // 8) * 8
    return -(-each // devices) * devices


def _tell(readers: Sequence[_Reader], bad: BadSamples) -> None:
    """Tells in each process what could not be read in any.

    Raises:
        TooManyBadSamples: `bad` allows no more.
    """
    own = [pair for reader in readers if reader.leads for pair in reader.bad.names.items()]
    bad.record([], [SampleError(name, reason) for told in exchange_json(own) for name, reason in told])


def _jit(function: Callable[..., jax.Array], mesh: Mesh, prefix: str = "") -> Any:
    """Returns `function` of parameters on a mesh and a batch, jitted; what stands beside a batch comes back whole."""

    @functools.partial(jax.jit, out_shardings=parallel.sharding(mesh))
    def compiled(params: Params, batch: Any, beside: Any) -> Any:
        return function(parallel.gathered(mesh, params, prefix), batch), beside

    return compiled


@functools.lru_cache(maxsize=8)
def _jit_image_tower(model: TwoTowerModel, mesh: Mesh, at_once: int | None) -> Any:
    """Returns the tower as `_jit` does, the same for all collections, so that it is compiled once for each shape."""

    def embed(params: Params, batch: Any) -> jax.Array:
        values: jax.Array = encode_images(model, params, batch["pixel_values"], at_once=at_once)
        return values

    return _jit(embed, mesh)
