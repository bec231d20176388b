"""Samples as arrays: pictures with captions, and pairs of texts, each a function of (seed, step, row)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypedDict, Unpack

import numpy as np
from jaxtyping import Bool, Float, Int32, Integer

from altclip_jax.data.augment import Augmentation, generator_for
from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import Fault, HostBatch, Loaded, Place
from altclip_jax.data.order import Order, hash_numbers
from altclip_jax.data.pixels import Pixels
from altclip_jax.data.samples import Caption, ImageText, ImageTextSource, SampleError, Source, TextPair
from altclip_jax.data.sources import AnySource, Mixture
from altclip_jax.data.walk import Share, walk
from altclip_jax.processing.processor import AltCLIPProcessor

_ATTEMPTS = 20
# What a number is drawn for: the last argument but those of the draw itself of `Stream._chance`.
CAPTION, PICTURE, AUGMENTATION, REPLACEMENT = range(4)
Tokenizer = Callable[..., dict[str, Any]]  # called as AltCLIPTokenizer is


class WalkOptions(TypedDict, total=False):
    """How everything is walked over.

    Attributes:
        threads: How many read and decode.
        bad_samples: Is told the bad ones.
        share: Of what is walked over, see `walk`.
    """

    threads: int
    bad_samples: BadSamples | None
    share: Share


class _Picked(NamedTuple):
    """A sample in a walk over everything, and which of its pictures."""

    source: int
    sample: int
    picture: int = 0


class Stream(Generic[AnySource]):
    """Samples of a mixture as arrays; the methods may be called by many threads.

    Attributes:
        mixture: Where the samples come from.
        seed: Decides their order and all that is drawn.
    """

    def __init__(self, mixture: Mixture[AnySource], seed: int):
        """Lays out the order."""
        self.mixture, self.seed = mixture, seed
        groups = [source.groups for source in mixture.sources]
        self._order = Order(seed, [len(source) for source in mixture.sources], mixture.weights, groups)
        self._first_ids = mixture.first_ids

    def choose(self, step: int, rows: Integer[np.ndarray, " rows"], batch_size: int) -> list[Place]:
        """Returns which samples stand in rows of a step's global batch."""
        sources, indices = self._order.locate(step, rows, batch_size)
        return [Place(step, *place) for place in zip(rows.tolist(), sources.tolist(), indices.tolist(), strict=True)]

    def load(self, place: Place) -> Loaded:
        """Reads and decodes a sample, or another one of the same source if that one is bad."""
        faults: list[Fault] = []
        size = len(self.mixture.sources[place.source])
        wanted = place
        for attempt in range(_ATTEMPTS):
            try:
                loaded = self._load(wanted)
            except SampleError as error:
                faults.append(Fault(self._example(wanted), error))
                wanted = place._replace(sample=self._chance(place, REPLACEMENT, attempt) % size)
            else:
                return Loaded(loaded.example, loaded.name, loaded.language, loaded.values, tuple(faults))
        return Loaded(faults[0].example, faults[0].error.name, None, None, tuple(faults))

    def collate(self, rows: Sequence[Loaded]) -> dict[str, np.ndarray]:
        """Makes arrays of loaded rows."""
        raise NotImplementedError

    def prepare(self, step: int, row: int, batch_size: int) -> dict[str, np.ndarray]:
        """Returns the arrays of one row of a step's global batch, without an axis of rows.

        Raises:
            SampleError: neither its sample nor any in its place can be used.
        """
        loaded = self.load(self.choose(step, np.array([row]), batch_size)[0])
        if loaded.values is None:
            raise loaded.faults[0].error
        return {name: array[0] for name, array in self.collate([loaded]).items()}

    def _load(self, place: Place) -> Loaded:
        """Reads and decodes what stands in a place.

        Raises:
            SampleError: it cannot be used.
        """
        raise NotImplementedError

    def _chance(self, place: Place, purpose: int, *numbers: int) -> int:
        """Returns a number from 0 to 2**64 - 1 that belongs to a row of a step."""
        return hash_numbers(self.seed, place.step, place.row, purpose, *numbers)

    def _example(self, job: Place | _Picked) -> int:
        """Returns the id of a sample over all sources."""
        return self._first_ids[job.source] + job.sample

    def _examples(self) -> Iterator[_Picked]:
        for place, source in enumerate(self.mixture.sources):
            for index in range(len(source)):
                yield _Picked(place, index)

    def _walk(
        self,
        jobs: Iterator[_Picked],
        load: Callable[[_Picked], list[Loaded]],
        collate: Callable[[Sequence[Loaded]], dict[str, np.ndarray]],
        batch_size: int,
        **options: Unpack[WalkOptions],
    ) -> Iterator[HostBatch]:
        return walk(self.mixture, jobs, load, collate, self._example, batch_size, **options)


