"""A step under pmap, beside the one under jit: every device holds all parameters and its part of the rows.

It is for programs that are written around pmap. A run of `altclip train` uses jit over a mesh, which can cut parameters
too. Rows, dropout and results are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax import Array, lax

from altclip_jax.inference.pmapped import AXIS
from altclip_jax.training.objectives import Batch, Features, Objective
from altclip_jax.training.steps import StepSettings, TrainStep, make_train_step
from altclip_jax.weights.convert import Params


@dataclasses.dataclass(frozen=True)
class AllRows:
    """An objective whose loss is that of the rows of all devices: each gathers the features and computes the whole.

    A feature's gradient arrives from every device, so each device's gradient of its own features is that of the sum of
    n equal losses, and the mean over devices of what follows from it is the gradient of one.
    """

    objective: Objective

    def encode(self, params: Params, helper: Params, batch: Batch, keys: Array | None) -> Features:
        """Returns the features of this device's rows."""
        return self.objective.encode(params, helper, batch, keys)

    def loss(self, features: Features, log_scale: Array | None) -> tuple[Array, dict[str, Array]]:
        """Returns the loss of all rows."""
        return self.objective.loss(lax.all_gather(features, AXIS, tiled=True), log_scale)

    def plain(self) -> AllRows:
        """Returns this objective with nothing computed twice."""
        return AllRows(self.objective.plain())


def make_pmap_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    devices: Sequence[jax.Device] | None = None,
) -> TrainStep:
    """Returns step(state, locked, helper, batch) -> (state, metrics), each with a leading axis of devices.

    State, locked parameters and the teacher's are `replicated`, the batch is `dealt`; metrics are the same in every
    row. The state is taken away (donated).

    Args:
        objective: What is learned. A contrastive loss of form "ring" wants a mesh: choose "plain" or "chunked".
        optimizer: As for `make_train_step`.
        settings: As for `make_train_step`; parts of a batch are parts of each device's rows.
        devices: All by default.

    Raises:
        ValueError: a loss of form "ring".
    """
    if getattr(objective, "form", None) == "ring":
        raise ValueError(
            "A contrastive loss of form 'ring' goes around a mesh and cannot run under pmap: choose 'plain' or"
            " 'chunked', or the step under jit."
        )
    step: Any = make_train_step(AllRows(objective), optimizer, dataclasses.replace(settings, axis=AXIS))
    mapped: TrainStep = jax.pmap(step, AXIS, devices=devices, donate_argnums=0)
    return mapped
