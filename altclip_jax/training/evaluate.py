"""A run's model on data that it does not learn from: the loss, and retrieval by language against chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from altclip_jax.data.batches import HostBatch
from altclip_jax.evaluation.retrieval import chance, recall

AT = (1, 5, 10)
Embed = Callable[[dict[str, np.ndarray]], np.ndarray]


def embedded(
    batches: Iterable[HostBatch], embed: Embed, ids: str = "example"
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns (embeddings, ids, languages) of a walk over everything; an unknown language is "any"."""
    pieces, found, languages = [], [], []
    for batch in batches:
        pieces.append(embed(batch.arrays))
        found.append(batch.arrays[ids])
        languages += [language or "any" for language in batch.languages]
    return np.concatenate(pieces), np.concatenate(found), languages


def image_text_metrics(
    images: Float[np.ndarray, "images width"],
    image_ids: Int[np.ndarray, " images"],
    texts: Float[np.ndarray, "texts width"],
    text_ids: Int[np.ndarray, " texts"],
    languages: Sequence[str],
    log_scale: float,
    block: int,
) -> dict[str, float]:
    """Returns recall in both directions for each language, their means, and the contrastive loss.

    Of each thing the first caption in a language counts. "mean_recall" is the mean over languages, directions and k.

    Args:
        images: Unit embeddings, one per thing.
        image_ids: Of which thing.
        texts: Unit embeddings.
        text_ids: What they say something of.
        languages: Of each text.
        log_scale: Logarithm of the inverse temperature.
        block: Pairs that are compared for the loss.
    """
    place = {int(name): index for index, name in enumerate(image_ids)}
    metrics: dict[str, float] = {}
    losses, everything, named = [], [], []
    for language in dict.fromkeys(languages):
        first: dict[int, int] = {}
        for index, (name, own) in enumerate(zip(text_ids.tolist(), languages, strict=True)):
            if own == language and name in place:
                first.setdefault(place[name], index)
        if not first:
            continue  # none of its pictures could be read
        right, chosen = np.array(list(first), np.int64), np.array(list(first.values()), np.int64)
        to_image = recall(texts[chosen], images, right, AT)
        to_text = recall(images[right], texts[chosen], np.arange(len(right)), AT)
        for k in AT:
            metrics[f"{language}/text_to_image@{k}"], metrics[f"{language}/image_to_text@{k}"] = to_image[k], to_text[k]
        everything += [*to_image.values(), *to_text.values()]
        named.append(len(right))
        losses.append(_contrastive(texts[chosen], images[right], log_scale, block))
    for k in AT:
        for direction in ("text_to_image", "image_to_text"):
            values = [value for name, value in metrics.items() if name.endswith(f"/{direction}@{k}")]
            metrics[f"{direction}@{k}"] = float(np.mean(values))
        # of both directions: a language may name fewer things than there are pictures
        guesses = [chance(count, AT)[k] for count in (*([len(images)] * len(named)), *named)]
        metrics[f"chance@{k}"] = float(np.mean(guesses))
    return {**metrics, "mean_recall": float(np.mean(everything)), "loss": float(np.mean(losses))}


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
    """Returns the numbers that belong in a line: loss, recall at 1 and what guessing gives."""
    parts = [f"loss {metrics['loss']:.4g}", f"mean recall {metrics['mean_recall']:.1%}"]
    for direction in ("text_to_image", "image_to_text", "text_to_teacher"):
        if f"{direction}@1" in metrics:
            parts.append(f"{direction.replace('_', ' ')}@1 {metrics[f'{direction}@1']:.1%}")
    return "evaluation  " + "  ".join([*parts, f"(chance@1 {metrics['chance@1']:.2%})"])


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
