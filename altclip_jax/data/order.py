"""Which sample stands where: pure functions of (seed, step, row).

Nothing is drawn one after the other and nothing is remembered, so that any step can be made by anyone: after an
interruption, by another number of processes, by any thread. Only integer arithmetic, so that no version of a library
changes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64, Integer

_MASK = 2**64 - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROUNDS = 8
_LONGEST_PERIOD = 2**16
WINDOW = 8  # groups whose samples are shuffled together, where samples are read in groups


def hash_numbers(seed: int, *numbers: int) -> int:
    """Returns a number that is uniform from 0 to 2**64 - 1 and the same for the same arguments.

    Source: the finaliser of SplitMix64, Steele et al. 2014.
    """
    state = _mix(seed & _MASK)
    for number in numbers:
        state = _mix(state ^ (number & _MASK))
    return state


def permute(
    seed: int, epoch: int, size: int, positions: Integer[np.ndarray, " positions"]
) -> Int64[np.ndarray, " positions"]:
    """Returns where a shuffle of range(size), another one for each epoch, has put each position.

    A Feistel network over the next power of four; what falls outside is sent through it again until it falls inside.
    Source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains.

    Raises:
        ValueError: a position is not in range(size).
    """
    if positions.size and not (positions.min() >= 0 and positions.max() < size):
        raise ValueError(f"positions reach from {positions.min()} to {positions.max()}: expected 0 to {size - 1}.")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = [np.uint64(hash_numbers(seed, epoch, turn)) for turn in range(_ROUNDS)]
    values = positions.astype(np.uint64)
    outside = np.arange(values.size)
    while outside.size:
        values[outside] = _feistel(values[outside], keys, half)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def permute_groups(
    seed: int, epoch: int, sizes: Int64[np.ndarray, " groups"], positions: Integer[np.ndarray, " positions"]
) -> Int64[np.ndarray, " positions"]:
    """Returns a shuffle as `permute` does, in which samples that are read together stay near to each other.

    The groups are shuffled, and then the samples among each `WINDOW` groups that follow each other.
    """
    order = permute(seed, epoch, len(sizes), np.arange(len(sizes)))
    ends = np.cumsum(sizes[order])
    window_ends = ends[[*range(WINDOW - 1, len(ends) - 1, WINDOW), -1]]
    windows = np.searchsorted(window_ends, positions, "right")
    places = np.empty_like(positions, np.int64)
    for window in np.unique(windows):
        chosen = windows == window
        start = int(window_ends[window - 1]) if window else 0
        size = int(window_ends[window]) - start
        places[chosen] = start + permute(hash_numbers(seed, epoch), int(window), size, positions[chosen] - start)
    slots = np.searchsorted(ends, places, "right")
    groups = order[slots]
    within = places - (ends[slots] - sizes[groups])
    starts: np.ndarray = np.cumsum(sizes) - sizes
    indices: np.ndarray = starts[groups] + within
    return indices


class Order:
    """The order of a mixture of sources.

    Their samples alternate in a fixed pattern of one period, in which the shares are exact and evenly spread. Each
    source is shuffled by itself, anew for each of its epochs, and seen in full before any of its samples comes again.
    """

    def __init__(
        self,
        seed: int,
        sizes: Sequence[int],
        weights: Sequence[float],
        groups: Sequence[Sequence[int] | None] | None = None,
    ):
        """Takes the number of samples of each source, and its share among the samples that are seen.

        Args:
            seed: Another one gives another order.
            sizes: Of the sources.
            weights: Of the sources, in any unit.
            groups: For each source the sizes of the groups in which its samples are read, or None.

        Raises:
            ValueError: sizes or weights that are not positive, or a share too small for any period.
        """
        problems = [f"source {place} is empty" for place, size in enumerate(sizes) if size < 1]
        problems += [f"weight {weight} is not a positive number" for weight in weights if not 0 < weight < math.inf]
        if problems or not sizes or len(sizes) != len(weights):
            raise ValueError(
                "; ".join(problems or [f"{len(sizes)} sources and {len(weights)} weights"])
                + ": expected at least one source, each with samples and a weight."
            )
        self._sizes = tuple(sizes)
        self._groups = [None if group is None else np.array(group, np.int64) for group in groups or [None] * len(sizes)]
        self._seeds = [hash_numbers(seed, place) for place in range(len(sizes))]
        self._counts = np.array(_counts(weights), np.int64)
        self._pattern, self._before = _pattern(self._counts)

    @property
    def period(self) -> int:
        """The number of samples over which the shares are exact."""
        return len(self._pattern)

    def locate(
        self, step: int, rows: Integer[np.ndarray, " rows"], batch_size: int
    ) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
        """Returns the source of each row of a step's global batch, and the index of its sample in that source."""
        periods, places = np.divmod(step * batch_size + rows.astype(np.int64), self.period)
        sources = self._pattern[places]
        positions = periods * self._counts[sources] + self._before[places]
        indices = np.empty_like(positions)
        for source in np.unique(sources):
            size = self._sizes[source]
            epochs, within = np.divmod(positions, size)
            for epoch in np.unique(epochs[sources == source]):
                chosen = (sources == source) & (epochs == epoch)
                indices[chosen] = self._shuffled(int(source), int(epoch), within[chosen])
        return sources, indices

    def _shuffled(self, source: int, epoch: int, positions: np.ndarray) -> np.ndarray:
        seed, groups = self._seeds[source], self._groups[source]
        if groups is None:
            return permute(seed, epoch, self._sizes[source], positions)
        return permute_groups(seed, epoch, groups, positions)


