"""Zero-shot classification by a model on a data set: from pictures and names to numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.samples import Picture
from altclip_jax.evaluation.classes import Classes, Templates, templates_for
from altclip_jax.evaluation.labelled import Labelled
from altclip_jax.evaluation.zero_shot import ZeroShot, classify, ensemble
from altclip_jax.inference.pipeline import AltCLIP
from altclip_jax.sweep import Known, Progress, embed_pictures, embed_texts

_WORST, _TAKEN_FOR = 10, 3


@dataclass(frozen=True, kw_only=True)
class LanguageZeroShot:
    """Classification by the names in one language.

    Attributes:
        result: About `pictures`, with classes counted in `classes`.
        pictures: The places of the pictures whose class has a name in the language.
        classes: The classes that have one.
        templates: How many prompts each name was put into.
    """

    result: ZeroShot
    pictures: Int[np.ndarray, " pictures"]
    classes: Int[np.ndarray, " classes"]
    templates: int


@dataclass(frozen=True, kw_only=True)
class ZeroShotRun:
    """What was classified and what came of it.

    Attributes:
        model: Its name.
        classes: All of them.
        pictures: Those that could be read.
        images: Their unit embeddings.
        found: By language.
        left_out: Samples that could not be used, and why.
    """

    model: str
    classes: Classes
    pictures: tuple[Picture, ...]
    images: Float32[np.ndarray, "pictures projection"]
    found: dict[str, LanguageZeroShot]
    left_out: dict[str, str]

    def name(self, language: str, place: int) -> str:
        """Returns the first name of a class, counted among those with a name in the language."""
        return self.classes.names[language][int(self.found[language].classes[place])][0]

    def metrics(self) -> dict[str, dict[str, float]]:
        """Returns the numbers of each language by their names."""
        return {
            language: {
                "top1": found.result.top(1),
                "top5": found.result.top(5),
                "mean_per_class": found.result.mean_per_class,
            }
            for language, found in self.found.items()
        }

    def summary(self) -> dict[str, Any]:
        """Returns the numbers as plain values for JSON."""
        return {
            "task": "zero-shot",
            "model": self.model,
            "pictures": len(self.pictures),
            "classes": len(self.classes.keys),
            "languages": {language: self._plain(language) for language in self.found},
            "left_out": self.left_out,
        }

    def _plain(self, language: str) -> dict[str, Any]:
        found = self.found[language]
        result, count = found.result, len(found.classes)
        calibration = result.calibration()
        return {
            "pictures": len(found.pictures),
            "classes": count,
            "templates": found.templates,
            "top1": result.top(1),
            "top5": result.top(5),
            "mean_per_class": result.mean_per_class,
            "calibration_error": calibration.error,
            "chance": {"top1": 1 / count, "top5": min(5 / count, 1.0)},
            "worst_classes": [self._worst(language, place) for place in result.worst(_WORST)],
            "calibration": [
                {"up_to": float(edge), "pictures": int(number), "confidence": float(sure), "accuracy": float(right)}
                for edge, number, sure, right in zip(
                    calibration.edges[1:], calibration.counts, calibration.confidence, calibration.accuracy, strict=True
                )
                if number
            ],
        }

    def _worst(self, language: str, place: int) -> dict[str, Any]:
        found = self.found[language]
        count = int(found.result.counts[place])
        return {
            "class": self.classes.keys[int(found.classes[place])],
            "name": self.name(language, place),
            "pictures": count,
            "accuracy": float(found.result.per_class[place]),
            "taken_for": [
                {
                    "class": self.classes.keys[int(found.classes[other])],
                    "name": self.name(language, other),
                    "share": times / count,
                }
                for other, times in found.result.confusions(place)[:_TAKEN_FOR]
            ],
        }


def evaluate_zero_shot(
    clip: AltCLIP,
    labelled: Sequence[Labelled],
    classes: Classes,
    templates: Templates,
    bad: BadSamples,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
    known: Known | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ZeroShotRun:
    """Classifies pictures by the names of each language; the pictures are embedded once.

    In a language in which some classes have no name these classes and their pictures are left out.

    Args:
        clip: The model.
        labelled: From `open_labelled`, for example.
        classes: From `read_classes`, for example.
        templates: By language; see `templates_for`.
        bad: Is told the pictures that cannot be read; they are left out.
        batch_size: Rows that the model sees at once.
        progress: Called with the number of pictures done.
        known: See `embed_pictures`.
        stop: See `embed_pictures`.

    Raises:
        TooManyBadSamples: `bad` allows no more.
        ValueError: labels that are no class, or no picture is left in any language.
    """
    labels = np.array(classes.indices([label for _, label in labelled]), np.int64)
    images, kept = embed_pictures(
        clip,
        [picture for picture, _ in labelled],
        bad,
        batch_size=batch_size,
        progress=progress,
        known=known,
        stop=stop,
    )
    labels = labels[kept]
    scale = float(np.exp(np.asarray(clip.params["logit_scale"], np.float32)))
    found = {}
    for language, names in classes.names.items():
        own = np.array([place for place, of_class in enumerate(names) if of_class], np.int64)
        pictures = np.flatnonzero(np.isin(labels, own))
        if not pictures.size:
            continue
        prompts = templates_for(templates, language)
        texts = [[prompt.replace("{}", name) for name in names[place] for prompt in prompts] for place in own]
        rows = embed_texts(clip, [text for of_class in texts for text in of_class], batch_size=batch_size)
        found[language] = LanguageZeroShot(
            result=classify(
                images[pictures],
                np.searchsorted(own, labels[pictures]),
                ensemble(rows, [len(of_class) for of_class in texts]),
                scale,
            ),
            pictures=pictures,
            classes=own,
            templates=len(prompts),
        )
    if not found:
        raise ValueError(bad.explain("There is no picture left whose class has a name"))
    return ZeroShotRun(
        model=clip.name,
        classes=classes,
        pictures=tuple(labelled[place].picture for place in kept),
        images=images,
        found=found,
        left_out=dict(bad.names),
    )
