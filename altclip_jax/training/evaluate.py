"""A run's model on data that it does not learn from: the loss, and retrieval by language against chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from altclip_jax.evaluation.retrieval import AT, chance, recall, retrieval


def image_text_metrics(
    images: Float[np.ndarray, "images width"],
    image_ids: Int[np.ndarray, " images"],
    texts: Float[np.ndarray, "texts width"],
    text_ids: Int[np.ndarray, " texts"],
    languages: Sequence[str],
    log_scale: float,
    block: int,
) -> dict[str, float]:
    """Returns recall in both directions for each language as `retrieval` counts it, their means, and the loss.

    "mean_recall" is the mean over languages, directions and k. For the loss each thing is one pair in each language:
    the first picture and the first text of it.

    Args:
        images: Unit embeddings.
        image_ids: What each shows.
        texts: Unit embeddings.
        text_ids: What each is about.
        languages: Of each text.
        log_scale: Logarithm of the inverse temperature.
        block: Pairs that are compared for the loss.
    """
    found = retrieval(images, image_ids, texts, text_ids, languages, AT)
    if not found:
        raise ValueError("There is nothing to measure: of no text of the evaluation a picture could be read.")
    metrics: dict[str, float] = {}
    losses = []
    things, first_images = np.unique(image_ids, return_index=True)
    for language, recalls in found.items():
        for k in AT:
            metrics[f"{language}/text_to_image@{k}"] = recalls.text_to_image[k]
            metrics[f"{language}/image_to_text@{k}"] = recalls.image_to_text[k]
        named, first_texts = np.unique(text_ids[recalls.texts], return_index=True)
        pairs = texts[recalls.texts][first_texts], images[first_images[np.searchsorted(things, named)]]
        losses.append(_contrastive(*pairs, log_scale, block))
    for k in AT:
        metrics[f"text_to_image@{k}"] = float(np.mean([recalls.text_to_image[k] for recalls in found.values()]))
        metrics[f"image_to_text@{k}"] = float(np.mean([recalls.image_to_text[k] for recalls in found.values()]))
        guesses = [
            guess[k]
            for recalls in found.values()
            for guess in (recalls.text_to_image_chance, recalls.image_to_text_chance)
        ]
        metrics[f"chance@{k}"] = float(np.mean(guesses))
    mean_recall = float(np.mean([recalls.mean_recall for recalls in found.values()]))
    return {**metrics, "mean_recall": mean_recall, "loss": float(np.mean(losses))}


def text_pair_metrics(
    students: Float[np.ndarray, "pairs width"],
    teachers: Float[np.ndarray, "pairs width"],
    sources: Int[np.ndarray, " pairs"],
    languages: Sequence[str],
) -> dict[str, float]:
    """Returns the mean squared error, and how often a translation finds its English sentence, for each language.

    Args:
        students: States of the translations.
        teachers: States of the English sentences.
        sources: Which English sentence it is; the same number for the same sentence.
        languages: Of each translation.
    """
    metrics: dict[str, float] = {}
    errors, everything, items = [], [], []
    for language in dict.fromkeys(languages):
        own = np.flatnonzero(np.array(languages) == language)
        unique, first, right = np.unique(sources[own], return_index=True, return_inverse=True)
        found = recall(_units(students[own]), _units(teachers[own][first]), right, AT)
        for k in AT:
            metrics[f"{language}/text_to_teacher@{k}"] = found[k]
        error = float(np.mean(np.square(students[own] - teachers[own], dtype=np.float64)))
        metrics[f"{language}/loss"] = error
        errors.append(error)
        everything += list(found.values())
        items.append(len(unique))
    for k in AT:
        values = [value for name, value in metrics.items() if name.endswith(f"/text_to_teacher@{k}")]
        metrics[f"text_to_teacher@{k}"] = float(np.mean(values))
        metrics[f"chance@{k}"] = float(np.mean([chance(count, AT)[k] for count in items]))
    return {**metrics, "mean_recall": float(np.mean(everything)), "loss": float(np.mean(errors))}


def summary(metrics: dict[str, float]) -> str:
    """Returns the numbers that belong in a line: loss, recall at 1 and what guessing gives, and of a task its mean."""
    parts = [f"loss {metrics['loss']:.4g}"] if "loss" in metrics else []
    parts += [f"mean recall {metrics['mean_recall']:.1%}"] if "mean_recall" in metrics else []
    for direction in ("text_to_image", "image_to_text", "text_to_teacher"):
        if f"{direction}@1" in metrics:
            parts.append(f"{direction.replace('_', ' ')}@1 {metrics[f'{direction}@1']:.1%}")
    if "chance@1" in metrics:
        parts.append(f"(chance@1 {metrics['chance@1']:.2%})")
    for name, value in metrics.items():
        task, _, rest = name.partition("/")
        if task in ("retrieval", "zero_shot") and rest.count("/") == 1 and rest.endswith(("/mean_recall", "/top1")):
            parts.append(f"{rest.replace('/', ' ').replace('_', ' ')} {value:.1%}")
    return "evaluation  " + "  ".join(parts)


def _contrastive(texts: np.ndarray, images: np.ndarray, log_scale: float, block: int) -> float:
    """The loss over blocks of pairs, in numpy: a check of the training's own, too."""
    losses: list[Any] = []
    for start in range(0, len(texts), block):
        scores = np.exp(log_scale) * texts[start : start + block] @ images[start : start + block].T
        own = np.diagonal(scores)
        norms = [
            np.log(np.exp(scores - scores.max(axis, keepdims=True)).sum(axis)) + scores.max(axis) for axis in (0, 1)
        ]
        losses.append((norms[0] + norms[1]) / 2 - own)
    return float(np.concatenate(losses).mean())


def _units(states: np.ndarray) -> np.ndarray:
    units: np.ndarray = states / np.linalg.norm(states, axis=1, keepdims=True)
    return units