def _counts(weights: Sequence[float]) -> list[int]:
    """Returns how often each source comes in a period: the shortest that is exact, or the longest allowed."""
    total = sum(map(Fraction, weights))
    shares = [Fraction(weight) / total for weight in weights]
    simple = [share.limit_denominator(1000) for share in shares]
    period = math.lcm(*(share.denominator for share in simple))
    close = all(abs(share - exact) <= share * 1e-9 for share, exact in zip(simple, shares, strict=True))
    if close and sum(simple) == 1 and period <= _LONGEST_PERIOD:
        return [int(share * period) for share in simple]
    counts = [int(share * _LONGEST_PERIOD) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda place: counts[place] - shares[place] * _LONGEST_PERIOD)
    for place in by_remainder[: _LONGEST_PERIOD - sum(counts)]:
        counts[place] += 1
    if 0 in counts:
        weight = weights[counts.index(0)]
        raise ValueError(f"weight {weight} is less than 1 in {_LONGEST_PERIOD} of all: give more, or leave it out.")
    return counts


def _pattern(counts: Int64[np.ndarray, " sources"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the source at each place of a period, and how often it came before in that period."""
    sources = np.repeat(np.arange(len(counts)), counts)
    before = np.concatenate([np.arange(count) for count in counts])
    # (before + 1/2) / count, the middle of its share of the period, in integers: they are the same everywhere
    order = np.lexsort((sources, (2 * before + 1) * (int(counts.sum()) * 2**15) // counts[sources]))
    return sources[order], before[order]


def _mix(number: int) -> int:
    number = (number + _GOLDEN) & _MASK
    number = ((number ^ (number >> 30)) * _FIRST) & _MASK
    number = ((number ^ (number >> 27)) * _SECOND) & _MASK
    return number ^ (number >> 31)


def _feistel(values: np.ndarray, keys: Sequence[np.uint64], half: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix_array(right ^ key) & mask)
    mixed: np.ndarray = (left << half) | right
    return mixed


def _mix_array(numbers: np.ndarray) -> np.ndarray:
    """`_mix` for arrays of uint64, whose products wrap by themselves."""
    numbers = numbers + np.uint64(_GOLDEN)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(_FIRST)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(_SECOND)
    mixed: np.ndarray = numbers ^ (numbers >> np.uint64(31))
    return mixed
