"""Which sample each row gets, and which other one if that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

import numpy as np
from jaxtyping import Integer

from altclip_jax.data.batches import Fault, Loaded, Place
from altclip_jax.data.order import Order, hashed
from altclip_jax.data.samples import SampleError
from altclip_jax.data.sources import AnySource, Mixture

_ATTEMPTS = 20
# What a number is drawn for: the last argument but those of the draw itself of `Draws.chance`.
CAPTION, PICTURE, AUGMENTATION, REPLACEMENT = range(4)


class Draws(Generic[AnySource]):
    """The samples of a mixture as a function of (seed, step, row)."""

    def __init__(self, mixture: Mixture[AnySource], seed: int):
        """Lays out the order."""
        self.mixture, self.seed = mixture, seed
        groups = [source.groups for source in mixture.sources]
        self._order = Order(seed, [len(source) for source in mixture.sources], mixture.weights, groups)
        self._first_ids = mixture.first_ids

    def plan(self, step: int, rows: Integer[np.ndarray, " rows"], batch_size: int) -> list[Place]:
        """Returns which samples stand in rows of a step's global batch."""
        sources, indices = self._order.locate(step, rows, batch_size)
        return [Place(step, *place) for place in zip(rows.tolist(), sources.tolist(), indices.tolist(), strict=True)]

    def chance(self, place: Place, purpose: int, *numbers: int) -> int:
        """Returns a number from 0 to 2**64 - 1 that belongs to a row of a step."""
        return hashed(self.seed, place.step, place.row, purpose, *numbers)

    def example(self, source: int, index: int) -> int:
        """Returns the id of a sample over all sources."""
        return self._first_ids[source] + index

    def load(self, place: Place, read: Callable[[Place], Loaded]) -> Loaded:
        """Returns what `read` makes of a place, or of another sample of the same source if that one is bad."""
        faults: list[Fault] = []
        size = len(self.mixture.sources[place.source])
        wanted: Any = place
        for attempt in range(_ATTEMPTS):
            try:
                loaded = read(wanted)
            except SampleError as error:
                faults.append(Fault(self.example(wanted.source, wanted.sample), error))
                wanted = place._replace(sample=self.chance(place, REPLACEMENT, attempt) % size)
            else:
                return Loaded(loaded.example, loaded.name, loaded.language, loaded.values, tuple(faults))
        return Loaded(faults[0].example, faults[0].error.name, None, None, tuple(faults))
