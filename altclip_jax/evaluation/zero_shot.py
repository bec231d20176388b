"""How well pictures are told apart by the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

_BLOCK = 4096  # pictures
_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the confidence of predictions compares with how often they are right.

    Attributes:
        edges: Of the bins of confidence, equally wide; a bin holds its upper edge.
        counts: Predictions in each bin.
        confidence: Their mean confidence; NaN in an empty bin.
        accuracy: The share of them that is right; NaN in an empty bin.
        error: The expected calibration error: the mean over predictions of `|accuracy - confidence|` of their bin.
            Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3, with 15 bins.
    """

    edges: Float[np.ndarray, " bins_and_1"]
    counts: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    error: float


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Predictions for pictures, of which each is of one class, and what follows from them.

    Attributes:
        right: The class of each picture.
        predicted: The class of the largest score, the first one of equals.
        ranks: How many classes come before the right one: those that score more, and earlier ones that score the same.
        confidence: The probability of `predicted`, by the softmax of the scaled scores.
        classes: The number of classes.
    """

    right: Int[np.ndarray, " pictures"]
    predicted: Int[np.ndarray, " pictures"]
    ranks: Int[np.ndarray, " pictures"]
    confidence: Float[np.ndarray, " pictures"]
    classes: int

    def top(self, k: int) -> float:
        """The share of pictures whose class is among the first k."""
        return float(np.mean(self.ranks < k))

    @property
    def counts(self) -> Int[np.ndarray, " classes"]:
        """The number of pictures of each class."""
        return np.bincount(self.right, minlength=self.classes)

    @property
    def per_class(self) -> Float[np.ndarray, " classes"]:
        """The share of the pictures of each class that is predicted to be of it; NaN without pictures."""
        hits = np.bincount(self.right[self.ranks == 0], minlength=self.classes)
        shares = np.full(self.classes, np.nan)
        np.divide(hits, self.counts, out=shares, where=self.counts > 0)
        return shares

    @property
    def mean_per_class(self) -> float:
        """The mean of `per_class` over the classes that have pictures."""
        return float(np.nanmean(self.per_class))

    def confusions(self, of: int) -> list[tuple[int, int]]:
        """Returns the classes that pictures of a class are taken for, and how often; the most frequent first."""
        taken, counts = np.unique(self.predicted[(self.right == of) & (self.ranks > 0)], return_counts=True)
        return [(int(taken[place]), int(counts[place])) for place in np.argsort(-counts, kind="stable")]

    def worst(self, count: int) -> list[int]:
        """Returns the classes with the lowest shares, the lowest first; none that is always right."""
        shares = self.per_class
        order = np.argsort(shares, kind="stable")[:count]  # NaN last
        return [int(place) for place in order if shares[place] < 1]

    def calibration(self) -> Calibration:
        """Compares confidence and accuracy in bins."""
        edges = np.linspace(0, 1, _BINS + 1)
        bins = np.clip(np.searchsorted(edges, self.confidence, "left") - 1, 0, _BINS - 1)
        counts = np.bincount(bins, minlength=_BINS)
        sums = [np.bincount(bins, weights, _BINS) for weights in (self.confidence, self.ranks == 0)]
        confidence, accuracy = (
            np.divide(total, counts, out=np.full(_BINS, np.nan), where=counts > 0) for total in sums
        )
        error = float(np.nansum(counts * np.abs(accuracy - confidence)) / counts.sum())
        return Calibration(edges=edges, counts=counts, confidence=confidence, accuracy=accuracy, error=error)


def classify(
    images: Float[np.ndarray, "pictures width"],
    right: Int[np.ndarray, " pictures"],
    classes: Float[np.ndarray, "classes width"],
    scale: float,
) -> ZeroShot:
    """Compares pictures with classes, in blocks.

    Classes with the same embedding have exactly the same scores. A picture with a score that is NaN is of no class:
    all come before the right one, and its confidence is 0.

    Args:
        images: Unit embeddings.
        right: The class of each.
        classes: Unit embeddings, one per class.
        scale: The inverse temperature, which probabilities are made with.
    """
    unique, column = np.unique(classes, axis=0, return_inverse=True)
    parts = [
        _block(images[start : start + _BLOCK] @ unique.T, column.reshape(-1), right[start : start + _BLOCK], scale)
        for start in range(0, len(images), _BLOCK)
    ]
    predicted, ranks, confidence = (np.concatenate(values) for values in zip(*parts, strict=True))
    return ZeroShot(right=right, predicted=predicted, ranks=ranks, confidence=confidence, classes=len(classes))


def ensemble(prompts: Float[np.ndarray, "prompts width"], counts: Sequence[int]) -> Float[np.ndarray, "classes width"]:
    """Returns for each class the normalised mean of its prompts' unit embeddings (Radford et al. 2021).

    Args:
        prompts: Those of the first class, then those of the second, ...
        counts: How many each has, at least one.
    """
    starts = np.cumsum([0, *counts])[:-1]
    means = np.add.reduceat(prompts, starts, axis=0) / np.array(counts, prompts.dtype)[:, None]
    units: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
    return units


def _block(
    unique_scores: np.ndarray, column: np.ndarray, right: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = unique_scores[:, column]
    own = scores[np.arange(len(right)), right][:, None]
    earlier = np.arange(len(column)) < right[:, None]
    ranks = np.count_nonzero((scores > own) | ((scores == own) & earlier), axis=1)
    broken = np.isnan(scores).any(axis=1)
    shifted = np.exp(scale * (scores.astype(np.float64) - scores.max(axis=1, keepdims=True)))
    confidence = 1 / shifted.sum(axis=1)
    return (
        scores.argmax(axis=1),
        np.where(broken, len(column), ranks),
        np.where(broken, 0.0, confidence),
    )
