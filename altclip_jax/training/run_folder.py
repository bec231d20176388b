"""A run's folder: to go on, nothing else is needed but the data and, in teacher learning, the teacher.

`model/` has the configuration and the processor's files, `locked/` each part that does not train, `features/` what was
computed once, `checkpoints/` the states, `config.json` and `metrics.jsonl` what they say, `export/` the result.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from altclip_jax import checkpoints, parallel
from altclip_jax.data.files import find_files
from altclip_jax.distributed import barrier, is_first
from altclip_jax.files.checkpoint_folder import CONFIG_FILE, PROCESSOR_FILES, read_whole
from altclip_jax.files.json_file import json_bytes, read_json_object, write_json
from altclip_jax.files.lock import hold_alone
from altclip_jax.files.ownership import claim, containing, keep_apart, says
from altclip_jax.files.staging import refusals_explained
from altclip_jax.files.whole import replace_files
from altclip_jax.machine import default_device
from altclip_jax.pretrained import AltCLIPModel, CLIPModel, TwoTowerModel
from altclip_jax.processing.image import AltCLIPImageProcessor
from altclip_jax.processing.processor import IMAGE_PROCESSOR, TOKENIZER, AltCLIPProcessor, load_processor
from altclip_jax.quantization.files import refuse_quantized
from altclip_jax.training.checkpoint import CheckpointStore, load_tree, save_tree
from altclip_jax.training.config import RunConfig
from altclip_jax.training.description import config_of, differences, read_description
from altclip_jax.training.processes import find, whole
from altclip_jax.training.state import merge, split
from altclip_jax.weights.convert import Params
from altclip_jax.weights.fingerprint import VERSION, fingerprint, version_of
from altclip_jax.weights.folder import CONFIG, WEIGHTS, save

_FAMILIES: dict[str, type[TwoTowerModel]] = {"altclip": AltCLIPModel, "clip": CLIPModel}
# What a run writes into its folder, and replaces; the rest of it is left alone.
_WRITTEN = (
    *("config.json", "metrics.jsonl", "bad_samples.jsonl", "model", "locked", "features", "checkpoints", "export"),
    *("profile", "tensorboard", "teacher.json"),
)
_REMAT: dict[str, Any] = {"none": False, "full": True, "dots": "dots"}


def claim_folder(config: RunConfig, folder: Path) -> None:
    """Takes a folder for a run; what the run reads may lie in it, though not where the run writes.

    Raises:
        FileExistsError: the folder holds something else than a run.
        ValueError: what is read lies where it would be written over.
    """
    teacher = [] if config.teacher is None else [config.teacher.source]
    sources = [config.model.source, *teacher]
    for source in (*config.data.train, *config.data.evaluate):
        with contextlib.suppress(FileNotFoundError):  # whoever opens them says which are missing
            sources += map(str, find_files(source.path))
    keep_apart(filter(os.path.exists, sources), *(folder / name for name in _WRITTEN))
    claim(folder, "run")


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Keeps another `altclip train` out of a folder while the context is open; gives False where nothing does.

    Raises:
        OSError: another one is in it; or there are no locks, and to go on without is not allowed.
    """
    if not is_first():
        yield True
        return
    with hold_alone(
        folder / ".lock",
        busy=f"Another run is at work in {folder}: wait for it, stop it, or choose another folder for this one.",
        risk="another `altclip train` out of this folder, and two would spoil each other's checkpoints and log",
    ) as guarded:
        yield guarded


