"""Pictures and captions of a data set, each once, and which belong together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.samples import Caption, ImageTextSource, Picture, SampleError
from altclip_jax.data.sources import Mixture

UNKNOWN = "any"
"""The language of captions whose data says none."""


@dataclass(frozen=True)
class Collection:
    """Pictures and captions; those with the same id belong together.

    Attributes:
        pictures: Each once, however many lines name it.
        picture_ids: The thing that each shows.
        captions: All of them, also where two are the same.
        caption_ids: The thing that each is about.
        sample_ids: The thing that each sample of the mixture is about; -1 for those that cannot be used.
    """

    pictures: tuple[Picture, ...]
    picture_ids: Int[np.ndarray, " pictures"]
    captions: tuple[Caption, ...]
    caption_ids: Int[np.ndarray, " captions"]
    sample_ids: Int[np.ndarray, " samples"]

    @property
    def languages(self) -> list[str]:
        """Of each caption."""
        return [caption.language or UNKNOWN for caption in self.captions]


def collect(mixture: Mixture[ImageTextSource], bad: BadSamples) -> Collection:
    """Reads all captions, and no picture.

    A picture is the file that it lies in, or the sample that holds it. Samples with a picture in common are about one
    thing: that is how a table gives several captions to a picture.

    Args:
        mixture: From `open_sources(specs, "image_text")`.
        bad: Is told the samples that cannot be used.

    Raises:
        TooManyBadSamples: `bad` allows no more.
    """
    bad.record_faults(mixture.faults, len(mixture))
    pictures: list[Picture] = []
    places: dict[str, int] = {}  # of the pictures, by where they lie
    samples: list[list[int]] = []  # the pictures of each
    used: list[int] = []  # their ids in the mixture
    captions: list[tuple[int, Caption]] = []  # with their samples
    for first, source in zip(mixture.first_ids, mixture.sources, strict=True):
        for index in range(len(source)):
            try:
                sample = source.read(index)
            except SampleError as error:
                bad.record([first + index], [error])
                continue
            bad.record([first + index], [])
            own = []
            for picture in sample.pictures:
                name = picture.name if picture.file is None else os.path.realpath(picture.file)
                if name not in places:
                    places[name] = len(pictures)
                    pictures.append(picture)
                own.append(places[name])
            captions += [(len(samples), caption) for caption in sample.captions]
            samples.append(own)
            used.append(first + index)
    things = _connected(len(pictures), samples)
    sample_ids = np.full(len(mixture), -1, np.int64)
    sample_ids[used] = [things[own[0]] for own in samples]
    return Collection(
        tuple(pictures),
        things,
        tuple(caption for _, caption in captions),
        np.array([things[samples[sample][0]] for sample, _ in captions], np.int64),
        sample_ids,
    )


def _connected(count: int, groups: Sequence[Sequence[int]]) -> Int[np.ndarray, " count"]:
    """Returns for each of `count` the first of those that it is connected with by groups."""
    parent = list(range(count))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for group in groups:
        roots = {root(place) for place in group}
        for place in roots:
            parent[place] = min(roots)
    return np.array([root(place) for place in range(count)], np.int64)