class ImageTextStream(Stream[ImageTextSource]):
    """Pictures with one of their captions each.

    Arrays: input_ids and attention_mask, int32 (rows, max_length); pixel_values, float32 (rows, 3, height, width), or
    pictures, uint8 (rows, height, width, 3), which are a quarter of that and become it by `pixel_table`; example and
    picture, int64 (rows,), the ids of the sample and of its picture over all sources.
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
        as_bytes: bool = False,
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
            as_bytes: Give pictures instead of pixel_values.
            languages: How likely each language is where a sample has captions in several; those that are not named
                weigh 1. None: each caption of a sample is as likely as the others.

        Raises:
            ValueError: weights that are not numbers from 0 on, or a processor that makes pictures of varying size.
        """
        wrong = [f"{name}: {weight}" for name, weight in (languages or {}).items() if not 0 <= weight < math.inf]
        if wrong:
            raise ValueError(f"The weights of languages must be numbers from 0 on, got {', '.join(wrong)}.")
        super().__init__(sources, seed)
        self._tokenizer, self._max_length = processor.tokenizer, max_length
        self._languages = None if languages is None else dict(languages)
        self._augmented = augmentation is not None and not augmentation.is_off
        self._pixels = Pixels(processor.image_processor, augmentation or Augmentation()) if decode_images else None
        self._as_bytes = as_bytes
        self._first_pictures = np.cumsum([0, *(source.first_picture(len(source)) for source in sources.sources)])

    @property
    def picture_count(self) -> int:
        """The number of pictures in all sources; their ids are less."""
        return int(self._first_pictures[-1])

    @property
    def pixel_table(self) -> Float[np.ndarray, "3 256"] | None:
        """What makes pixel_values of pictures; None where batches have no pictures."""
        return self._pixels.table if self._pixels is not None and self._as_bytes else None

    def collate(self, rows: Sequence[Loaded]) -> dict[str, np.ndarray]:
        """Makes arrays of loaded rows; which, is decided by what was loaded."""
        values = [row.values or {} for row in rows]
        arrays = {"example": np.array([row.example for row in rows], np.int64)}
        if "text" in values[0]:
            arrays |= _tokenize(self._tokenizer, [value["text"] for value in values], self._max_length)
        if "picture" in values[0]:
            arrays["picture"] = np.array([value["picture"] for value in values], np.int64)
        if "pixels" in values[0]:
            name = "pictures" if self._as_bytes else "pixel_values"
            arrays[name] = np.stack([value["pixels"] for value in values])
        return arrays

    def all_examples(self, batch_size: int, **options: Unpack[WalkOptions]) -> Iterator[HostBatch]:
        """Yields each sample once, with its first caption and its first picture."""

        def load(job: _Picked) -> list[Loaded]:
            sample = self._read(job)
            return [self._loaded(job, sample, caption=sample.captions[0], pictured=True)]

        return self._walk(self._examples(), load, self.collate, batch_size, **options)

    def all_captions(self, batch_size: int, **options: Unpack[WalkOptions]) -> Iterator[HostBatch]:
        """Yields every caption of every sample, without pictures: input_ids, attention_mask and example."""

        def load(job: _Picked) -> list[Loaded]:
            sample = self._read(job)
            return [self._loaded(job, sample, caption=caption) for caption in sample.captions]

        return self._walk(self._examples(), load, self.collate, batch_size, **options)

    def all_pictures(
        self, batch_size: int, *, but: Bool[np.ndarray, " pictures"] | None = None, **options: Unpack[WalkOptions]
    ) -> Iterator[HostBatch]:
        """Yields every picture of every sample, without captions: pixel_values, picture and example.

        Args:
            batch_size: Rows of a batch; the last is smaller.
            but: By their ids, the pictures that are left out; what changes in it later has no effect.
            options: See `WalkOptions`.
        """
        left_out = None if but is None else but.copy()  # jobs are looked at as they are needed

        def load(job: _Picked) -> list[Loaded]:
            return [self._loaded(job, self._read(job), pictured=True)]

        jobs = (job for job in self._pictures() if left_out is None or not left_out[self._picture_id(job)])
        return self._walk(jobs, load, self.collate, batch_size, **options)

    def _load(self, place: Place) -> Loaded:
        sample = self._read(place)
        caption = _choose_caption(sample, self._languages, self._chance(place, CAPTION))
        job = _Picked(place.source, place.sample, self._chance(place, PICTURE) % len(sample.pictures))
        generator = generator_for(self.seed, place.step, place.row, AUGMENTATION) if self._augmented else None
        return self._loaded(job, sample, caption=caption, pictured=True, generator=generator)

    def _read(self, job: _Picked | Place) -> ImageText:
        return self.mixture.sources[job.source].read(job.sample)

    def _loaded(
        self,
        job: _Picked,
        sample: ImageText,
        *,
        caption: Caption | None = None,
        pictured: bool = False,
        generator: np.random.Generator | None = None,
    ) -> Loaded:
        values: dict[str, Any] = {} if caption is None else {"text": caption.text}
        if pictured:
            values["picture"] = self._picture_id(job)
            if self._pixels is not None:
                decode = self._pixels.cropped if self._as_bytes else self._pixels
                values["pixels"] = decode(sample.name, sample.pictures[job.picture], generator)
        return Loaded(self._example(job), sample.name, caption.language if caption else None, values)

    def _picture_id(self, job: _Picked) -> int:
        first = self.mixture.sources[job.source].first_picture(job.sample)
        return int(self._first_pictures[job.source]) + first + job.picture

    def _pictures(self) -> Iterator[_Picked]:
        for job in self._examples():
            source = self.mixture.sources[job.source]
            for picture in range(source.first_picture(job.sample + 1) - source.first_picture(job.sample)):
                yield job._replace(picture=picture)


