"""The order: a function of (seed, step, row) in which nothing is lost and nothing comes too often."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altclip_jax.data import order
from altclip_jax.data.order import WINDOW, Order, hash_numbers, permute, permute_groups

SEEDS = st.integers(0, 2**64 - 1)


@given(SEEDS, st.integers(0, 2**40), st.integers(1, 3000))
def test_a_permutation_gives_every_index_once(seed, epoch, size):
    assert sorted(permute(seed, epoch, size, np.arange(size)).tolist()) == list(range(size))


@given(SEEDS, st.integers(1, 10**12), st.data())
def test_a_position_goes_where_it_goes_whatever_else_is_asked_for(seed, size, data):
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    together = permute(seed, 3, size, positions)
    assert (together >= 0).all()
    assert (together < size).all()
    assert together.tolist() == [int(permute(seed, 3, size, positions[i : i + 1])[0]) for i in range(len(positions))]


@given(SEEDS, st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_a_permutation_of_groups_gives_every_index_once(seed, epoch, sizes):
    total = sum(sizes)
    shuffled = permute_groups(seed, epoch, np.array(sizes), np.arange(total))
    assert sorted(shuffled.tolist()) == list(range(total))


def test_a_permutation_of_groups_reads_few_groups_at_a_time():
    sizes = np.full(100, 10)
    groups = permute_groups(0, 0, sizes, np.arange(1000)) // 10
    for start in range(0, 1000, 10 * WINDOW):
        assert len(set(groups[start : start + 10 * WINDOW].tolist())) == min(WINDOW, 100 - start // 10)
    first = groups[: 10 * WINDOW]
    assert max(np.bincount(first[:20], minlength=100)) < 10  # within them, samples of all mix


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(permute(seed, epoch, 50, np.arange(50))) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize("size", [2, 3, 5, 17, 64, 65])
def test_each_index_comes_at_each_position_equally_often(size):
    trials = 1000
    counts = np.zeros((size, size))
    for epoch in range(trials):
        counts[np.arange(size), permute(7, epoch, size, np.arange(size))] += 1
    expected = trials / size
    statistic = ((counts - expected) ** 2 / expected).sum()
    degrees = (size - 1) ** 2
    assert abs(statistic - degrees) < 5 * np.sqrt(2 * degrees)


def test_neighbours_are_as_far_apart_as_by_chance():
    size = 10_000
    steps = np.abs(np.diff(permute(1, 0, size, np.arange(size))))
    assert abs(steps.mean() / (size / 3) - 1) < 0.05


def test_hashes_are_those_of_splitmix64():
    # the first outputs of the published generator for the seeds 0 and 1234567
    assert hash_numbers(0) == 0xE220A8397B1DCDAF
    assert hash_numbers(1234567) == 6457827717110365317
    assert hash_numbers(1, 2) != hash_numbers(2, 1)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_hashes_of_arrays_are_those_of_numbers(numbers):
    mixed = order._mix_array(np.array(numbers, np.uint64))
    assert mixed.tolist() == [order._mix(number) for number in numbers]


def test_the_order_stays_what_it_was_when_runs_were_begun():
    assert permute(42, 1, 1000, np.arange(6)).tolist() == [528, 783, 836, 964, 86, 784]
    sources, indices = Order(42, [10, 1000], [1, 3]).locate(5, np.arange(8), 64)
    assert (sources.tolist(), indices.tolist()) == ([1, 0, 1, 1, 1, 0, 1, 1], [290, 3, 229, 429, 654, 0, 680, 630])


def sequence(mixture, count):
    sources, indices = mixture.locate(0, np.arange(count), count)
    return list(zip(sources.tolist(), indices.tolist(), strict=True))


def test_every_sample_is_seen_once_per_epoch():
    seen = sequence(Order(0, [7, 30], [1, 2]), 7 * 3 * 30)
    for source, size in ((0, 7), (1, 30)):
        indices = [index for place, index in seen if place == source]
        for start in range(0, len(indices) - size, size):
            assert sorted(indices[start : start + size]) == list(range(size))


@pytest.mark.parametrize(
    ("weights", "counts"),
    [([1], [1]), ([0.7, 0.3], [7, 3]), ([1, 1, 2], [1, 1, 2]), ([1 / 3, 2 / 3], [1, 2]), ([5e6, 1e6], [5, 1])],
)
def test_mixture_weights_are_exact_over_a_period(weights, counts):
    mixture = Order(3, [50] * len(weights), weights)
    assert mixture.period == sum(counts)
    for period in range(4):
        sources, _ = mixture.locate(period, np.arange(mixture.period), mixture.period)
        assert np.bincount(sources, minlength=len(weights)).tolist() == counts


def test_crooked_weights_are_within_one_sample_of_a_long_period():
    weights = np.array([np.pi, np.e, 0.001])
    mixture = Order(3, [10**6] * 3, weights.tolist())
    sources, _ = mixture.locate(0, np.arange(mixture.period), mixture.period)
    shares = weights / weights.sum() * mixture.period
    assert (np.abs(np.bincount(sources) - shares) < 1).all()


def test_a_mixture_is_spread_evenly_so_that_batches_are_alike():
    mixture = Order(0, [100, 100, 100], [5, 3, 2])
    sources = np.array([source for source, _ in sequence(mixture, 1000)])
    for start in range(0, 990):
        counts = np.bincount(sources[start : start + 10], minlength=3)
        assert (np.abs(counts - [5, 3, 2]) <= 1).all()


def test_the_order_is_one_sequence_however_it_is_cut_into_batches():
    mixture = Order(9, [11, 6], [2, 1])
    whole = sequence(mixture, 60)
    for batch_size in (1, 4, 15):
        found = []
        for step in range(60 // batch_size):
            sources, indices = mixture.locate(step, np.arange(batch_size), batch_size)
            found += zip(sources.tolist(), indices.tolist(), strict=True)
        assert found == whole


def test_steps_far_away_are_made_at_once():
    _, indices = Order(0, [1000, 7], [3, 1]).locate(10**12, np.arange(1024), 1024)
    assert indices.min() >= 0
    assert indices.max() < 1000


@pytest.mark.parametrize(
    ("sizes", "weights", "what"),
    [
        ([], [], "at least one source"),
        ([3, 0], [1, 1], "source 1 is empty"),
        ([3], [0], "weight 0 is not a positive number"),
        ([3], [float("nan")], "weight nan"),
        ([3, 3], [1], "2 sources and 1 weights"),
        ([3, 3], [1, 1e-9], "less than 1 in 65536"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(sizes, weights, what):
    with pytest.raises(ValueError, match=what):
        Order(0, sizes, weights)


def test_positions_out_of_range_are_refused():
    with pytest.raises(ValueError, match="expected 0 to 4"):
        permute(0, 0, 5, np.array([5]))
