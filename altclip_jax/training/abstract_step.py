"""The step of a run on arrays of which there are only shapes, dtypes and places: nothing is read but config.json."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from altclip_jax import parallel
from altclip_jax.files import hub
from altclip_jax.model.clip import CLIPTextModel, CLIPTextModelWithProjection
from altclip_jax.model.two_towers import TwoTowerModel
from altclip_jax.training import folder
from altclip_jax.training.config import RunConfig
from altclip_jax.training.objectives import Objective, TeacherLearning
from altclip_jax.training.optimizer import make_optimizer
from altclip_jax.training.partition import split
from altclip_jax.training.stages import check_widths, contrastive_objective
from altclip_jax.training.state import TrainState, initial_state
from altclip_jax.training.steps import make_train_step, step_settings
from altclip_jax.weights.convert import Params


class Step(NamedTuple):
    """The step of a run without its arrays."""

    function: Callable[..., Any]  # jitted, of the four that follow
    state: TrainState
    locked: Params
    helper: Params
    batch: Params
    objective: Objective

    def lowered(self) -> Any:
        """Returns the traced step, which compiles."""
        function: Any = self.function
        return function.lower(self.state, self.locked, self.helper, self.batch)


def abstract_step(config: RunConfig, mesh: Mesh) -> Step:
    """Returns the step of a run and what it takes, as shapes that say where their arrays would be.

    Raises:
        ValueError: settings, model and mesh do not fit each other.
    """
    parallel.local_rows(mesh, config.batch_size)
    model = folder.open_model(config, _config_file(config.model.source))
    trained, locked = split(model.param_shapes(), config.model.train, config.model.frozen)
    stage = _teacher_learning if config.stage == "teacher" else _contrastive
    objective, helper, parts, batch = stage(config, mesh, model)
    optimizer = make_optimizer(config.optimizer, config.steps, trained)
    averaged = config.optimizer.ema_decay is not None
    shapes = jax.eval_shape(functools.partial(initial_state, optimizer=optimizer, averaged=averaged), trained)
    places = parallel.state_shardings(mesh, shapes)
    settings = step_settings(config, model, mesh)
    function = jax.jit(
        make_train_step(objective, optimizer, settings),
        donate_argnums=0,
        out_shardings=(places, parallel.sharding(mesh)),
    )
    used = {part: tree for part, tree in locked.items() if part in parts}
    rows = parallel.sharding(mesh, parallel.BATCH)
    return Step(
        function=function,
        state=parallel.placed(shapes, places),
        locked=parallel.placed(used, parallel.param_shardings(mesh, used)),
        helper=helper,
        batch={name: _abstract((config.batch_size, *shape), dtype, rows) for name, (shape, dtype) in batch.items()},
        objective=objective,
    )


def _contrastive(config: RunConfig, mesh: Mesh, model: TwoTowerModel) -> tuple[Objective, Params, set[str], Params]:
    """Returns the objective, no teacher, the locked parts that the step reads, and a row of its batch."""
    vision, data = model.config.vision_config, config.data
    image_locked = "vision_model" not in config.model.train
    stored = image_locked and data.store_image_features and not data.augmentation
    picture: dict[str, Any] = (
        {"image_features": ((vision.hidden_size,), jnp.float32)}
        if stored
        else {"pixel_values": ((vision.num_channels, vision.image_size, vision.image_size), jnp.float32)}
    )
    parts = set(model.param_shapes()) - ({"vision_model"} if stored else set())
    objective = contrastive_objective(config, model, mesh)
    return objective, {}, parts, {**_texts(data.max_length), **picture}


def _teacher_learning(
    config: RunConfig, mesh: Mesh, model: TwoTowerModel
) -> tuple[Objective, Params, set[str], Params]:
    """Returns the objective, the teacher, the locked parts that the step reads, and a row of its batch."""
    assert config.teacher is not None
    projected = config.teacher.target == "projected"
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    own = kind.config_class.from_json(_config_file(config.teacher.source))
    teacher = kind(own, dtype=jnp.dtype("float32" if config.teacher.store else config.model.dtype))
    shapes = teacher.param_shapes()
    helper = parallel.placed(shapes, parallel.param_shardings(mesh, shapes, teacher.params_prefix))
    parts = {"text_model", "logit_scale", *(["text_projection"] if projected else [])}
    objective = TeacherLearning(model, teacher, config.teacher.target)
    check_widths(model, teacher, config.teacher.target)
    texts = _texts(config.data.max_length)
    if config.teacher.store:
        width = own.projection_dim if projected else own.hidden_size
        return objective, {}, parts, {**texts, "teacher_features": ((width,), jnp.float32)}
    return objective, helper, parts, {**texts, **_texts(config.teacher.max_length, "teacher_")}


def _texts(length: int, prefix: str = "") -> Params:
    return {f"{prefix}{name}": ((length,), jnp.int32) for name in ("input_ids", "attention_mask")}


def _config_file(source: str) -> Path:
    """Returns the config.json that a source is, or has."""
    if Path(source).is_file():
        return Path(source)
    try:
        return hub.fetch_files(source, ["config.json"]) / "config.json"
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} A plan needs no weights: model.source and teacher.source may also be a config.json."
        ) from None


def _abstract(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Any:
    abstract: Any = jax.ShapeDtypeStruct
    return abstract(shape, dtype, sharding=sharding)
