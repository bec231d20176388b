"""The parts of a run, built from its configuration: model, parameters on the mesh, optimizer, data, compiled step."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from altclip_jax import parallel
from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import IDS, Batches
from altclip_jax.pretrained import TwoTowerModel
from altclip_jax.sweep import Sweep
from altclip_jax.training import stages
from altclip_jax.training.config import RunConfig
from altclip_jax.training.description import Files, describe
from altclip_jax.training.flops import model_flops
from altclip_jax.training.interrupt import StopRequest
from altclip_jax.training.optimizer import make_schedule
from altclip_jax.training.run_folder import begin, open_model
from altclip_jax.training.stages import Evaluate, Say
from altclip_jax.training.state import TrainState, split
from altclip_jax.training.steps import build_step


@dataclasses.dataclass(kw_only=True)
class Run:
    """Everything a loop needs."""

    config: RunConfig
    folder: Path
    description: dict[str, Any]  # what its checkpoints say of it
    mesh: Mesh
    model: TwoTowerModel
    abstract: TrainState  # shapes, dtypes and places of the state
    first_state: Callable[[], TrainState]
    step: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]  # takes the state away
    batches: Callable[[int], Batches]  # from a step on, placed on the mesh
    normalize: Callable[[dict[str, jax.Array]], dict[str, jax.Array]]  # makes pixel_values of a batch's pictures
    evaluate: Evaluate | None  # None without data for it
    schedule: optax.Schedule
    flops: Callable[[dict[str, jax.Array]], float]  # of a step with such a batch, see `model_flops`


def build(
    config: RunConfig,
    folder: Path,
    files: Sequence[Files],
    *,
    resumed: bool,
    storing: bool = True,
    say: Say = lambda text: None,
    stop: StopRequest | None = None,
) -> Run:
    """Builds a run, from the source of its model or, if `resumed`, from its folder.

    Args:
        config: What the run is.
        folder: Where it is kept.
        files: What it learns from, see `files_of`.
        resumed: The folder has a checkpoint of it.
        storing: Compute features once where the configuration says so; otherwise in every step.
        say: Is told what takes long.
        stop: Ends what takes long.

    Raises:
        Stopped: `stop` was asked to.
        ValueError: the settings do not fit the model or the data.
        OSError: a source is missing, or the folder cannot be written.
    """
    description = describe(config, files)
    mesh = parallel.make_mesh(**config.mesh.model_dump())
    mine, leads = parallel.local_rows(mesh, config.batch_size), parallel.leads(mesh, config.batch_size)
    trained = None if resumed else begin(config, folder, description, mesh)
    model = open_model(config, folder / "model")
    trained_shapes, locked_shapes = split(model.param_shapes(), config.model.train, config.model.frozen)
    build_stage = stages.teacher_learning if config.stage == "teacher" else stages.contrastive
    devices = parallel.batch_devices(mesh)
    sweep = Sweep(
        mesh,
        math.ceil(config.evaluation.batch_size / devices) * devices,
        threads=config.data.threads,
        log=folder / "bad_samples.jsonl",
        max_bad_share=config.data.max_bad_share,
        stop=(lambda: False) if stop is None else stop.asked,
    )
    builder = stages.Builder(config, folder, mesh, model, locked_shapes, sweep, storing, say)
    parts = stages.with_tasks(builder, build_stage(builder))

    built = build_step(config, model, mesh, parts.objective, trained_shapes)

    def place(arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        whole = arrays if parts.lookup is None else parts.lookup.add(arrays)
        taken = {name: rows for name, rows in whole.items() if name not in IDS}
        return parallel.place_batch(mesh, taken, config.batch_size, mine)

    @functools.partial(jax.jit, out_shardings=parallel.sharding(mesh, parallel.BATCH))
    def look_up(pictures: jax.Array) -> jax.Array:
        table = jnp.asarray(parts.pixel_table)  # by arithmetic the last bit may be another one than numpy's
        channels = [jnp.take(table[channel], pictures[..., channel], axis=0, mode="clip") for channel in range(3)]
        return jnp.stack(channels, axis=1)

    def normalize(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if "pictures" not in arrays:
            return arrays
        rest = {name: rows for name, rows in arrays.items() if name != "pictures"}
        return {**rest, "pixel_values": look_up(arrays["pictures"])}

    def batches(first_step: int) -> Batches:
        data = config.data
        return Batches(
            parts.stream,
            config.batch_size,
            first_step=first_step,
            last_step=config.steps,
            rows=mine,
            threads=data.threads,
            prefetch=data.prefetch,
            # where it does not lead another process names them
            bad_samples=BadSamples(folder / "bad_samples.jsonl", max_bad_share=data.max_bad_share, logs=leads),
            place=place,
        )

    def flops(arrays: dict[str, jax.Array]) -> float:
        inputs = jax.eval_shape(normalize, arrays)
        return model_flops(parts.objective, trained_shapes, parts.locked, parts.helper, inputs)

    def first_state() -> TrainState:
        nonlocal trained
        if trained is None:
            raise ValueError("A resumed run has no first state: it goes on from its checkpoint.")
        here, trained = trained, None  # or it would stay on its devices for the whole run
        return built.make_state(here)

    return Run(
        config=config,
        folder=folder,
        description=description,
        mesh=mesh,
        model=model,
        abstract=built.state,
        first_state=first_state,
        step=lambda state, arrays: built.function(state, parts.locked, parts.helper, normalize(arrays)),
        batches=batches,
        normalize=normalize,
        evaluate=parts.evaluate,
        schedule=make_schedule(config.optimizer, config.steps),
        flops=flops,
    )
