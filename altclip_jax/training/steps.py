"""One step of training and of evaluation, as pure functions of state and batch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from altclip_jax.model.stacked import stack_layers, unstack_layers
from altclip_jax.parallel import BATCH, batch_devices, gathered, placed, sharding, state_shardings
from altclip_jax.pretrained import TwoTowerModel
from altclip_jax.training.config import RunConfig
from altclip_jax.training.losses import gather, interleave
from altclip_jax.training.objectives import Batch, Features, Objective, dropout_rates
from altclip_jax.training.optimizer import make_optimizer
from altclip_jax.training.state import TrainState, initial_state, merge
from altclip_jax.weights.convert import Params

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Params, Params, Batch], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How a step computes what it computes.

    Attributes:
        seed: Of dropout.
        dropout: Whether the model drops anything.
        micro_batches: Parts of a batch whose features are computed one after the other, twice, for the gradient of the
            loss of the whole (gradient caching, Gao et al. 2021, arXiv 2101.06983).
        accumulate: Parts of a batch with a loss of their own, whose gradients are averaged.
        max_log_scale: Where the temperature stops.
        ema_decay: Of the moving average, or None; after n steps it is at most (1 + n) / (10 + n).
        gather: What is done to parameters before they are computed with, see `parallel.gathered`.
        groups: Over how many devices the rows are dealt, along `parallel.BATCH`. With gradient caching each adds up the
            gradient of its own rows over all parts, before they are summed over devices once.
        scan_layers: Compile one layer of each tower and scan over all, see `model.stacked`.
        axis: Under pmap, over which the rows of the batch are dealt, see `pmapped`: the loss is that of all of them.
    """

    seed: int = 0
    dropout: bool = False
    micro_batches: int = 1
    accumulate: int = 1
    max_log_scale: float = math.log(100)
    ema_decay: float | None = None
    gather: Callable[[Params], Params] = lambda params: params
    groups: int = 1
    scan_layers: bool = True
    axis: str | None = None


def step_settings(config: RunConfig, model: TwoTowerModel, mesh: Mesh) -> StepSettings:
    """Returns how a run's configuration wants the step of its model, on a mesh."""
    return StepSettings(
        seed=config.seed,
        dropout=bool(dropout_rates(model)),
        micro_batches=config.loss.micro_batches,
        accumulate=config.loss.accumulate,
        max_log_scale=config.loss.max_log_scale,
        ema_decay=config.optimizer.ema_decay,
        gather=functools.partial(gathered, mesh),
        groups=batch_devices(mesh),
        scan_layers=config.model.scan_layers,
    )


class BuiltStep(NamedTuple):
    """The compiled step of a run, and the state that it changes."""

    function: Callable[[TrainState, Params, Params, Batch], tuple[TrainState, Metrics]]  # jitted; takes the state away
    make_state: Callable[[Params], TrainState]  # jitted: the first state, each array in its place
    state: TrainState  # shapes, dtypes and places


def build_step(config: RunConfig, model: TwoTowerModel, mesh: Mesh, objective: Objective, trained: Params) -> BuiltStep:
    """Builds the step of a run for a mesh, whose devices need not exist.

    Args:
        config: The run.
        model: Its network.
        mesh: Where it is computed.
        objective: What is learned.
        trained: Shapes of the parameters that train.

    Raises:
        ValueError: the optimizer's rules do not fit the parameters.
    """
    optimizer = make_optimizer(config.optimizer, config.steps, trained)
    averaged = config.optimizer.ema_decay is not None
    make_state = functools.partial(initial_state, optimizer=optimizer, averaged=averaged)
    shapes = jax.eval_shape(make_state, trained)
    places = state_shardings(mesh, shapes)
    function = jax.jit(
        make_train_step(objective, optimizer, step_settings(config, model, mesh)),
        donate_argnums=0,
        out_shardings=(places, sharding(mesh)),
    )
    return BuiltStep(function, jax.jit(make_state, out_shardings=places), placed(shapes, places))