class TextPairStream(Stream[Source[TextPair]]):
    """Texts that the teacher reads with their translations, which the student reads.

    Arrays: input_ids and attention_mask of the translations, int32 (rows, max_length); teacher_input_ids and
    teacher_attention_mask, int32 (rows, teacher_max_length); example, int64 (rows,), the id of the pair over all
    sources.
    """

    def __init__(
        self,
        sources: Mixture[Source[TextPair]],
        teacher_tokenizer: Tokenizer | None,
        student_tokenizer: Tokenizer,
        *,
        seed: int,
        max_length: int,
        teacher_max_length: int = 77,
    ):
        """Lays out the order.

        Args:
            sources: From `open_sources(specs, "text_pairs")`.
            teacher_tokenizer: None: there are no teacher arrays, because the teacher's embeddings are known.
            student_tokenizer: Called as `AltCLIPTokenizer` is, and so is the teacher's.
            seed: Decides the order.
            max_length: The student's texts are cut and padded to this many tokens.
            teacher_max_length: The teacher's likewise.
        """
        super().__init__(sources, seed)
        self._teacher, self._student = teacher_tokenizer, student_tokenizer
        self._max_length, self._teacher_max_length = max_length, teacher_max_length

    def collate(self, rows: Sequence[Loaded]) -> dict[str, np.ndarray]:
        """Makes arrays of loaded rows."""
        targets = [(row.values or {})["target"] for row in rows]
        return {**self._collate_sources(rows), **_tokenize(self._student, targets, self._max_length)}

    def all_examples(self, batch_size: int, **options: Unpack[WalkOptions]) -> Iterator[HostBatch]:
        """Yields each pair once."""
        return self._walk(self._examples(), self._load_all, self.collate, batch_size, **options)

    def all_sources(
        self, batch_size: int, *, but: Bool[np.ndarray, " pairs"] | None = None, **options: Unpack[WalkOptions]
    ) -> Iterator[HostBatch]:
        """Yields each pair once, but only what the teacher reads: teacher arrays and example.

        Args:
            batch_size: Rows of a batch; the last is smaller.
            but: By their ids, the pairs that are left out; what changes in it later has no effect.
            options: See `WalkOptions`.

        Raises:
            ValueError: there is no teacher's tokenizer.
        """
        if self._teacher is None:
            raise ValueError("This stream was made without a teacher_tokenizer, so it has no sources for a teacher.")
        left_out = None if but is None else but.copy()  # jobs are looked at as they are needed
        jobs = (job for job in self._examples() if left_out is None or not left_out[self._example(job)])
        return self._walk(jobs, self._load_all, self._collate_sources, batch_size, **options)

    def _load(self, place: Place | _Picked) -> Loaded:
        pair = self.mixture.sources[place.source].read(place.sample)
        return Loaded(self._example(place), pair.name, pair.language, {"source": pair.source, "target": pair.target})

    def _load_all(self, job: _Picked) -> list[Loaded]:
        return [self._load(job)]

    def _collate_sources(self, rows: Sequence[Loaded]) -> dict[str, np.ndarray]:
        arrays = {"example": np.array([row.example for row in rows], np.int64)}
        if self._teacher is None:
            return arrays
        sources = [(row.values or {})["source"] for row in rows]
        return arrays | _tokenize(self._teacher, sources, self._teacher_max_length, "teacher_")


def _tokenize(
    tokenizer: Tokenizer, texts: list[str], max_length: int, prefix: str = ""
) -> dict[str, Int32[np.ndarray, "rows max_length"]]:
    """Returns input_ids and attention_mask, their names after `prefix`, cut and padded to `max_length` tokens."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=max_length, return_tensors="np")
    return {f"{prefix}{name}": encoded[name].astype(np.int32) for name in ("input_ids", "attention_mask")}


def _choose_caption(sample: ImageText, weights: Mapping[str, float] | None, chance: int) -> Caption:
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
