"""What changes during a run, data only; and which parameters that are."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from altclip_jax.weights.convert import Params, flatten, unflatten


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


def split(params: Params, parts: Sequence[str], frozen: Sequence[str] = ()) -> tuple[Params, Params]:
    """Returns (trained, locked): what lies in one of `parts` and matches no pattern of `frozen`, and the rest.

    Args:
        params: A parameter tree, of arrays or of shapes.
        parts: First levels of the tree, such as "text_model" or "logit_scale".
        frozen: Regular expressions for whole paths.

    Raises:
        ValueError: a part that the model does not have, a pattern that matches nothing, or nothing is left to train.
    """
    flat = flatten(params)
    problems = [
        f"{part!r} is no part of this model, whose parts are {', '.join(params)}"
        for part in parts
        if part not in params
    ]
    problems += [
        f"frozen={pattern!r} matches no parameter"
        for pattern in frozen
        if not any(re.fullmatch(pattern, path) for path in flat)
    ]
    trained = {
        path: leaf
        for path, leaf in flat.items()
        if path.split("/")[0] in parts and not any(re.fullmatch(pattern, path) for pattern in frozen)
    }
    if not trained and not problems:
        problems.append("every parameter is frozen: there is nothing to train")
    if problems:
        raise ValueError("The parameters cannot be told apart: " + "; ".join(problems) + ".")
    return unflatten(trained), unflatten({path: leaf for path, leaf in flat.items() if path not in trained})


def merge(trained: Params, locked: Params) -> Params:
    """Undoes `split`."""
    return unflatten({**flatten(trained), **flatten(locked)})
