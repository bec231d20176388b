"""What a run is: a TOML file, checked whole before anything starts.

The defaults of each stage are those of Chen et al. 2022 (arXiv 2211.06679), table 6; what it leaves open is decided
here and said beside the field.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from altclip_jax.data.augment import Augmentation
from altclip_jax.data.sources import SourceSpec
from altclip_jax.files.json_file import DEEPEST, parse_toml
from altclip_jax.processing.image import Orientation

Stage = Literal["teacher", "contrastive"]
Share = Annotated[float, Field(ge=0, lt=1)]

# Chen et al. 2022, table 6; what a stage's file does not say.
_STAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "teacher": {
        "steps": 238_620,
        "model": {"train": ["text_model"]},
        "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.1, "warmup_steps": 500, "clip_norm": 1.0},
    },
    "contrastive": {
        "steps": 2_000,
        "model": {"train": ["text_model", "text_projection", "logit_scale"]},
        "optimizer": {"learning_rate": 2e-6, "weight_decay": 0.05, "warmup_steps": 2_000, "clip_norm": 5.0},
    },
}
# An optimizer's own custom where the paper's table, which is of AdamW, does not speak of it.
_OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"weight_decay": 0.0},
    "sgd": {"weight_decay": 0.0, "betas": (0.9, 0.999)},  # the first is the momentum
    "lion": {"betas": (0.9, 0.99)},
    "lamb": {"betas": (0.9, 0.999)},
    "muon": {"betas": (0.9, 0.999)},  # of Adam, for what is no matrix of a layer
}


class _Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSettings(_Settings):
    """The model that is trained."""

    source: str  # folder or hub id: an AltCLIP, or for training from scratch a CLIP
    train: tuple[str, ...]  # parts of the model that train; the others are locked and cost nothing
    fresh: tuple[str, ...] = ()  # parts that start from random values of the run's seed, not from the source
    frozen: tuple[str, ...] = ()  # regular expressions for whole paths within those parts that do not train
    # of computation; master parameters are float32. float16 is not here: its gradients need their loss scaled
    dtype: Literal["float32", "bfloat16"] = "float32"
    # what each layer computes again in the backward pass: "dots" all but products with parameters, which is faster than
    # to keep everything where memory is slow (docs/benchmark.md)
    remat: Literal["none", "full", "dots"] = "dots"
    attention: Literal["plain", "xla", "cudnn"] = "plain"
    # compile one layer of a tower and scan over all of them: at 24 layers a sixteenth of the time to compile and, on
    # CPUs, a third of the time of a step; and what makes `remat` save memory there
    scan_layers: bool = True


class TeacherSettings(_Settings):
    """Whose sentence embeddings the student learns."""

    source: str  # folder or hub id of a CLIP
    # "pooled": the state before CLIP's text projection, which the student then inherits unchanged, so that stage 1
    # fits all of the teacher's width; "projected": after it, in the space where pictures are compared
    target: Literal["pooled", "projected"] = "pooled"
    store: bool = True  # compute its embeddings once, before the first step
    max_length: PositiveInt = 77


class SourceSettings(_Settings):
    """One file, or shards, of samples."""

    path: str
    weight: PositiveFloat = 1.0
    format: str | None = None  # None: by its suffix
    languages: tuple[str, ...] | None = None  # only these
    image_key: str | None = None  # the name under which something stands in the file; None: the usual ones
    caption_key: str | None = None
    source_key: str | None = None
    target_key: str | None = None
    language_key: str | None = None

    def spec(self) -> SourceSpec:
        """Returns what the data room opens."""
        return SourceSpec(**self.model_dump())


class DataSettings(_Settings):
    """What is learned from, and how it is read."""

    train: tuple[SourceSettings, ...] = Field(min_length=1)
    evaluate: tuple[SourceSettings, ...] = ()
    max_length: PositiveInt = 77  # of a text, in tokens, to which all are padded
    languages: dict[str, NonNegativeFloat] | None = None  # how likely each is where a sample has several
    store_image_features: bool = True  # of a locked image tower without augmentation: compute them once
    augmentation: dict[str, Any] = Field(default_factory=dict)  # fields of `Augmentation`
    # "exif": pictures are turned as their EXIF says, "stored": they are not, as in release 0.1.0; where the model's
    # preprocessor_config.json has apply_exif_orientation, that decides
    orientation: Orientation = "exif"
    # whose ids tokenizers give: see `load_tokenizer`; false is what release 0.1.0 did
    use_fast: bool | None = None
    threads: PositiveInt = 4
    prefetch: PositiveInt = 2  # batches made ahead
    max_bad_share: Share = 0.01

    @pydantic.field_validator("augmentation")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            make_augmentation(value)
        except TypeError as error:
            raise ValueError(f"{error}; there are {', '.join(Augmentation.__dataclass_fields__)}") from None
        return value


class LossSettings(_Settings):
    """How the loss and its gradient are computed."""

    # "chunked" and "ring" never hold all scores: see `contrastive_loss`; "ring" is for many devices
    form: Literal["plain", "chunked", "ring"] = "plain"
    chunk_rows: PositiveInt = 1024  # of texts compared at a time: of the batch, or in a ring of a device's part of it
    micro_batches: PositiveInt = 1  # gradient caching: the gradient of the whole batch in the memory of a part
    accumulate: PositiveInt = 1  # mean of the gradients of parts, each with a loss of its own
    max_log_scale: float = math.log(100)  # the temperature stops there, as in Radford et al. 2021


class PathRule(_Settings):
    """What holds for parameters whose whole path matches; the first rule that matches decides."""

    match: str
    factor: NonNegativeFloat = 1.0  # of the learning rate
    decay: bool | None = None  # None: as without a rule

    @pydantic.field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from None
        return value


class OptimizerSettings(_Settings):
    """How parameters change."""

    name: Literal["adamw", "adam", "sgd", "lion", "lamb", "adafactor", "muon"] = "adamw"
    learning_rate: PositiveFloat
    betas: tuple[Share, Share] = (0.99, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat  # decoupled, of matrices and tables; not of biases, norms and the temperature
    clip_norm: PositiveFloat | None  # of the whole gradient
    warmup_steps: NonNegativeInt
    schedule: Literal["constant", "cosine", "linear"] = "cosine"  # after warm-up
    final_factor: NonNegativeFloat = 0.0  # of the learning rate, at the last step
    rules: tuple[PathRule, ...] = ()
    # keep an exponential moving average of the parameters, which is then what is measured and exported; after n steps
    # its decay is at most (1 + n) / (10 + n), so that it forgets where it began
    ema_decay: Share | None = None


class CheckpointSettings(_Settings):
    """When a run is saved and what is kept."""

    every: PositiveInt = 500
    keep_last: PositiveInt = 2
    keep_best: NonNegativeInt = 0  # by `metric`, beside the last; if any, the best is what is exported in the end
    metric: str = "mean_recall"  # "loss", "text_to_image@1", "zh/text_to_image@1", ...
    mode: Literal["max", "min"] = "max"


class LoggingSettings(_Settings):
    """What a run tells."""

    every: PositiveInt = 10
    tensorboard: bool = False
    profile_steps: tuple[PositiveInt, PositiveInt] | None = None  # first and last of a profiler trace, counted from 1


class RetrievalSettings(_Settings):
    """What `altclip evaluate retrieval` measures, in its words."""

    data: tuple[str, ...] = Field(min_length=1)  # files or patterns
    language: tuple[str, ...] | None = None  # only captions in these


class ZeroShotSettings(_Settings):
    """What `altclip evaluate zero-shot` measures, in its words."""

    data: tuple[str, ...] = Field(min_length=1)  # a folder with a sub-folder for each class, tables or shards
    classes: str  # a file with their names by language
    templates: str | None = None  # a file with prompts by language; None: the bare names
    language: tuple[str, ...] | None = None  # only names in these


TaskName = Annotated[str, Field(pattern=r"^[\w-]+$")]


class EvaluationSettings(_Settings):
    """When a run is measured on what it does not learn from, and on which tasks of `altclip evaluate`."""

    every: PositiveInt = 500
    batch_size: PositiveInt = 256
    retrieval: dict[TaskName, RetrievalSettings] = Field(default_factory=dict)  # by a name for its numbers
    zero_shot: dict[TaskName, ZeroShotSettings] = Field(default_factory=dict)

    @property
    def has_tasks(self) -> bool:
        """Whether there is any task."""
        return bool(self.retrieval or self.zero_shot)

    def knows(self, metric: str) -> bool:
        """Returns whether a task may have a number: TASK/NAME/NUMBER or TASK/NAME/LANGUAGE/NUMBER."""
        task, _, rest = metric.partition("/")
        name, _, number = rest.partition("/")
        numbers = {
            "retrieval": r"([^/]+/)?(mean_recall|(text_to_image|image_to_text)@(1|5|10))",
            "zero_shot": r"([^/]+/)?(top1|top5|mean_per_class)",
        }
        return task in numbers and name in getattr(self, task) and bool(re.fullmatch(numbers[task], number))


class MeshSettings(_Settings):
    """How devices are arranged; `data` None takes all that the others leave."""

    data: PositiveInt | None = None
    fsdp: PositiveInt = 1
    tensor: PositiveInt = 1


class RunConfig(_Settings):
    """A training run."""

    stage: Stage
    folder: str  # where the run is kept; made by it
    steps: PositiveInt
    batch_size: PositiveInt = 1024
    seed: NonNegativeInt = 0
    model: ModelSettings
    teacher: TeacherSettings | None = None
    data: DataSettings
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings
    checkpoints: CheckpointSettings = CheckpointSettings()
    logging: LoggingSettings = LoggingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    mesh: MeshSettings = MeshSettings()

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if (self.stage == "teacher") != (self.teacher is not None):
            problems.append("stage 'teacher' needs a [teacher], and only it")
        for name in ("micro_batches", "accumulate"):
            if self.batch_size % getattr(self.loss, name):
                problems.append(f"loss.{name}={getattr(self.loss, name)} must divide batch_size={self.batch_size}")
        if self.loss.micro_batches > 1 and self.loss.accumulate > 1:
            problems.append("loss.micro_batches and loss.accumulate cut the batch in two ways: use one of them")
        compared = self.batch_size // self.loss.accumulate
        if self.loss.form == "chunked" and compared % min(self.loss.chunk_rows, compared):
            problems.append(f"loss.chunk_rows={self.loss.chunk_rows} must divide the {compared} rows that are compared")
        problems += self._idle()
        if self.stage == "teacher":
            projected = self.teacher is not None and self.teacher.target == "projected"
            unread = sorted(set(self.model.train) - {"text_model", *(["text_projection"] if projected else [])})
            if unread:
                problems.append(f"model.train={unread} are not read by this stage: nothing can be learned for them")
        if self.optimizer.warmup_steps > self.steps:
            problems.append(f"optimizer.warmup_steps={self.optimizer.warmup_steps} exceeds steps={self.steps}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _idle(self) -> list[str]:
        """Returns what is set and would do nothing."""
        problems = []
        if self.stage == "teacher":
            if self.data.languages is not None:
                problems.append(
                    "data.languages weighs captions of pictures; parallel text is mixed by sources' weights"
                )
            plain = LossSettings()
            idle = [
                name
                for name in ("form", "chunk_rows", "max_log_scale")
                if getattr(self.loss, name) != getattr(plain, name)
            ]
            if idle:
                problems.append(f"loss.{', loss.'.join(idle)} are of the contrastive loss, not of stage 'teacher'")
        if self.checkpoints.keep_best:
            if not self.data.evaluate and not self.evaluation.has_tasks:
                problems.append("checkpoints.keep_best needs data.evaluate or a task, which says what is better")
            directions = "text_to_teacher" if self.stage == "teacher" else "text_to_image|image_to_text"
            known = rf"mean_recall|([^/]+/)?loss|([^/]+/)?({directions})@(1|5|10)"
            own = self.data.evaluate and re.fullmatch(known, self.checkpoints.metric)
            if not own and not self.evaluation.knows(self.checkpoints.metric):
                problems.append(
                    f"checkpoints.metric={self.checkpoints.metric!r} is not evaluated in this stage: there are loss,"
                    f" mean_recall and {directions.replace('|', '@1, ')}@1, also for 5, 10 and each language, of"
                    " data.evaluate; and those of evaluation.retrieval and evaluation.zero_shot, such as"
                    " zero_shot/NAME/top1"
                )
        return problems

    @classmethod
    def read(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Self:
        """Reads a TOML file; `overrides` such as "optimizer.learning_rate=1e-3" win over it.

        Paths in the file are relative to it, but for the run's own `folder`, which like the paths of the overrides is
        relative to where the command runs.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not TOML, or settings are unknown, missing or make no sense; all are named.
        """
        file = Path(path)
        try:
            values = parse_toml(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"There is no {file}: expected the TOML file of a run, such as those in recipes/."
            ) from None
        except ValueError as error:
            raise ValueError(f"{file} is not valid TOML ({error}).") from None
        _anchor(values, file.parent)
        for setting in overrides:
            override(values, setting)
        return cls.from_values(values, str(file))

    @classmethod
    def from_values(cls, values: Mapping[str, Any], subject: str = "The configuration") -> Self:
        """Checks values, with the defaults of their stage.

        Raises:
            ValueError: settings are unknown, missing or make no sense; all are named.
        """
        try:
            return cls.model_validate(_with_defaults(values))
        except pydantic.ValidationError as error:
            faults = [
                f"{_place(fault['loc'])}{fault['msg']} (got {_shown(fault['input'])})" for fault in error.errors()
            ]
            raise ValueError(f"{subject} is not the configuration of a run:\n  - " + "\n  - ".join(faults)) from None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that `from_values` reads back equal."""
        return self.model_dump(mode="json")

    def says(self, name: str) -> bool:
        """Returns whether a setting, by its dotted name, was given and is not the default that stands in for it."""
        node: Any = self
        for part in name.split("."):
            if not isinstance(node, _Settings) or part not in node.model_fields_set:
                return False
            node = getattr(node, part)
        return True


