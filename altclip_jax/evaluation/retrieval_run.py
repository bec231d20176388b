"""Retrieval of a model on a data set: from opened sources to numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.sources import SourceSpec, open_sources
from altclip_jax.evaluation.collection import Collection, collect
from altclip_jax.evaluation.retrieval import TIE, LanguageRecall, retrieval
from altclip_jax.inference.pipeline import AltCLIP
from altclip_jax.sweep import Known, Progress, embed_pictures, embed_texts


@dataclass(frozen=True, kw_only=True)
class RetrievalRun:
    """What was compared and what came of it.

    Attributes:
        model: Its name.
        collection: Without pictures that could not be read; the rows of `images` and `texts` are in its order.
        images: Unit embeddings.
        texts: Unit embeddings.
        found: By language.
        left_out: Samples that could not be used, and why.
    """

    model: str
    collection: Collection
    images: Float32[np.ndarray, "pictures projection"]
    texts: Float32[np.ndarray, "captions projection"]
    found: dict[str, LanguageRecall]
    left_out: dict[str, str]

    def metrics(self) -> dict[str, dict[str, float]]:
        """Returns the numbers of each language by their names."""
        return {
            language: {
                **{f"text_to_image@{k}": value for k, value in recall.text_to_image.items()},
                **{f"image_to_text@{k}": value for k, value in recall.image_to_text.items()},
                "mean_recall": recall.mean_recall,
            }
            for language, recall in self.found.items()
        }

    def summary(self) -> dict[str, Any]:
        """Returns the numbers as plain values for JSON."""
        return {
            "task": "retrieval",
            "model": self.model,
            "pictures": len(self.collection.pictures),
            "captions": sum(len(recall.texts) for recall in self.found.values()),
            "tie": TIE,
            "languages": {language: _plain(recall) for language, recall in self.found.items()},
            "mean": _mean(list(self.found.values())),
            "left_out": self.left_out,
        }


def open_collection(
    data: Sequence[str], languages: Sequence[str] | None = None, bad: BadSamples | None = None
) -> Collection:
    """Opens files of pictures with captions, as `open_sources` does, and reads the captions.

    Raises:
        OSError, ValueError: as `open_sources`.
    """
    specs = [SourceSpec(path=path, languages=languages) for path in data]
    return collect(open_sources(specs, "image_text"), bad or BadSamples())


def evaluate_retrieval(
    clip: AltCLIP,
    collection: Collection,
    bad: BadSamples,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
    known: Known | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> RetrievalRun:
    """Embeds a collection and looks for each picture and each caption.

    Args:
        clip: The model.
        collection: From `open_collection`, for example.
        bad: Is told the pictures that cannot be read; they are left out, and with them what is said of them alone.
        batch_size: Rows that the model sees at once.
        progress: Called with the number of pictures and different texts done.
        known: See `embed_pictures`.
        stop: See `embed_pictures`.

    Raises:
        TooManyBadSamples: `bad` allows no more.
        ValueError: no caption is left.
    """
    images, kept = embed_pictures(
        clip, collection.pictures, bad, batch_size=batch_size, progress=progress, known=known, stop=stop
    )
    collection = replace(
        collection,
        pictures=tuple(collection.pictures[place] for place in kept),
        picture_ids=collection.picture_ids[kept],
    )
    texts = embed_texts(
        clip, [caption.text for caption in collection.captions], batch_size=batch_size, progress=progress
    )
    found = retrieval(images, collection.picture_ids, texts, collection.caption_ids, collection.languages)
    if not found:
        raise ValueError(bad.explain("No caption is left whose picture can be read"))
    return RetrievalRun(
        model=clip.name, collection=collection, images=images, texts=texts, found=found, left_out=dict(bad.names)
    )


def _plain(recall: LanguageRecall) -> dict[str, Any]:
    return {
        "captions": len(recall.texts),
        "pictures": len(recall.images),
        "candidates": recall.candidates,
        **_numbers([recall]),
    }


def _mean(recalls: Sequence[LanguageRecall]) -> dict[str, Any]:
    """The mean over languages, each counting the same."""
    return _numbers(recalls)


def _numbers(recalls: Sequence[LanguageRecall]) -> dict[str, Any]:
    def mean(name: str) -> dict[str, float]:
        each = [getattr(recall, name) for recall in recalls]
        return {str(k): float(np.mean([values[k] for values in each])) for k in each[0]}

    return {
        "text_to_image": mean("text_to_image"),
        "image_to_text": mean("image_to_text"),
        "mean_recall": float(np.mean([recall.mean_recall for recall in recalls])),
        "chance": {
            "text_to_image": mean("text_to_image_chance"),
            "image_to_text": mean("image_to_text_chance"),
            "mean_recall": float(np.mean([recall.chance for recall in recalls])),
        },
    }
