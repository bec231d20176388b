"""Ranks in blocks against the whole matrix, and what equal scores count for."""

import numpy as np
import pytest

from altclip_jax.evaluation import retrieval as module
from altclip_jax.evaluation.retrieval import TIE, ranks


def units(rng, rows, width=8):
    values = rng.standard_normal((rows, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def obvious(queries, query_ids, items, item_ids):
    """One query after the other on a row of the whole matrix, in float64."""
    scores = queries.astype(np.float64) @ items.T.astype(np.float64)
    found = []
    for row, right in zip(scores, np.equal.outer(query_ids, item_ids), strict=True):
        found.append(np.sum(row[~right] >= row[right].max() - TIE) if right.any() else -1)
    return np.array(found)


@pytest.fixture(params=[(1024, 4096, 8192), (7, 5, 3)], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    for name, value in zip(("_TEXTS", "_IMAGES", "_PAIRS"), request.param, strict=True):
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_the_whole_matrix(seed):
    """With several right items, and with none, in both directions."""
    rng = np.random.default_rng(seed)
    images, texts = units(rng, 53), units(rng, 91)
    image_ids, text_ids = rng.integers(0, 40, 53), rng.integers(0, 40, 91)
    found = ranks(images, image_ids, texts, text_ids)
    np.testing.assert_array_equal(found.text_to_image, obvious(texts, text_ids, images, image_ids))
    np.testing.assert_array_equal(found.image_to_text, obvious(images, image_ids, texts, text_ids))
    assert -1 in found.image_to_text


def test_right_items_do_not_stand_in_each_others_way():
    images = np.eye(2, dtype=np.float32)
    # of the three texts about image 0 the best is better than the wrong one, the others are worse
    texts = np.array([[0.9, 0], [0.1, 0], [0.2, 0], [0.5, 0.8]], np.float32)
    found = ranks(images, np.array([0, 1]), texts, np.array([0, 0, 0, 1]))
    assert found.image_to_text.tolist() == [0, 0]
    assert found.text_to_image.tolist() == [0, 0, 0, 0]


@pytest.mark.usefixtures("blocks")
def test_equal_scores_count_against_the_right_item_wherever_they_stand():
    """Products of equal rows may differ in the last bit, and none must count as better for that."""
    rng = np.random.default_rng(3)
    images = units(rng, 60, 768)
    images[[0, 17, 41, 59]] = images[0]
    texts, ids = units(rng, 60, 768), np.arange(60)
    found = ranks(images, ids, texts, ids)
    best_twin = {int(place): found.text_to_image[place] for place in (0, 17, 41, 59)}
    others = images[[place for place in range(60) if place not in best_twin]]
    for place, rank in best_twin.items():
        assert rank == 3 + np.sum(others @ texts[place] >= images[0] @ texts[place] - TIE)


def test_the_same_sentence_under_two_pictures_is_found_for_neither_first():
    images = np.eye(2, dtype=np.float32)
    texts = np.array([[0.7, 0.6], [0.7, 0.6]], np.float32)
    found = ranks(images, np.arange(2), texts, np.arange(2))
    assert found.text_to_image.tolist() == [0, 1]
    assert found.image_to_text.tolist() == [1, 1]


def test_nan_is_no_success():
    images = np.eye(3, dtype=np.float32)
    texts = images.copy()
    texts[1] = np.nan
    found = ranks(images, np.arange(3), texts, np.arange(3))
    assert found.text_to_image.tolist() == [0, 3, 0]
    assert found.image_to_text.tolist() == [1, 3, 1]


def test_nothing_is_found_in_nothing():
    none = np.zeros((0, 4), np.float32)
    found = ranks(np.eye(4, dtype=np.float32), np.arange(4), none, np.zeros(0, np.int64))
    assert found.text_to_image.size == 0
    assert found.image_to_text.tolist() == [-1] * 4
