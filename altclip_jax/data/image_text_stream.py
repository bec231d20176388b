"""Pictures with captions as arrays: a function of (seed, step, row)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from altclip_jax.data.augment import Augmentation, generator_for
from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import HostBatch, Loaded, Place, one_row, tokenized
from altclip_jax.data.draws import AUGMENTATION, CAPTION, PICTURE, Draws
from altclip_jax.data.pixels import Pixels
from altclip_jax.data.samples import Caption, ImageText, ImageTextSource, SampleError
from altclip_jax.data.sources import Mixture
from altclip_jax.data.walk import Share, walk
from altclip_jax.processing.processor import AltCLIPProcessor


class _Picked(NamedTuple):
    """A sample in a walk over everything, and which of its pictures."""

    source: int
    sample: int
    picture: int = 0


class ImageTextStream:
    """Pictures with one of their captions each.

    Arrays: input_ids and attention_mask, int32 (rows, max_length); pixel_values, float32 (rows, 3, height, width);
    example and picture, int64 (rows,), the ids of the sample and of its picture over all sources.
    """

    def __init__(
        self,
        sources: Mixture[ImageTextSource],
        processor: AltCLIPProcessor,
        *,
        seed: int,
        max_length: int,
        augmentation: Augmentation | None = None,
        decode_images: bool = True,
        languages: Mapping[str, float] | None = None,
    ):
        """Lays out the order.

        Args:
            sources: From `open_sources(specs, "image_text")`.
            processor: Makes ids of the captions and arrays of the pictures.
            seed: Decides the order, the captions, the pictures and what augmentation does.
            max_length: Captions are cut and padded to this many tokens.
            augmentation: Of `load`, not of walks over everything.
            decode_images: Without, there are no pixel_values and pictures are not read: their features are known.
            languages: How likely each language is where a sample has captions in several; those that are not named
                weigh 1. None: each caption of a sample is as likely as the others.

        Raises:
            ValueError: weights that are not numbers from 0 on, or a processor that makes pictures of varying size.
        """
        wrong = [f"{name}: {weight}" for name, weight in (languages or {}).items() if not 0 <= weight < math.inf]
        if wrong:
            raise ValueError(f"The weights of languages must be numbers from 0 on, got {', '.join(wrong)}.")
        self._draws = Draws(sources, seed)
        self._tokenizer, self._max_length = processor.tokenizer, max_length
        self._languages = None if languages is None else dict(languages)
        self._augmented = augmentation is not None and not augmentation.is_off
        self._pixels = Pixels(processor.image_processor, augmentation or Augmentation()) if decode_images else None
        self._first_pictures = np.cumsum([0, *(source.first_picture(len(source)) for source in sources.sources)])

    @property
    def mixture(self) -> Mixture[ImageTextSource]:
        """Where the samples come from."""
        return self._draws.mixture

    @property
    def picture_count(self) -> int:
        """The number of pictures in all sources; their ids are less."""
        return int(self._first_pictures[-1])

    def prepare(self, step: int, row: int, batch_size: int) -> dict[str, np.ndarray]:
        """Returns the arrays of one row of a step's global batch, without an axis of rows.

        Raises:
            SampleError: neither its sample nor any in its place can be used.
        """
        return one_row(self, step, row, batch_size)

    def plan(self, step: int, rows: Integer[np.ndarray, " rows"], batch_size: int) -> list[Place]:
        """Returns which samples stand in rows of a step's global batch."""
        return self._draws.plan(step, rows, batch_size)

    def load(self, place: Place) -> Loaded:
        """Reads and decodes a sample, or another one in its place."""
        return self._draws.load(place, self._drawn)

    def collate(self, rows: Sequence[Loaded]) -> dict[str, np.ndarray]:
        """Makes arrays of loaded rows; which, is decided by what was loaded."""
        values = [row.values or {} for row in rows]
        arrays = {"example": np.array([row.example for row in rows], np.int64)}
        if "text" in values[0]:
            arrays |= tokenized(self._tokenizer, [value["text"] for value in values], self._max_length)
        if "picture" in values[0]:
            arrays["picture"] = np.array([value["picture"] for value in values], np.int64)
        if "pixels" in values[0]:
            arrays["pixel_values"] = np.stack([value["pixels"] for value in values])
        return arrays

    def all_examples(
        self, batch_size: int, *, threads: int = 4, bad_samples: BadSamples | None = None, share: Share = (0, 1)
    ) -> Iterator[HostBatch]:
        """Yields each sample once, with its first caption and its first picture."""

        def load(job: _Picked) -> list[Loaded]:
            sample = self._read(job)
            pixels = self._pixel_values(sample, job)
            caption = sample.captions[0]
            values = {"text": caption.text, "picture": self._picture_id(job), **pixels}
            return [Loaded(self._example(job), sample.name, caption.language, values)]

        return self._walk(load, self._examples(), batch_size, threads, bad_samples, share)

    def all_captions(
        self, batch_size: int, *, threads: int = 4, bad_samples: BadSamples | None = None, share: Share = (0, 1)
    ) -> Iterator[HostBatch]:
        """Yields every caption of every sample, without pictures: input_ids, attention_mask and example."""

        def load(job: _Picked) -> list[Loaded]:
            sample = self._read(job)
            return [
                Loaded(self._example(job), sample.name, caption.language, {"text": caption.text})
                for caption in sample.captions
            ]

        return self._walk(load, self._examples(), batch_size, threads, bad_samples, share)

    def all_pictures(
        self,
        batch_size: int,
        *,
        threads: int = 4,
        bad_samples: BadSamples | None = None,
        share: Share = (0, 1),
        but: Bool[np.ndarray, " pictures"] | None = None,
    ) -> Iterator[HostBatch]:
        """Yields every picture of every sample, without captions: pixel_values, picture and example.

        Args:
            batch_size: Rows of a batch; the last is smaller.
            threads: How many read and decode.
            bad_samples: Is told the bad ones.
            share: Of the pictures, see `walk`.
            but: By their ids, the pictures that are left out; what changes in it later has no effect.
        """
        left_out = None if but is None else but.copy()  # jobs are looked at as they are needed

        def load(job: _Picked) -> list[Loaded]:
            sample = self._read(job)
            values = {"picture": self._picture_id(job), **self._pixel_values(sample, job)}
            return [Loaded(self._example(job), sample.name, None, values)]

        jobs = (job for job in self._pictures() if left_out is None or not left_out[self._picture_id(job)])
        return self._walk(load, jobs, batch_size, threads, bad_samples, share)

    def _drawn(self, place: Place) -> Loaded:
        sample = self._read(place)
        caption = _chosen(sample, self._languages, self._draws.chance(place, CAPTION))
        job = _Picked(place.source, place.sample, self._draws.chance(place, PICTURE) % len(sample.pictures))
        generator = None
        if self._augmented:
            generator = generator_for(self._draws.seed, place.step, place.row, AUGMENTATION)
        values = {"text": caption.text, "picture": self._picture_id(job), **self._pixel_values(sample, job, generator)}
        return Loaded(self._example(job), sample.name, caption.language, values)

    def _read(self, job: _Picked | Place) -> ImageText:
        return self.mixture.sources[job.source].read(job.sample)

    def _pixel_values(
        self, sample: ImageText, job: _Picked, generator: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        if self._pixels is None:
            return {}
        return {"pixels": self._pixels(sample.name, sample.pictures[job.picture], generator)}

    def _example(self, job: _Picked) -> int:
        return self._draws.example(job.source, job.sample)

    def _picture_id(self, job: _Picked) -> int:
        first = self.mixture.sources[job.source].first_picture(job.sample)
        return int(self._first_pictures[job.source]) + first + job.picture

    def _examples(self) -> Iterator[_Picked]:
        for place, source in enumerate(self.mixture.sources):
            for index in range(len(source)):
                yield _Picked(place, index)

    def _pictures(self) -> Iterator[_Picked]:
        for job in self._examples():
            source = self.mixture.sources[job.source]
            for picture in range(source.first_picture(job.sample + 1) - source.first_picture(job.sample)):
                yield job._replace(picture=picture)

    def _walk(
        self,
        load: Callable[[_Picked], list[Loaded]],
        jobs: Iterator[_Picked],
        batch_size: int,
        threads: int,
        bad_samples: BadSamples | None,
        share: Share,
    ) -> Iterator[HostBatch]:
        return walk(
            self.mixture,
            jobs,
            load,
            self.collate,
            self._example,
            batch_size,
            threads=threads,
            bad_samples=bad_samples,
            share=share,
        )


def _chosen(sample: ImageText, weights: Mapping[str, float] | None, chance: int) -> Caption:
    captions = sample.captions
    if weights is None:
        return captions[chance % len(captions)]
    languages = list(dict.fromkeys(caption.language for caption in captions))
    ends = np.cumsum([1.0 if language is None else weights.get(language, 1.0) for language in languages])
    if not ends[-1]:
        raise SampleError(sample.name, "its captions are only in languages of weight 0")
    # the upper half of the number chooses the language, the lower half the caption
    language = languages[int(np.searchsorted(ends, (chance >> 32) / 2**32 * ends[-1], "right"))]
    of_language = [caption for caption in captions if caption.language == language]
    return of_language[(chance & 0xFFFFFFFF) % len(of_language)]
