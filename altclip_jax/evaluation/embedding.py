"""Embeddings of whole collections, each picture and each text once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from altclip_jax.data.ahead import Ahead, in_batches
from altclip_jax.data.augment import Augmentation
from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import keep_tokenizers_single
from altclip_jax.data.pixels import Pixels
from altclip_jax.data.samples import Picture, SampleError
from altclip_jax.inference import encoders
from altclip_jax.inference.pipeline import AltCLIP

Progress = Callable[[int], None]
Known = dict[Path | None, np.ndarray]


def embed_pictures(
    clip: AltCLIP,
    pictures: Sequence[Picture],
    bad: BadSamples,
    *,
    batch_size: int = 32,
    threads: int = 4,
    progress: Progress | None = None,
    known: Known | None = None,
) -> tuple[Float32[np.ndarray, "readable projection"], Int[np.ndarray, " readable"]]:
    """Returns the unit embeddings of the pictures that can be read, and their places among `pictures`.

    Args:
        clip: The model.
        pictures: Read here, each once.
        bad: Is told those that cannot be read.
        batch_size: Pictures that the model sees at once.
        threads: How many decode.
        progress: Called with the number of pictures done.
        known: Files whose embeddings are known; what is embedded here is added.

    Raises:
        TooManyBadSamples: `bad` allows no more.
    """
    known = {} if known is None else known
    at_once = encoders.pictures_at_once(clip.params)
    encode = functools.partial(encoders.encode_images, clip.model, clip.params, at_once=at_once)
    pixels = Pixels(clip.processor.image_processor, Augmentation())
    rows = {place: known[picture.file] for place, picture in enumerate(pictures) if picture.file in known}
    unknown = [place for place in range(len(pictures)) if place not in rows]
    if progress and rows:
        progress(len(rows))

    def decoded(place: int) -> tuple[int, np.ndarray | SampleError]:
        try:
            return place, pixels(pictures[place].name, pictures[place], None)
        except SampleError as error:
            return place, error

    ahead = Ahead(in_batches(unknown, batch_size), decoded, list, threads=threads, ahead=2)
    try:
        for done, _ in ahead:
            bad.record([], [value for _, value in done if isinstance(value, SampleError)])
            good = [(place, value) for place, value in done if not isinstance(value, SampleError)]
            if good:
                found = encoders.run_padded(encode, batch_size, np.stack([value for _, value in good]))
                rows |= {place: row for (place, _), row in zip(good, found, strict=True)}
            if progress:
                progress(len(done))
    finally:
        ahead.close()
    places = sorted(rows)
    known |= {file: rows[place] for place in places if (file := pictures[place].file) is not None}
    none = np.zeros((0, clip.model.config.projection_dim), np.float32)
    return np.stack([rows[place] for place in places]) if places else none, np.array(places, np.int64)


def embed_texts(
    clip: AltCLIP, texts: Sequence[str], *, batch_size: int = 64, progress: Progress | None = None
) -> Float32[np.ndarray, "texts projection"]:
    """Returns unit embeddings; equal texts are embedded once, so theirs are equal bit for bit."""
    keep_tokenizers_single()
    places: dict[str, int] = {}
    of_texts = [places.setdefault(text, len(places)) for text in texts]
    rows = clip.encode_text(list(places), batch_size=batch_size, progress=progress)
    return rows[of_texts]