def begin(config: RunConfig, folder: Path, description: Mapping[str, Any], mesh: Mesh) -> Params:
    """Fills the folder of a new run from the source of its model, and returns the parameters that train, on the mesh.

    Args:
        config: What the run is.
        folder: Of the run.
        description: What is written of it, see `describe`.
        mesh: Where to.

    Raises:
        ValueError: the source is not a model of this stage, or its processor is not that of the model.
        OSError: it is missing, or the folder cannot be written.
    """
    source = find(config.model.source).fetch(CONFIG, WEIGHTS, IMAGE_PROCESSOR, TOKENIZER)
    kind = model_class(source, config)
    refuse_quantized(source, "training")

    def read() -> tuple[TwoTowerModel, Params, AltCLIPProcessor]:
        processor = load_processor(source, kind.config_class.from_json(source), config.model.source)
        _require_one_orientation(config, processor.image_processor)
        return *kind.from_pretrained(source, mesh=mesh), processor

    model, params, processor = read_whole(source, read)
    if unknown := sorted(set(config.model.fresh) - set(params)):
        raise ValueError(f"model.fresh={unknown} are no parts of this model, whose parts are {', '.join(params)}.")
    if config.model.fresh:
        parts = tuple(config.model.fresh)
        key = jax.random.key(config.seed)
        params = {**params, **model.init_params(key, lambda path: path.split("/")[0] in parts, mesh=mesh)}
    trained, locked = split(params, config.model.train, config.model.frozen)
    if is_first():
        _forget_others(description, folder)
        (folder / "teacher.json").unlink(missing_ok=True)
        described = {CONFIG_FILE: json_bytes(model.config.to_dict()), **processor.files()}
        replace_files(folder / "model", described, (CONFIG_FILE, *PROCESSOR_FILES))
    for part in locked:
        save_tree(folder / "locked" / part, {part: locked[part]})
    if is_first():
        write_json(folder / "config.json", description)
    barrier("the folder of the run is filled")
    return trained


def require_teacher(folder: Path, source: str, params: Params) -> str:
    """Checks that a run's teacher is the one that it began with, and returns the fingerprint of its parameters.

    A run that does not know its teacher yet, of which that may have been release 0.1.0, learns it here.

    Args:
        folder: The run's.
        source: Where the teacher is from.
        params: Its own; all processes call this.

    Raises:
        ValueError: it is another one.
    """
    file, params = folder / "teacher.json", whole(params)
    known = str(read_json_object(file)["fingerprint"]) if file.is_file() else None
    own = fingerprint(params, VERSION if known is None else version_of(known))
    barrier("the teacher is looked at")
    if known is None and is_first():
        write_json(file, {"fingerprint": own})
    if known not in (None, own):
        raise ValueError(
            f"The teacher in {source} is not the one that the run in {folder} began with: it has other parameters. Go"
            " on with that one, or choose another folder for a new run."
        )
    return own


def open_model(config: RunConfig, source: Path) -> TwoTowerModel:
    """Returns the network that a config.json, or that of a folder, describes, with a run's settings of computation.

    Raises:
        ValueError: it is one tower, or a CLIP that shall be a student.
    """
    kind = model_class(source, config)
    return kind(
        kind.config_class.from_json(source),
        dtype=jnp.dtype(config.model.dtype),
        attention_implementation=config.model.attention,
        remat=_REMAT[config.model.remat],
    )


def model_class(source: Path, config: RunConfig) -> type[TwoTowerModel]:
    """Returns the class of the model in a folder.

    Raises:
        ValueError: it is one tower, or a CLIP that shall be a student.
    """
    family, part = checkpoints.kind_of(source)
    if part != "full":
        raise ValueError(
            f"{source} is the {part} tower of a model: training needs a whole one, such as `altclip init` makes."
        )
    if config.stage == "teacher" and family != "altclip":
        raise ValueError(
            f"{source} is a CLIP: the student of teacher learning is an AltCLIP, such as `altclip init` makes."
        )
    return _FAMILIES[family]


def load_locked(folder: Path, shapes: Params, parts: Iterable[str], mesh: Mesh) -> Params:
    """Reads parts that do not train onto a mesh.

    Args:
        folder: The run's.
        shapes: Of everything that is locked.
        parts: First levels of that tree; those that train whole are skipped.
        mesh: Where to.
    """
    loaded: Params = {}
    for part in parts:
        if part in shapes:
            own = {part: shapes[part]}
            loaded |= load_tree(folder / "locked" / part, parallel.placed(own, parallel.param_shardings(mesh, own)))
    return loaded


