"""What a step of a run costs on a mesh, told by the program it compiles to: no weights, no data, no such devices.

The step is the one that `run.build` makes, on arrays of which there are only shapes, dtypes and places. It is compiled
for a TPU topology, which libtpu describes without one being there, or for as many virtual devices of this CPU; then the
program is what the CPU's compiler makes of it, which fuses less, and sends and keeps more in float32 than others do.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from altclip_jax import parallel
from altclip_jax.files import hub
from altclip_jax.planning.exchange import Exchange, exchanges
from altclip_jax.planning.program import parse
from altclip_jax.pretrained import CLIPTextModel, CLIPTextModelWithProjection, TwoTowerModel
from altclip_jax.training.config import RunConfig
from altclip_jax.training.flops import model_flops
from altclip_jax.training.objectives import Objective, TeacherLearning
from altclip_jax.training.run_folder import open_model
from altclip_jax.training.stages import check_widths, contrastive_objective
from altclip_jax.training.state import TrainState, split
from altclip_jax.training.steps import build_step
from altclip_jax.weights.convert import Params
from altclip_jax.weights.folder import CONFIG

# Machine code that nobody runs need not be fast: half the time to compile, and the same program in every number here.
_NEVER_RUN = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # beside another plan, or a run on devices that are there
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one step costs; bytes and operations are those of one device.

    Attributes:
        compiler: The topology it was compiled for, such as "v5e:4x8", or "cpu".
        mesh: Sizes by axis.
        batch_size: Of the whole mesh.
        arguments: Bytes by kind, each device's share of every array.
        compiled_arguments: Bytes of those that the program reads, in the layout that it wants them in.
        results: Bytes of what the step returns, most of it in the place of arguments.
        temporaries: Bytes of what lives within the step; for TPU those beside the arguments at the worst moment.
        peak: Bytes at that moment, as the compiler says. The CPU's does not say: arguments, temporaries, and results
            that are not in the place of arguments.
        program_flops: Of the products in the compiled program: what is computed again counts again.
        model_flops: Of the same step with nothing computed twice, dealt evenly over the devices.
        exchanges: What is sent, the largest first.
        unknown_loops: Loops that count as one round because the program does not say how many they make.
        seconds: That tracing and compiling took.
    """

    compiler: str
    mesh: dict[str, int]
    batch_size: int
    arguments: dict[str, int]
    compiled_arguments: int
    results: int
    temporaries: int
    peak: int
    program_flops: float
    model_flops: float
    exchanges: tuple[Exchange, ...]
    unknown_loops: int
    seconds: float


def plan_apart(config: RunConfig, *, devices: int | None = None, topology: str | None = None) -> Plan:
    """Plans in a process of its own, since how many devices a process has is fixed when jax starts.

    Args:
        config: The run; of the sources of its model and its teacher only config.json is read, which they may also be.
        devices: How many virtual devices; None: as many as the run's mesh says.
        topology: A TPU slice instead, such as "v5e:4x8".

    Raises:
        ValueError: settings, model, mesh and devices do not fit each other.
        OSError: a config.json is missing, or the compiler ended before it was done.
    """
    if devices is None and topology is None:
        if config.mesh.data is None:
            raise ValueError(
                "For how many devices? Name the size of each axis of the mesh, their number, or a topology."
            )
        devices = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_plan_here, config, devices, topology).result()
        except BrokenProcessPool:
            raise OSError(
                "The process that compiles the step was ended from outside before it was done, most likely for want of"
                " memory: compile for fewer devices, or a model with fewer layers."
            ) from None


def _plan_here(config: RunConfig, devices: int | None, topology: str | None) -> Plan:
    settings: Any = jax.config
    settings.update("jax_platforms", "cpu")
    if topology is None:
        settings.update("jax_num_cpu_devices", devices)
        found = jax.devices()
    else:
        # a tenth of the time to compile: products and exchange stay the same; of the two peaks that were compared one
        # did (5.23 GiB), one was 45.4 MiB instead of 53.8
        settings.update("jax_exec_time_optimization_effort", -1.0)
        found = topology_devices(topology)
    mesh = parallel.make_mesh(**config.mesh.model_dump(), devices=found)
    return plan(config, mesh, compiler=topology or "cpu")


