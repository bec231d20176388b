"""Recall against a sort, and what equal scores count for."""

import numpy as np
import pytest

from altclip_jax.evaluation.retrieval import chance, recall


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