def export(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    step: int | None = None,
    best: bool = False,
    average: bool = True,
    mesh: Mesh | None = None,
) -> int:
    """Writes a checkpoint of a run as a folder that transformers and this library load, and returns its step.

    Args:
        folder: The run's.
        target: The new folder.
        step: One that is there; None: the last.
        best: The best by the run's own `checkpoints.metric` instead of the last.
        average: The moving average, if the run keeps one.
        mesh: Where the parameters are meanwhile, if they do not fit on one device; all its processes call this.

    Raises:
        FileNotFoundError: the folder has no run, or no such checkpoint.
        ValueError: it is that of a model, the run keeps no best checkpoint, or the target is a part of it.
    """
    folder, target = Path(folder), Path(target)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a training run: it has no config.json.")
    values = read_json_object(folder / "config.json")
    if "model_type" in values:
        raise ValueError(
            f"{folder} is the folder of a model and not of a training run: to write programs of it, use"
            " `altclip export --format stablehlo`."
        )
    config = config_of(values, str(folder / "config.json"))
    keep_apart([folder], target)
    if containing(*(folder / name for name in _WRITTEN if name != "export"))(target):
        raise ValueError(f"{target} is a part of the run, which needs it to go on: name another folder for the model.")
    if best and not config.checkpoints.keep_best:
        raise ValueError(
            f"the run in {folder} does not keep its best checkpoint: checkpoints.keep_best is 0. Export the last, or"
            " another by its step."
        )
    model = open_model(config, folder / "model")
    if mesh is None:
        mesh = parallel.make_mesh(devices=[default_device()] if jax.process_count() == 1 else jax.devices()[:1])
    with CheckpointStore(folder, config.checkpoints, read_only=True) as store:
        steps = store.steps()
        if not steps or (step is not None and step not in steps):
            have = ", ".join(map(str, steps)) or "none"
            raise FileNotFoundError(
                f"{folder} has no checkpoint{'' if step is None else f' of step {step}'}; it has {have}."
            )
        found = step or (best and store.best()) or steps[-1]
        shapes, locked_shapes = split(model.param_shapes(), config.model.train, config.model.frozen)
        abstract = parallel.placed(shapes, parallel.param_shardings(mesh, shapes))
        params = store.params(found, abstract, average=average and config.optimizer.ema_decay is not None)
    params = whole(merge(params, load_locked(folder, locked_shapes, locked_shapes, mesh)))
    if is_first():
        processor = AltCLIPProcessor.from_pretrained(folder / "model")
        save(model, target, params, processor=processor.files())
    barrier("the model is exported")
    return found


def _require_one_orientation(config: RunConfig, pictures: AltCLIPImageProcessor) -> None:
    said, own = config.data.orientation, pictures.apply_exif_orientation
    if config.stage == "contrastive" and config.says("data.orientation") and own not in (None, said == "exif"):
        raise ValueError(
            f"data.orientation={said!r}, and the preprocessor_config.json of {config.model.source} has"
            f" apply_exif_orientation={str(own).lower()}: leave one of them away, or change it."
        )


def _forget_others(description: Mapping[str, Any], folder: Path) -> None:
    """Removes features that another run, which never came to its first checkpoint, has left in the folder."""
    there = folder / "config.json"
    if there.is_file() and not differences(description, read_description(read_json_object(there))):
        return
    with refusals_explained(folder / "features"):
        for told in list((folder / "features").glob("*.json")):
            if says(told, "of", "rows", "width"):
                for path in (told, told.with_suffix(".npy"), told.with_suffix(".there.npy")):
                    path.unlink(missing_ok=True)