def make_augmentation(values: Mapping[str, Any]) -> Augmentation:
    """Returns the augmentation that a file's table describes, whose pairs are lists."""
    fields: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Augmentation(**fields)


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values with the defaults of their stage, and of their optimizer, where they say nothing."""
    merged = dict(values)
    for name, default in _STAGE_DEFAULTS.get(str(values.get("stage")), {}).items():
        given = merged.setdefault(name, {} if isinstance(default, Mapping) else default)
        if isinstance(default, Mapping) and isinstance(given, Mapping):
            own = _OPTIMIZER_DEFAULTS.get(str(given.get("name")), {}) if name == "optimizer" else {}
            merged[name] = {**default, **own, **given}
    return merged


def _anchor(values: dict[str, Any], folder: Path) -> None:
    """Makes paths that exist beside the file independent of where the command runs."""
    data = values.get("data")
    sources = [
        item for name in ("train", "evaluate") for item in (data.get(name) or [] if isinstance(data, dict) else [])
    ]
    for table, key in [
        (values.get("model"), "source"),
        (values.get("teacher"), "source"),
        *((item, "path") for item in sources),
    ]:
        if isinstance(table, dict) and isinstance(table.get(key), str):
            beside = folder / table[key]
            is_path = key == "path" or beside.exists() or table[key].startswith((".", "/"))
            table[key] = str(beside.resolve()) if is_path else table[key]
    for task in _tables(values.get("evaluation"), "retrieval", "zero_shot"):
        for key in ("data", "classes", "templates"):
            if isinstance(task.get(key), str):
                task[key] = str((folder / task[key]).resolve())
            elif isinstance(task.get(key), list):
                task[key] = [str((folder / str(name)).resolve()) for name in task[key]]


def _tables(values: Any, *names: str) -> Iterator[dict[str, Any]]:
    """Yields the tables within tables of some names."""
    for name in names:
        named = values.get(name) if isinstance(values, dict) else None
        yield from (table for table in (named.values() if isinstance(named, dict) else ()) if isinstance(table, dict))


def override(values: dict[str, Any], setting: str) -> None:
    """Puts what "key=value" says into the values.

    Raises:
        ValueError: it is not of that form, or there is no such place.
    """
    name, equals, text = setting.partition("=")
    if not equals or not name:
        raise ValueError(f"{setting!r} is not of the form key=value, such as optimizer.learning_rate=1e-3.")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a string that needs no quotes, as on any command line
    except ValueError as error:
        raise ValueError(f"{_shown(setting)} is no setting: {error}.") from None
    *parents, last = name.split(".")
    if len(parents) > DEEPEST:
        raise ValueError(f"{_shown(setting)} names no setting: it nests more than {DEEPEST} levels deep.")
    try:
        node: Any = values
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        node[int(last) if isinstance(node, list) else last] = value
    except (TypeError, ValueError, IndexError, AttributeError):
        raise ValueError(f"{setting!r} names no setting: there is no place {name} in this file.") from None


def _place(location: Sequence[Any]) -> str:
    """Returns where a fault lies, in front of a sentence that tells it."""
    return ".".join(map(str, location)) + ": " if location else ""


def _shown(value: Any) -> str:
    """Returns a value as a sentence quotes it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
