"""What changes during a run: data only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from altclip_jax.weights.convert import Params


@struct.dataclass
class TrainState:
    """The state after `step` updates."""

    step: Array  # () int32, updates done
    params: Params  # those that train, float32
    opt_state: optax.OptState
    average: Params | None  # their exponential moving average, if the run keeps one
    healthy: Array  # () bool; once an update was not finite, nothing changes any more

    @property
    def smoothed(self) -> Params:
        """The moving average, or without one the parameters: what is evaluated."""
        return self.params if self.average is None else self.average


def initial_state(params: Params, optimizer: optax.GradientTransformation, *, averaged: bool) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params) if averaged else None,
        healthy=jnp.ones((), bool),
    )
