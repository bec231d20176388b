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

from altclip_jax.inference.pmapped import AXIS
from altclip_jax.training.objectives import Objective
from altclip_jax.training.steps import StepSettings, TrainStep, make_train_step


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
    step: Any = make_train_step(objective, optimizer, dataclasses.replace(settings, axis=AXIS))
    mapped: TrainStep = jax.pmap(step, AXIS, devices=devices, donate_argnums=0)
    return mapped