def make_train_step(objective: Objective, optimizer: optax.GradientTransformation, settings: StepSettings) -> TrainStep:
    """Returns step(state, locked, helper, batch) -> (state, metrics).

    `locked` are the parameters that do not train and `helper` those of a teacher: arguments, so that they are neither
    copied into the program nor into a checkpoint. Where loss or gradient is not finite the state stays as it was, and
    so it does ever after. The state says so in `healthy` and the metrics in `finite`; both also say it where only what
    the optimizer made of a gradient is not finite: such a state is not to be used.
    """

    def step(state: TrainState, locked: Params, helper: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = row_keys(settings, state.step, _rows(batch))
        (loss, metrics), gradient = value_and_gradient(objective, settings, state.params, locked, helper, batch, keys)
        if settings.axis is not None:
            mean: Any = lax.pmean
            gradient = mean(gradient, settings.axis)
        norm = optax.tree.norm(gradient)
        usable = state.healthy & jnp.isfinite(loss) & jnp.isfinite(norm)
        # a branch: it changes the state where it lies, while a choice between two would hold both
        new = lax.cond(usable, functools.partial(_update, optimizer, settings), lambda old, _: old, state, gradient)
        # a finite gradient does not say that what an optimizer makes of it is finite
        healthy = usable & jnp.isfinite(optax.tree.norm(new.params))
        return new.replace(healthy=healthy), {**metrics, "loss": loss, "gradient_norm": norm, "finite": healthy}

    return step


def _update(
    optimizer: optax.GradientTransformation, settings: StepSettings, state: TrainState, gradient: Params
) -> TrainState:
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = _clamp(optax.apply_updates(state.params, updates), settings.max_log_scale)
    average = state.average
    if average is not None and settings.ema_decay is not None:
        decay = jnp.minimum(settings.ema_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(params, average, 1 - decay)
    return TrainState(state.step + 1, params, opt_state, average, state.healthy)


def value_and_gradient(
    objective: Objective,
    settings: StepSettings,
    params: Params,
    locked: Params,
    helper: Params,
    batch: Batch,
    keys: Array | None,
) -> tuple[tuple[Array, Metrics], Params]:
    """Returns ((loss, metrics), gradient of `params`) of a batch, in one of three ways that differ in memory alone."""
    if settings.scan_layers:
        unscanned = dataclasses.replace(settings, scan_layers=False)
        (params, locked), (helper,) = stack_layers(params, locked), stack_layers(helper)
        value, gradient = value_and_gradient(objective, unscanned, params, locked, helper, batch, keys)
        return value, unstack_layers(gradient)

    # once for all parts; the values are the same, and so is the gradient of either
    params, locked = settings.gather(params), settings.gather(locked)

    def encode(params: Params, part: Batch, keys: Array | None) -> Features:
        return objective.encode(merge(params, locked), helper, part, keys)

    def compare(features: Features, params: Params) -> tuple[Array, Metrics]:
        if settings.axis is not None:
            # Each of n devices computes the loss of all rows. So the gradient of its own features is that of the sum of
            # n equal losses, and the mean over devices of what follows from it is the gradient of one.
            features = lax.all_gather(features, settings.axis, tiled=True)
        return objective.loss(features, params.get("logit_scale", locked.get("logit_scale")))

    def loss(params: Params, part: Batch, keys: Array | None) -> tuple[Array, Metrics]:
        return compare(encode(params, part, keys), params)

    if settings.micro_batches > 1:
        return _cache_features(encode, compare, settings, params, batch, keys)
    if settings.accumulate > 1:
        return _accumulate(loss, settings.accumulate, params, batch, keys)
    return jax.value_and_grad(loss, has_aux=True)(params, batch, keys)


def row_keys(settings: StepSettings, step: Array, rows: int) -> Array | None:
    """Returns the dropout key of each row: a function of (seed, step, row) alone, or None without dropout."""
    if not settings.dropout:
        return None
    key = jax.random.fold_in(jax.random.key(settings.seed), step)
    first = 0 if settings.axis is None else lax.axis_index(settings.axis) * rows
    return jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(rows))


def _cache_features(
    encode: Any, compare: Any, settings: StepSettings, params: Params, batch: Batch, keys: Array | None
) -> tuple[tuple[Array, Metrics], Params]:
    parts = settings.micro_batches
    dealt = jax.tree.map(lambda rows: interleave(rows, parts), (batch, keys))
    features = jax.tree.map(gather, lax.map(lambda part: encode(params, *part), dealt))
    # the loss itself depends on the temperature, everything else goes through the features
    (loss, metrics), (to_features, direct) = jax.value_and_grad(compare, argnums=(0, 1), has_aux=True)(features, params)
    groups = settings.groups if _rows(batch) % (parts * settings.groups) == 0 else 1
    (axes,) = BATCH

    @functools.partial(jax.vmap, spmd_axis_name=axes)
    def pulled(rows: Any, to_rows: Features) -> Params:
        gradient: Params = jax.vjp(lambda params: encode(params, *rows), params)[1](to_rows)[0]
        return gradient

    def add(gradient: Params, part: Any) -> tuple[Params, None]:
        grouped = jax.tree.map(lambda rows: rows.reshape(groups, -1, *rows.shape[1:]), part)
        return jax.tree.map(jnp.add, gradient, pulled(*grouped)), None

    nothing = jax.tree.map(lambda leaf: jnp.zeros((groups, *leaf.shape), leaf.dtype), params)
    to_parts = jax.tree.map(lambda rows: interleave(rows, parts), to_features)
    gradient, _ = lax.scan(add, nothing, (dealt, to_parts))
    return (loss, metrics), jax.tree.map(lambda own, of_groups: own + of_groups.sum(axis=0), direct, gradient)


def _accumulate(
    loss: Any, parts: int, params: Params, batch: Batch, keys: Array | None
) -> tuple[tuple[Array, Metrics], Params]:
    def add(gradient: Params, part: Any) -> tuple[Params, tuple[Array, Metrics]]:
        value, own = jax.value_and_grad(loss, has_aux=True)(params, *part)
        return jax.tree.map(jnp.add, gradient, own), value

    dealt = jax.tree.map(lambda rows: interleave(rows, parts), (batch, keys))
    total, values = lax.scan(add, jax.tree.map(jnp.zeros_like, params), dealt)
    mean: Any = jax.tree.map(lambda value: value.mean(axis=0), values)
    return mean, jax.tree.map(lambda sum_: sum_ / parts, total)


def _clamp(params: Params, limit: float) -> Params:
    if "logit_scale" not in params:
        return params
    return {**params, "logit_scale": jnp.minimum(params["logit_scale"], limit)}


def _rows(batch: Batch) -> int:
    return int(batch["input_ids"].shape[0])
