"""Predictions, and what follows from them, against the obvious computation and by hand."""

import numpy as np
import pytest

from altclip_jax.evaluation import zero_shot
from altclip_jax.evaluation.zero_shot import ZeroShot, classify, ensemble


def units(rng, rows, width=8):
    values = rng.standard_normal((rows, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture(params=[4096, 7])
def _block(request, monkeypatch):
    monkeypatch.setattr(zero_shot, "_BLOCK", request.param)


@pytest.mark.usefixtures("_block")
def test_predictions_are_those_of_a_sort_of_the_whole_matrix():
    rng = np.random.default_rng(0)
    images, classes, right = units(rng, 60), units(rng, 9), rng.integers(0, 9, 60)
    found = classify(images, right, classes, 3.0)
    scores = images.astype(np.float64) @ classes.T.astype(np.float64)
    order = np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(found.predicted, order[:, 0])
    for k in (1, 5):
        assert found.top(k) == pytest.approx(
            np.mean([label in row[:k] for label, row in zip(right, order, strict=True)])
        )
    probabilities = np.exp(3 * scores) / np.exp(3 * scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.confidence, probabilities.max(axis=1), rtol=1e-5)
    shares = [np.mean(order[right == label, 0] == label) for label in range(9)]
    np.testing.assert_allclose(found.per_class, shares)
    assert found.mean_per_class == pytest.approx(np.mean(shares))


def test_of_classes_with_the_same_embedding_the_first_is_predicted():
    """Of 33, whose products with a picture differ in the last bit by where they stand."""
    rng = np.random.default_rng(1)
    classes = np.repeat(units(rng, 1, 768), 33, axis=0)
    found = classify(units(rng, 61, 768), np.arange(61) % 33, classes, 100.0)
    assert not found.predicted.any()
    np.testing.assert_array_equal(found.ranks, np.arange(61) % 33)


def test_nan_is_no_success():
    classes = np.eye(3, dtype=np.float32)
    images = np.array([[1, 0, 0], [np.nan, 0, 0]], np.float32)
    found = classify(images, np.array([0, 0]), classes, 10.0)
    assert (found.ranks.tolist(), found.confidence[1]) == ([0, 3], 0)


def by_hand(right, predicted, confidence=None):
    right, predicted = np.array(right), np.array(predicted)
    sure = np.ones(len(right)) if confidence is None else np.array(confidence)
    ranks = np.where(right == predicted, 0, 1)
    return ZeroShot(right=right, predicted=predicted, ranks=ranks, confidence=sure, classes=4)


def test_the_mean_per_class_counts_every_class_the_same_and_none_without_pictures():
    found = by_hand([0, 0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 1, 0, 0])
    assert found.top(1) == 4 / 7
    np.testing.assert_array_equal(found.per_class, [3 / 4, 1, 0, np.nan])
    assert found.mean_per_class == pytest.approx((3 / 4 + 1 + 0) / 3)


def test_the_worst_classes_and_what_they_are_taken_for():
    found = by_hand([0, 0, 0, 0, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 0, 1])
    assert found.worst(10) == [2, 0]
    assert found.confusions(2) == [(1, 2), (0, 1)]
    assert found.confusions(1) == []


def test_calibration_error_by_hand():
    """Three predictions of 0.9 of which one is right, and two of 0.6, both right."""
    found = by_hand([0, 1, 1, 0, 1], [0, 0, 0, 0, 1], [0.9, 0.9, 0.9, 0.6, 0.6])
    calibration = found.calibration()
    assert calibration.error == pytest.approx((3 * (0.9 - 1 / 3) + 2 * (1 - 0.6)) / 5)
    assert calibration.counts.tolist() == [2 if place == 8 else 3 if place == 13 else 0 for place in range(15)]
    assert by_hand([0, 1], [0, 0], [0.0, 1.0]).calibration().counts.tolist() == [1, *[0] * 13, 1]


def test_a_model_that_is_as_sure_as_it_is_right_has_no_calibration_error():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.25, 1, 200_000)
    predicted = np.where(rng.uniform(size=sure.size) < sure, 0, 1)
    assert by_hand(np.zeros(sure.size, int), predicted, sure).calibration().error < 0.01


def test_an_ensemble_is_the_normalised_mean_of_unit_embeddings():
    prompts = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    np.testing.assert_allclose(ensemble(prompts, [2, 1]), [[0.5**0.5, 0.5**0.5], [0.6, 0.8]], rtol=1e-6)
