"""Recall against a sort, and what equal scores count for."""

import numpy as np
import pytest

from altclip_jax.evaluation.retrieval import chance, recall, retrieval


def test_recall_is_the_share_of_right_items_among_the_first():
    rng = np.random.default_rng(0)
    queries, items = rng.standard_normal((50, 6)), rng.standard_normal((30, 6))
    right = rng.integers(0, 30, 50)
    order = np.argsort(-(queries @ items.T), axis=1)
    found = recall(queries, items, right, at=(1, 5, 30))
    for k in (1, 5, 30):
        assert found[k] == pytest.approx(np.mean([row in first[:k] for row, first in zip(right, order, strict=True)]))


def test_equal_embeddings_are_no_success():
    same = np.ones((40, 3))
    assert recall(same, same, np.arange(40), at=(1, 10)) == {1: 0.0, 10: 0.0}
    assert recall(same * np.nan, same, np.arange(40), at=(1, 10)) == {1: 0.0, 10: 0.0}


def test_many_queries_are_ranked_in_blocks():
    items = np.eye(5)
    right = np.arange(3000) % 5
    assert recall(items[right], items, right, at=(1,)) == {1: 1.0}


def test_chance_is_k_of_n():
    assert chance(200) == {1: 0.005, 5: 0.025, 10: 0.05}
    assert chance(4)[10] == 1.0


def test_guessing_with_several_right_items():
    # of 10 items 3 are right: 1 - 7/10, and 1 - 7/10 * 6/9
    assert chance(10, (1, 2, 8), right=3) == pytest.approx({1: 3 / 10, 2: 1 - 42 / 90, 8: 1.0})


def test_every_caption_is_a_query_and_one_of_them_is_enough():
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[1, 0, 0], [0, 0.8, 0.6], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0.6, 0.8, 0]], np.float32)
    ids = np.array([0, 0, 1, 2, 7, 1])  # the second is nearest to the wrong image; 7 has none
    found = retrieval(images, np.arange(3), texts, ids, ["en", "en", "en", "en", "en", "zh"], at=(1, 2, 3))
    english, chinese = found["en"], found["zh"]
    assert english.texts.tolist() == [0, 1, 2, 3]
    assert english.text_to_image == pytest.approx({1: 3 / 4, 2: 3 / 4, 3: 1})
    assert english.image_to_text == {1: 1.0, 2: 1.0, 3: 1.0}
    assert english.text_to_image_chance == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1})
    # two of four captions belong to the first picture
    assert english.image_to_text_chance == pytest.approx(
        {1: (2 + 1 + 1) / 12, 2: (5 / 6 + 1 / 2 + 1 / 2) / 3, 3: 5 / 6}
    )
    assert english.mean_recall == pytest.approx((3 / 4 + 3 / 4 + 1 + 3) / 6)
    # images without a caption in Chinese are candidates, and no queries
    assert (chinese.candidates, chinese.images.tolist(), chinese.image_ranks.tolist()) == (3, [1], [0])


def test_a_language_without_an_image_is_left_out():
    images = np.eye(2, dtype=np.float32)
    assert list(retrieval(images, np.arange(2), images, np.array([0, 5]), ["en", "fr"])) == ["en"]


def test_scores_of_a_hundred_captions_are_those_of_a_sort():
    rng = np.random.default_rng(2)
    images, texts = (rng.standard_normal((count, 6)).astype(np.float32) for count in (20, 100))
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))
    ids = np.arange(100) % 20
    found = retrieval(images, np.arange(20), texts, ids, ["en"] * 100)["en"]
    by_text, by_image = np.argsort(-(texts @ images.T), axis=1), np.argsort(-(images @ texts.T), axis=1)
    for k in (1, 5, 10):
        assert found.text_to_image[k] == pytest.approx(np.mean([ids[row] in by_text[row, :k] for row in range(100)]))
        hits = [row in ids[by_image[row, :k]] for row in range(20)]
        assert found.image_to_text[k] == pytest.approx(np.mean(hits))