def topology_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice that need not exist.

    Raises:
        ValueError: libtpu is not installed, or knows no such topology.
    """
    from jax.experimental import topologies

    # libtpu must neither ask the cloud which machine this is, nor complain that nobody tells it
    for name, value in _NO_MACHINE.items():
        os.environ.setdefault(name, value)
    # two cores of a v4 are one device, as jax runs them
    whole = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **whole).devices)
    except RuntimeError as error:
        raise ValueError(
            f"There is no topology {topology!r} to compile for ({str(error).splitlines()[0]}). Such names are v5e:4x8"
            " or v5p:4x4x4, and the package libtpu must be installed in the version that this jax names: pip install"
            " 'jax[tpu]'."
        ) from error


def plan(config: RunConfig, mesh: Mesh, *, compiler: str) -> Plan:
    """Compiles a step for a mesh and reads the program.

    Raises:
        ValueError: settings, model and mesh do not fit each other.
    """
    start = time.perf_counter()
    step = abstract_step(config, mesh)
    compiled = _compile(step, _NEVER_RUN if compiler == "cpu" else {})
    seconds = time.perf_counter() - start
    program, memory = parse(compiled.as_text()), compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes
    if compiler != "cpu":
        peak = memory.peak_memory_in_bytes
        temporaries = peak - arguments
    return Plan(
        compiler=compiler,
        mesh={str(axis): size for axis, size in mesh.shape.items()},
        batch_size=config.batch_size,
        arguments=argument_bytes(step),
        compiled_arguments=arguments,
        results=memory.output_size_in_bytes,
        temporaries=temporaries,
        peak=peak,
        program_flops=program.product_flops(),
        model_flops=step.model_flops() / mesh.size,
        exchanges=tuple(exchanges(program, mesh.shape)),
        unknown_loops=program.unknown_loops(),
        seconds=seconds,
    )


def _compile(step: Step, options: dict[str, Any]) -> Any:
    try:
        return step.lowered().compile(options)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"The step does not fit: {str(error).splitlines()[0]} Give a device fewer rows, more loss.micro_batches or"
            " model.remat if these are temporaries, a larger fsdp or tensor axis if they are arguments."
        ) from None


def argument_bytes(step: Step) -> dict[str, int]:
    """Returns how many bytes of a step's arguments are on one device, by kind."""
    state = step.state
    kinds = {
        "parameters": state.params,
        "moving average": state.average,
        "optimizer state": (state.opt_state, state.step, state.healthy),
        "locked": step.locked,
        "teacher": step.helper,
        "batch": step.batch,
    }
    return {kind: sum(map(_shard_bytes, jax.tree.leaves(tree))) for kind, tree in kinds.items()}


def _shard_bytes(leaf: Any) -> int:
    shape: tuple[int, ...] = leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * int(leaf.dtype.itemsize)


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

    def model_flops(self) -> float:
        """Returns the operations of its products with nothing computed twice, on all devices together."""
        return model_flops(self.objective, self.state.params, self.locked, self.helper, self.batch)


def abstract_step(config: RunConfig, mesh: Mesh) -> Step:
    """Returns the step of a run and what it takes, as shapes that say where their arrays would be.

    Raises:
        ValueError: settings, model and mesh do not fit each other.
    """
    parallel.local_rows(mesh, config.batch_size)
    model = open_model(config, _config_file(config.model.source))
    trained, locked = split(model.param_shapes(), config.model.train, config.model.frozen)
    stage = _teacher_learning if config.stage == "teacher" else _contrastive
    objective, helper, parts, batch = stage(config, mesh, model)
    built = build_step(config, model, mesh, objective, trained)
    used = {part: tree for part, tree in locked.items() if part in parts}
    rows = parallel.sharding(mesh, parallel.BATCH)
    return Step(
        function=built.function,
        state=built.state,
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
        return hub.fetch(source, CONFIG) / "config.json"
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} A plan needs no weights: model.source and teacher.source may also be a config.json."
        ) from None


def _abstract(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Any:
    abstract: Any = jax.ShapeDtypeStruct
    return abstract(shape, dtype, sharding=sharding)
