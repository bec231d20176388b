"""How many wrong items stand before the right one, for all queries of both directions, without the whole matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

TIE = 1e-6
"""Scores that differ by no more are equal: several times the rounding of a product of unit float32 rows."""
_TEXTS, _IMAGES = 1024, 4096  # of a block of scores: 16 MB
_PAIRS = 8192


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
