"""How often the right item is among the first few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

AT = (1, 5, 10)
TIE = 1e-6
"""Scores that differ by no more are equal: several times the rounding of a product of unit float32 rows."""
_TEXTS, _IMAGES = 1024, 4096  # of a block of scores: 16 MB
_PAIRS = 8192
Recall = dict[int, float]  # k -> share of queries


@dataclass(frozen=True, kw_only=True)
class LanguageRecall:
    """Retrieval with the texts of one language.

    Attributes:
        texts: The places of the texts that are queries, among those that were given.
        images: The places of the images that are queries: those with a text in this language.
        candidates: How many images a text is looked for among; an image is looked for among `texts`.
        text_ranks: Of each of `texts`, see `Ranks`.
        image_ranks: Of each of `images`.
        text_scores: Of each of `texts`, the score of its best right image.
        image_scores: Of each of `images`, the score of its best right text.
        text_to_image: Share of texts with a right image among the first k.
        image_to_text: Share of images with a right text among the first k.
        text_to_image_chance: What guessing gives.
        image_to_text_chance: What guessing gives.
    """

    texts: Int[np.ndarray, " texts"]
    images: Int[np.ndarray, " images"]
    candidates: int
    text_ranks: Int[np.ndarray, " texts"]
    image_ranks: Int[np.ndarray, " images"]
    text_scores: Float[np.ndarray, " texts"]
    image_scores: Float[np.ndarray, " images"]
    text_to_image: Recall
    image_to_text: Recall
    text_to_image_chance: Recall
    image_to_text_chance: Recall

    @property
    def mean_recall(self) -> float:
        """The mean over k and both directions."""
        return float(np.mean([*self.text_to_image.values(), *self.image_to_text.values()]))

    @property
    def chance(self) -> float:
        """The mean recall of guessing."""
        return float(np.mean([*self.text_to_image_chance.values(), *self.image_to_text_chance.values()]))


def retrieval(
    images: Float[np.ndarray, "images width"],
    image_ids: Int[np.ndarray, " images"],
    texts: Float[np.ndarray, "texts width"],
    text_ids: Int[np.ndarray, " texts"],
    languages: Sequence[str],
    at: Sequence[int] = AT,
) -> dict[str, LanguageRecall]:
    """Returns recall by language, as for Flickr30k, COCO and XTD: every text is a query, and a right one is enough.

    A text is looked for among all images, an image among the texts of the language. Images and texts with the same id
    are right for each other; see `ranks` for several right ones and for ties. Texts without an image are left out, and
    so are languages without a text.

    Args:
        images: Unit embeddings.
        image_ids: What each shows.
        texts: Unit embeddings.
        text_ids: What each is about.
        languages: Of each text.
        at: The values of k.
    """
    named = np.array(languages, np.str_)
    known = np.isin(text_ids, image_ids)
    found = {}
    for language in dict.fromkeys(languages):
        own = np.flatnonzero((named == language) & known)
        if not own.size:
            continue
        text_ranks, image_ranks, text_scores, image_scores = ranks(images, image_ids, texts[own], text_ids[own])
        queries = np.flatnonzero(image_ranks >= 0)
        found[language] = LanguageRecall(
            texts=own,
            images=queries,
            candidates=len(images),
            text_ranks=text_ranks,
            image_ranks=image_ranks[queries],
            text_scores=text_scores,
            image_scores=image_scores[queries],
            text_to_image=_shares(text_ranks, at),
            image_to_text=_shares(image_ranks[queries], at),
            text_to_image_chance=_guessed(text_ids[own], image_ids, at),
            image_to_text_chance=_guessed(image_ids[queries], text_ids[own], at),
        )
    return found


def recall(
    queries: Float[np.ndarray, "queries width"],
    items: Float[np.ndarray, "items width"],
    right: Int[np.ndarray, " queries"],
    at: Sequence[int] = AT,
) -> Recall:
    """Returns {k: share of queries whose right item is among the k of the largest product}.

    Args:
        queries: One row per query, of unit length.
        items: One row per item, likewise.
        right: The index of each query's item.
        at: The values of k.
    """
    return _shares(ranks(items, np.arange(len(items)), queries, right).text_to_image, at)


def chance(items: int, at: Sequence[int] = AT, right: int = 1) -> Recall:
    """Returns {k: share of queries that guessing answers} among `items` of which `right` are right."""
    return {k: _any_drawn(items, right, min(k, items)) for k in at}


def _any_drawn(items: int, right: int, draws: int) -> float:
    every = math.comb(items, draws)
    return (every - math.comb(items - right, draws)) / every


def _guessed(query_ids: np.ndarray, item_ids: np.ndarray, at: Sequence[int]) -> Recall:
    ids, counts = np.unique(item_ids, return_counts=True)
    rights, weights = np.unique(counts[np.searchsorted(ids, query_ids)], return_counts=True)
    each = [chance(len(item_ids), at, int(right)) for right in rights]
    return {k: float(np.average([guess[k] for guess in each], weights=weights)) for k in at}


def _shares(ranks: np.ndarray, at: Sequence[int]) -> Recall:
    return {k: float(np.mean(ranks < k)) if len(ranks) else float("nan") for k in at}


class Ranks(NamedTuple):
    """Of each query the number of wrong items that score at least as its best right one; -1 where no item is right.

    Attributes:
        text_to_image: Of each text.
        image_to_text: Of each image.
        text_scores: The score of each text's best right image; -inf without one.
        image_scores: The score of each image's best right text; likewise.
    """

    text_to_image: Int[np.ndarray, " texts"]
    image_to_text: Int[np.ndarray, " images"]
    text_scores: Float[np.ndarray, " texts"]
    image_scores: Float[np.ndarray, " images"]


def ranks(
    images: Float[np.ndarray, "images width"],
    image_ids: Int[np.ndarray, " images"],
    texts: Float[np.ndarray, "texts width"],
    text_ids: Int[np.ndarray, " texts"],
) -> Ranks:
    """Returns the ranks by the product of rows; an image and a text are right for each other if their ids are equal.

    Right items do not stand in each other's way. A wrong item within `TIE` of the best right one stands before it,
    and so do all items if that one's score is NaN: neither equal embeddings nor broken ones are a success.

    Args:
        images: Unit embeddings.
        image_ids: What each shows; several may show the same.
        texts: Unit embeddings.
        text_ids: What each is about.
    """
    pair_images, pair_texts = _pairs(image_ids, text_ids)
    best_of_text, best_of_image = np.full(len(texts), -np.inf), np.full(len(images), -np.inf)
    for start in range(0, len(pair_texts), _PAIRS):
        image, text = pair_images[start : start + _PAIRS], pair_texts[start : start + _PAIRS]
        scores = np.einsum("pd,pd->p", images[image], texts[text])
        with np.errstate(invalid="ignore"):  # NaN wins, as it should
            np.maximum.at(best_of_text, text, scores)
            np.maximum.at(best_of_image, image, scores)
    type_ = np.result_type(images, texts)
    text_bars, image_bars = (best_of_text - TIE).astype(type_), (best_of_image - TIE).astype(type_)
    of_texts, of_images = np.zeros(len(texts), np.int64), np.zeros(len(images), np.int64)
    for first in range(0, len(texts), _TEXTS):
        rows = slice(first, first + _TEXTS)
        here = slice(*np.searchsorted(pair_texts, [first, first + _TEXTS]))
        for left in range(0, len(images), _IMAGES):
            columns = slice(left, left + _IMAGES)
            scores = texts[rows] @ images[columns].T
            column = pair_images[here] - left
            inside = (column >= 0) & (column < scores.shape[1])
            scores[pair_texts[here][inside] - first, column[inside]] = -np.inf
            # a comparison with NaN is False
            of_texts[rows] += scores.shape[1] - np.count_nonzero(scores < text_bars[rows, None], axis=1)
            of_images[columns] += scores.shape[0] - np.count_nonzero(scores < image_bars[columns], axis=0)
    of_texts[best_of_text == -np.inf] = -1
    of_images[best_of_image == -np.inf] = -1
    return Ranks(of_texts, of_images, best_of_text, best_of_image)


def _pairs(
    image_ids: Int[np.ndarray, " images"], text_ids: Int[np.ndarray, " texts"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Returns (images, texts) of all pairs of equal ids, in the order of texts."""
    order = np.argsort(image_ids, kind="stable")
    first, last = (np.searchsorted(image_ids[order], text_ids, side) for side in ("left", "right"))
    counts = last - first
    texts = np.repeat(np.arange(len(text_ids)), counts)
    before = np.cumsum(counts) - counts  # pairs of the texts before
    return order[np.arange(len(texts)) + np.repeat(first - before, counts)], texts
