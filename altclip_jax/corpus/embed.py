"""A corpus to a store: read by threads ahead of the devices, part by part."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from altclip_jax.corpus.forms import Rows, require
from altclip_jax.corpus.items import Corpus
from altclip_jax.corpus.spool import NAME as STANDARD_INPUT
from altclip_jax.corpus.store import DESCRIPTION, Description, Kind, Store
from altclip_jax.data.augment import Augmentation
from altclip_jax.data.batches import Ahead, cut_batches, keep_tokenizers_single
from altclip_jax.data.pixels import Pixels
from altclip_jax.data.samples import Caption, SampleError
from altclip_jax.files.lock import hold_together
from altclip_jax.files.ownership import containing, keep_apart
from altclip_jax.inference.encoder import Encoder
from altclip_jax.inference.pipeline import AltCLIP
from altclip_jax.processing.processor import AltCLIPProcessor
from altclip_jax.weights.fingerprint import VERSION, version_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a corpus is embedded.

    Attributes:
        kinds: "images" and "texts", or one of them.
        part_items: Items of a part: what a kill loses at most, and how often files are written.
        batch_size: Pictures that the model sees at once, on all devices of this process together.
        tokens: Of a batch of captions.
        threads: How many read and decode.
        form: "npy", "safetensors" or "parquet".
        stored: The dtype of the rows, "float32" or "float16".
    """

    kinds: tuple[Kind, ...] = ("images", "texts")
    part_items: int = 4096
    batch_size: int = 32
    tokens: int = 2048
    threads: int = 4
    form: str = "npy"
    stored: str = "float32"

    def __post_init__(self) -> None:
        for name in ("part_items", "batch_size", "tokens", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is needed.")
        require(self.form)


class Pace(NamedTuple):
    """How a run goes: items that are done, and the seconds since it began and of these spent waiting for items."""

    done: int
    seconds: float
    waited: float

    def __str__(self) -> str:
        share = self.waited / max(self.seconds, 1e-9)
        return f"{self.done / max(self.seconds, 1e-9):,.1f} items/s, {share:.0%} decoding, {1 - share:.0%} computing"


class _Read(NamedTuple):
    """An item that was read: its pictures and captions, each with its name, and what was wrong."""

    item: int
    pictures: list[tuple[str, np.ndarray]]
    captions: list[tuple[str, Caption]]
    faults: list[SampleError]


def describe(clip: AltCLIP, corpus: Corpus, settings: Settings, *, there: Description | None = None) -> Description:
    """Returns what a store of these embeddings says of itself.

    Args:
        clip: The model.
        corpus: What is embedded.
        settings: How.
        there: What the store that is gone on with says: the fingerprint is of its version, and pictures are turned as
            it did where the model's own processor does not say.
    """
    version = VERSION if there is None else version_of(there.fingerprint)
    pictures = clip.processor.image_processor.orient("exif" if there is None else there.orientation)
    return Description(
        model=clip.name,
        fingerprint=clip.fingerprint(version),
        width=clip.model.config.projection_dim,
        computed=str(np.dtype(clip.model.dtype)),
        stored=settings.stored,
        form=settings.form,
        corpus=corpus.identity,
        items=len(corpus),
        part_items=settings.part_items,
        kinds=settings.kinds,
        faults=tuple((fault.name, fault.reason) for fault in corpus.faults),
        orientation="exif" if pictures.apply_exif_orientation else "stored",
    )


def doubt(folder: Path) -> str:
    """Returns what a store or an index of version 0.1.0 leaves open about its model."""
    return (
        f"{folder} was begun by altclip_jax 0.1.0, which told models apart by their small parameters alone, biases and"
        " scales. This model has the same; whether the large ones are the same is not known. To be sure, embed again."
    )


def embed_corpus(
    clip: AltCLIP,
    corpus: Corpus,
    folder: Path,
    settings: Settings,
    *,
    resume: bool = False,
    share: tuple[int, int] = (0, 1),
    mesh: Mesh | None = None,
    progress: Callable[[Pace], None] | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> Pace:
    """Embeds the parts of a corpus that are not there yet.

    Args:
        clip: The model.
        corpus: What is embedded.
        folder: Of the store.
        settings: How.
        resume: Go on with a store that is there.
        share: (i, n): of n processes this is number i, and makes the parts i, i + n, ...
        mesh: Devices of this process; None: one.
        progress: Told after each batch.
        say: Is told what the store of an earlier version leaves open.

    Raises:
        FileExistsError: there is a store, and `resume` is not set; or something else is there.
        ValueError: it is of something else, or what is read lies in the folder.
        OSError: the store cannot be written, or the machine fails while items are read.
    """
    keep_apart((path for path in corpus.files if path != str(folder / STANDARD_INPUT)), folder)
    there = Store.open(folder).description if resume and (folder / DESCRIPTION).is_file() else None
    store = Store.begin(folder, describe(clip, corpus, settings, there=there), resume=resume)
    if version_of(store.description.fingerprint) == 1:
        say(doubt(folder))
    run = _Run(clip, corpus, store, settings, mesh)
    with hold_together(folder / ".lock", store.clear):
        own = [part for part in store.missing() if part % share[1] == share[0]]
        return run(own, progress or (lambda pace: None))


class _Run:
    def __init__(self, clip: AltCLIP, corpus: Corpus, store: Store, settings: Settings, mesh: Mesh | None):
        keep_tokenizers_single()
        self._corpus, self._store, self._settings = corpus, store, settings
        pictures = clip.processor.image_processor.orient(store.description.orientation)
        self._pixels = Pixels(pictures, Augmentation())
        processor = AltCLIPProcessor(pictures, clip.processor.tokenizer)
        self._encoder = Encoder(clip.model, clip.params, processor, mesh=mesh, steady=True)
        self._store_of = containing(store.folder)
        self._done, self._waited = 0, 0.0

    def __call__(self, parts: Sequence[int], progress: Callable[[Pace], None]) -> Pace:
        self._began, self._progress = time.perf_counter(), progress
        jobs = (batch for part in parts for batch in cut_batches(self._store.items_of(part), self._settings.batch_size))
        ahead: Ahead[int, _Read, list[_Read]] = Ahead(
            jobs, self._read, list, threads=self._settings.threads, ahead=max(2, self._settings.threads // 2)
        )
        writer = ThreadPoolExecutor(1, "altclip-store")  # the devices do not wait for the disk
        written: Future[None] | None = None
        try:
            for part in parts:
                rows, unreadable = self._embedded(part, ahead)
                if written is not None:
                    written.result()
                written = writer.submit(self._store.write, part, rows, unreadable)
            if written is not None:
                written.result()
        finally:
            ahead.close()
            writer.shutdown()
        return self._pace()

    def _pace(self) -> Pace:
        return Pace(self._done, time.perf_counter() - self._began, self._waited)

    def _read(self, item: int) -> _Read:
        """Reads an item, in a thread."""
        read = _Read(item, [], [], [])
        try:
            sample = self._corpus.read(item)
        except SampleError as error:
            read.faults.append(error)
            return read
        if "texts" in self._settings.kinds:
            read.captions.extend((sample.name, caption) for caption in sample.captions)
        for picture in sample.pictures if "images" in self._settings.kinds else ():
            if picture.file is not None and self._store_of(picture.file.parent):
                keep_apart([picture.file], self._store.folder)
            try:
                read.pictures.append((picture.name, self._pixels.cropped(picture.name, picture)))
            except SampleError as error:
                read.faults.append(error)
        return read

    def _embedded(
        self, part: int, ahead: Ahead[int, _Read, list[_Read]]
    ) -> tuple[dict[Kind, Rows], list[dict[str, Any]]]:
        """Returns the rows of a part, and what has none."""
        pictures: list[dict[str, Any]] = []
        captions: list[dict[str, Any]] = []
        unreadable: list[dict[str, Any]] = []

        def prepared() -> Iterator[np.ndarray]:
            size, waiting = self._settings.batch_size, list[np.ndarray]()
            for _ in range(0, len(self._store.items_of(part)), size):
                batch, waited = next(ahead)
                self._waited += waited
                for read in batch:
                    pictures.extend({"item": read.item, "id": name} for name, _ in read.pictures)
                    captions.extend(_told(read.item, name, caption) for name, caption in read.captions)
                    unreadable.extend(
                        {"item": read.item, "id": fault.name, "reason": fault.reason} for fault in read.faults
                    )
                    waiting.extend(pixels for _, pixels in read.pictures)
                while len(waiting) >= size:
                    yield np.stack(waiting[:size])
                    del waiting[:size]
                self._done += len(batch)
                self._progress(self._pace())
            if waiting:
                yield np.stack(waiting)

        images = self._encoder.embed_prepared(prepared(), self._settings.batch_size)
        texts = self._encoder.embed_texts(
            (caption["text"] for caption in captions), max(1, self._settings.tokens // 32)
        )
        stored = self._settings.stored
        return {
            "images": Rows(images.astype(stored), pictures),
            "texts": Rows(texts.astype(stored), captions),
        }, unreadable


def _told(item: int, name: str, caption: Caption) -> dict[str, Any]:
    language = {} if caption.language is None else {"language": caption.language}
    return {"item": item, "id": name, "text": caption.text, **language}
