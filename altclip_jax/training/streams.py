"""The data of a run: opened sources, and features looked up by the ids that batches bring."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from altclip_jax.data.batches import HostBatch
from altclip_jax.data.samples import ImageTextSource, SampleError, Source, TextPair
from altclip_jax.data.sources import Kind, Mixture, open_sources
from altclip_jax.data.streams import ImageTextStream, TextPairStream
from altclip_jax.processing.processor import AltCLIPProcessor
from altclip_jax.processing.tokenizer import BaseTokenizer
from altclip_jax.sentences import list_some
from altclip_jax.training.config import DataSettings, RunConfig, SourceSettings, make_augmentation
from altclip_jax.training.features import Features


class Lookup(NamedTuple):
    """Features that stand in a batch instead of what they were computed of."""

    name: str  # in the batch, such as "image_features"
    by: str  # the array of ids that it is looked up by, such as "picture"
    features: Features

    def add(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the arrays of a batch with the features beside them.

        Raises:
            ValueError: a row has none.
        """
        ids = arrays[self.by]
        if lost := sorted(set(ids[~self.features.there[ids]].tolist())):
            raise ValueError(
                f"There are no {self.name} of {self.by} {list_some(lost)}, and zeros in their place would be learned"
                " from. Remove features/ in the run's folder, and run the same command again: they are computed anew."
            )
        return {**arrays, self.name: self.features.rows[ids]}

    def add_to(self, walk: Callable[..., Iterator[HostBatch]]) -> Callable[..., Iterator[HostBatch]]:
        """Returns a walk over the same samples whose batches have the features."""

        def walk_with_features(*arguments: Any, **options: Any) -> Iterator[HostBatch]:
            for batch in walk(*arguments, **options):
                yield dataclasses.replace(batch, arrays=self.add(batch.arrays))

        return walk_with_features


def open_mixture(sources: Sequence[SourceSettings], kind: Kind) -> Mixture[Any]:
    """Opens sources of a run; see `open_sources`."""
    return open_sources([source.spec() for source in sources], kind)


def image_text_stream(
    data: DataSettings,
    mixture: Mixture[ImageTextSource],
    processor: AltCLIPProcessor,
    seed: int,
    *,
    augmented: bool = False,
    as_bytes: bool = False,
    features: Features | None = None,
) -> ImageTextStream:
    """Returns pictures with captions; with `features` pictures are not read, and those without are bad samples."""
    if features is not None and (lost := features.missing):
        mixture = _without(mixture, lost, _WithoutPictures)
    augmentation = make_augmentation(data.augmentation) if augmented else None
    return ImageTextStream(
        mixture,
        processor,
        seed=seed,
        max_length=data.max_length,
        augmentation=augmentation,
        decode_images=features is None,
        as_bytes=as_bytes,
        languages=data.languages,
    )


def text_pair_stream(
    config: RunConfig,
    mixture: Mixture[Source[TextPair]],
    teacher: BaseTokenizer | None,
    student: BaseTokenizer,
    *,
    features: Features | None = None,
) -> TextPairStream:
    """Returns parallel text; without the teacher's tokenizer its side is left out, and what `features` lack is bad."""
    assert config.teacher is not None
    if features is not None and (lost := features.missing):
        mixture = _without(mixture, lost, _Without)
    return TextPairStream(
        mixture,
        teacher,
        student,
        seed=config.seed,
        max_length=config.data.max_length,
        teacher_max_length=config.teacher.max_length,
    )


class _Without:
    """A source whose samples are bad if they have no features."""

    reason = "it could not be read when the teacher's features were computed"

    def __init__(self, source: Source[Any], lost: frozenset[int]):
        self._source, self._lost = source, lost
        self.faults, self.groups = source.faults, source.groups

    def __len__(self) -> int:
        return len(self._source)

    @staticmethod
    def first_id(source: Any, index: int) -> int:
        """Returns the first of a sample's ids by which features are known; index may be the number of samples."""
        return index

    def read(self, index: int) -> Any:
        sample = self._source.read(index)
        ids = range(self.first_id(self._source, index), self.first_id(self._source, index + 1))
        if not self._lost.isdisjoint(ids):
            raise SampleError(sample.name, self.reason)
        return sample


class _WithoutPictures(_Without):
    """A source whose samples are bad if one of their pictures has no features."""

    reason = "one of its pictures could not be read when their features were computed"

    def first_picture(self, index: int) -> int:
        return self.first_id(self._source, index)

    @staticmethod
    def first_id(source: Any, index: int) -> int:
        first: int = source.first_picture(index)
        return first


def _without(mixture: Mixture[Any], lost: frozenset[int], kind: type[_Without]) -> Mixture[Any]:
    sources: list[Any] = []
    first = 0
    for source in mixture.sources:
        count = kind.first_id(source, len(source))
        own = frozenset(name - first for name in lost if first <= name < first + count)
        sources.append(kind(source, own) if own else source)
        first += count
    return Mixture(tuple(sources), mixture.weights)
