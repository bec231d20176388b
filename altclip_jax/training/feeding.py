"""The data of a run, as its steps take it: opened sources, and features looked up by the ids that batches bring."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Int

from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import HostBatch, Stream
from altclip_jax.data.image_text_stream import ImageTextStream
from altclip_jax.data.loader import Loader
from altclip_jax.data.samples import ImageText, ImageTextSource, SampleError
from altclip_jax.data.sources import Mixture, open_sources
from altclip_jax.data.text_pair_stream import TextPairStream
from altclip_jax.processing.processor import AltCLIPProcessor
from altclip_jax.processing.tokenizer import BaseTokenizer
from altclip_jax.training.config import DataSettings, RunConfig, SourceSettings, made_augmentation
from altclip_jax.training.features import Features


class Lookup(NamedTuple):
    """Features that stand in a batch instead of what they were computed of."""

    name: str  # in the batch, such as "image_features"
    by: str  # the array of ids that it is looked up by, such as "picture"
    features: Features

    def added(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the arrays of a batch with the features beside them."""
        return {**arrays, self.name: self.features.rows[arrays[self.by]]}

    def added_to(self, walk: Callable[..., Iterator[HostBatch]]) -> Callable[..., Iterator[HostBatch]]:
        """Returns a walk over the same samples whose batches have the features."""

        def walked(*arguments: Any, **options: Any) -> Iterator[HostBatch]:
            for batch in walk(*arguments, **options):
                yield dataclasses.replace(batch, arrays=self.added(batch.arrays))

        return walked


class Feeder:
    """Iterates over batches ready for the device; a context that stops its threads."""

    def __init__(self, loader: Loader, lookup: Lookup | None):
        """Joins a loader with the features that it does not bring."""
        self._loader, self._lookup = loader, lookup

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loader.close()

    def __iter__(self) -> Iterator[tuple[HostBatch, dict[str, np.ndarray]]]:
        for batch in self._loader:
            begun = time.perf_counter()
            arrays = for_device(batch.arrays, self._lookup)
            waited = batch.waited + time.perf_counter() - begun
            yield dataclasses.replace(batch, waited=waited), arrays


class Coming:
    """The next batch, fetched while a step is under way, so that it is known in time if there is none."""

    def __init__(self, batches: Iterator[tuple[HostBatch, dict[str, np.ndarray]]]):
        """Fetches the first."""
        self._batches = batches
        self._batch: tuple[HostBatch, dict[str, np.ndarray]] | None = None
        self.error: Exception | None = None
        self._fetch()

    def take(self, *, last: bool) -> tuple[HostBatch, dict[str, np.ndarray]]:
        """Returns it, and fetches the one after it unless it is the last."""
        assert self._batch is not None
        batch, self._batch = self._batch, None
        if not last:
            self._fetch()
        return batch

    def _fetch(self) -> None:
        try:
            self._batch = next(self._batches, None)
        except Exception as error:
            self.error = error


def for_device(arrays: Mapping[str, np.ndarray], lookup: Lookup | None) -> dict[str, np.ndarray]:
    """Returns the arrays that a step takes: with looked-up features, without ids."""
    whole = arrays if lookup is None else lookup.added(arrays)
    return {name: values for name, values in whole.items() if name not in ("example", "picture")}


def feed(
    stream: Stream,
    config: RunConfig,
    folder: Path,
    *,
    first_step: int,
    rows: Int[np.ndarray, " mine"],
    lookup: Lookup | None,
) -> Feeder:
    """Starts to load the batches of a run from `first_step` on."""
    data = config.data
    bad = BadSamples(folder / "bad_samples.jsonl", max_bad_share=data.max_bad_share)
    loader = Loader(
        stream,
        config.batch_size,
        first_step=first_step,
        last_step=config.steps,
        rows=rows,
        threads=data.threads,
        prefetch=data.prefetch,
        bad_samples=bad,
    )
    return Feeder(loader, lookup)


def image_text_stream(
    data: DataSettings,
    which: tuple[SourceSettings, ...],
    processor: AltCLIPProcessor,
    seed: int,
    *,
    augmented: bool = False,
    features: Features | None = None,
) -> ImageTextStream:
    """Opens pictures with captions; with `features` pictures are not read, and those without are bad samples."""
    mixture = open_sources([source.spec() for source in which], "image_text")
    if features is not None and (lost := features.missing):
        mixture = _without(mixture, lost)
    augmentation = made_augmentation(data.augmentation) if augmented else None
    return ImageTextStream(
        mixture,
        processor,
        seed=seed,
        max_length=data.max_length,
        augmentation=augmentation,
        decode_images=features is None,
        languages=data.languages,
    )


def text_pair_stream(
    config: RunConfig, which: tuple[SourceSettings, ...], teacher: BaseTokenizer | None, student: BaseTokenizer
) -> TextPairStream:
    """Opens parallel text; without the teacher's tokenizer its side is left out."""
    assert config.teacher is not None
    return TextPairStream(
        open_sources([source.spec() for source in which], "text_pairs"),
        teacher,
        student,
        seed=config.seed,
        max_length=config.data.max_length,
        teacher_max_length=config.teacher.max_length,
    )


class _WithoutPictures:
    """A source whose samples are bad if one of their pictures is."""

    def __init__(self, source: ImageTextSource, lost: frozenset[int]):
        self._source, self._lost = source, lost
        self.faults, self.groups = source.faults, source.groups

    def __len__(self) -> int:
        return len(self._source)

    def first_picture(self, index: int) -> int:
        return self._source.first_picture(index)

    def read(self, index: int) -> ImageText:
        sample = self._source.read(index)
        if not self._lost.isdisjoint(range(self.first_picture(index), self.first_picture(index + 1))):
            raise SampleError(sample.name, "one of its pictures could not be read when their features were computed")
        return sample


def _without(mixture: Mixture[ImageTextSource], lost: frozenset[int]) -> Mixture[ImageTextSource]:
    sources: list[Any] = []
    first = 0
    for source in mixture.sources:
        count = source.first_picture(len(source))
        own = frozenset(picture - first for picture in lost if first <= picture < first + count)
        sources.append(_WithoutPictures(source, own) if own else source)
        first += count
    return Mixture(tuple(sources), mixture.weights)
