"""The two stages: what each makes of a run's configuration."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from altclip_jax import hub, parallel
from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import HostBatch, Stream
from altclip_jax.data.image_text_stream import ImageTextStream
from altclip_jax.data.text_pair_stream import TextPairStream
from altclip_jax.inference.encoders import pad_rows
from altclip_jax.model.clip import CLIPTextModel, CLIPTextModelWithProjection
from altclip_jax.model.two_towers import TwoTowerModel
from altclip_jax.processing.processor import TOKENIZER_FILES, AltCLIPProcessor
from altclip_jax.processing.tokenizer import load_tokenizer
from altclip_jax.training.config import RunConfig
from altclip_jax.training.evaluate import embedded, image_text_metrics, text_pair_metrics
from altclip_jax.training.features import Pieces, Rows, computed_once
from altclip_jax.training.feeding import Lookup, image_text_stream, text_pair_stream
from altclip_jax.training.folder import load_locked
from altclip_jax.training.objectives import Contrastive, Objective, TeacherLearning
from altclip_jax.training.partition import merge
from altclip_jax.training.state import TrainState
from altclip_jax.weights import pretrained
from altclip_jax.weights.convert import Params

Say = Callable[[str], None]
Evaluate = Callable[[TrainState], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Builder:
    """What both stages are built from."""

    config: RunConfig
    folder: Path
    mesh: Mesh
    model: TwoTowerModel
    locked_shapes: Params
    storing: bool
    say: Say

    @property
    def evaluation_rows(self) -> int:
        """The rows of a batch of evaluation, which can be dealt over the devices."""
        devices = parallel.batch_devices(self.mesh)
        return math.ceil(self.config.evaluation.batch_size / devices) * devices

    def walk(self, over: Callable[..., Iterator[HostBatch]]) -> Iterator[HostBatch]:
        """Walks over everything, such as `stream.all_pictures`, with the run's own limit and log of bad samples."""
        bad = BadSamples(self.folder / "bad_samples.jsonl", max_bad_share=self.config.data.max_bad_share)
        return over(self.evaluation_rows, threads=self.config.data.threads, bad_samples=bad)

    def locked(self, parts: Iterable[str]) -> Params:
        """Reads locked parts onto the mesh."""
        return load_locked(self.folder, self.locked_shapes, parts, self.mesh)

    def features(self, name: str, rows: int, compute: Callable[[], Pieces]) -> Rows:
        """Returns features that are computed once in the life of the run's folder."""

        def told() -> Pieces:
            self.say(f"computing {name} features of {rows:,} samples, once")
            return compute()

        return computed_once(self.folder / "features" / f"{name}.npy", rows, told)

    def encoder(self, function: Callable[..., jax.Array]) -> Callable[..., np.ndarray]:
        """Returns run(params, arrays) for a function of (params, batch): padded rows, one compilation."""
        compiled = jax.jit(function, out_shardings=parallel.sharding(self.mesh))
        rows = self.evaluation_rows
        mine = parallel.local_rows(self.mesh, rows)

        def run(params: Params, arrays: dict[str, np.ndarray]) -> np.ndarray:
            count = len(next(iter(arrays.values())))
            padded = {name: pad_rows(values, rows)[mine] for name, values in arrays.items()}
            return np.asarray(compiled(params, parallel.place_batch(self.mesh, padded)))[:count]

        return run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a stage gives to its run.

    Attributes:
        objective: What is learned.
        stream: The batches.
        lookup: Features that stand in them instead of what they were computed of.
        locked: What a step reads and does not change, on the mesh.
        helper: The teacher's parameters, on the mesh; empty without one.
        evaluate: None without data for it.
    """

    objective: Objective
    stream: Stream
    lookup: Lookup | None
    locked: Params
    helper: Params
    evaluate: Evaluate | None


def contrastive(builder: Builder) -> Parts:
    """Pictures with captions, and features of a locked image tower where they may be stored."""
    config, data, model = builder.config, builder.config.data, builder.model
    objective = Contrastive(model, form=config.loss.form, chunk_rows=config.loss.chunk_rows)
    processor = AltCLIPProcessor.from_pretrained(builder.folder / "model")
    image_locked = "vision_model" not in config.model.train
    stored = builder.storing and image_locked and data.store_image_features and not data.augmentation
    open_stream = functools.partial(image_text_stream, data, processor=processor, seed=config.seed)
    stream, evaluated = open_stream(data.train, augmented=True), open_stream(data.evaluate) if data.evaluate else None
    lookup, evaluation_lookup = None, None
    if stored:
        pooled = _image_features(builder)
        lookup = Lookup("image_features", "picture", pooled("train", stream))
        stream = open_stream(data.train, features=lookup.rows)
        if evaluated is not None:
            evaluation_lookup = Lookup("image_features", "picture", pooled("evaluate", evaluated))
            evaluated = open_stream(data.evaluate, features=evaluation_lookup.rows)
    locked = builder.locked([part for part in builder.locked_shapes if not (stored and part == "vision_model")])
    return Parts(
        objective=objective,
        stream=stream,
        lookup=lookup,
        locked=locked,
        helper={},
        evaluate=None
        if evaluated is None
        else _image_text_evaluation(builder, objective, locked, evaluated, evaluation_lookup),
    )


def _image_features(builder: Builder) -> Callable[[str, ImageTextStream], Rows]:
    model = builder.model
    tower = model.vision_class(
        model.config.vision_config, dtype=model.dtype, attention_implementation=model.attention_implementation
    )

    def states(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        output: Any = tower.apply({"params": params["vision_model"]}, batch["pixel_values"])
        return jnp.asarray(output.pooler_output, jnp.float32)

    encode = builder.encoder(states)

    def pooled(name: str, stream: ImageTextStream) -> Rows:
        def compute() -> Pieces:
            params = builder.locked(["vision_model"])
            for batch in builder.walk(stream.all_pictures):
                yield batch.arrays["picture"], encode(params, {"pixel_values": batch.arrays["pixel_values"]})

        return builder.features(f"image_{name}", stream.picture_count, compute)

    return pooled


def _image_text_evaluation(
    builder: Builder, objective: Contrastive, locked: Params, stream: ImageTextStream, lookup: Lookup | None
) -> Evaluate:
    texts = builder.encoder(lambda params, batch: objective.texts(params, batch["input_ids"], batch["attention_mask"]))
    images = builder.encoder(objective.images)

    def evaluate(state: TrainState) -> dict[str, float]:
        params = merge(state.smoothed, locked)

        def image(arrays: dict[str, np.ndarray]) -> np.ndarray:
            if lookup is not None:
                return images(params, {lookup.name: lookup.rows[arrays[lookup.by]]})
            return images(params, {"pixel_values": arrays["pixel_values"]})

        def text(arrays: dict[str, np.ndarray]) -> np.ndarray:
            return texts(params, {name: arrays[name] for name in ("input_ids", "attention_mask")})

        image_rows, image_ids, _ = embedded(builder.walk(stream.all_examples), image)
        text_rows, text_ids, languages = embedded(builder.walk(stream.all_captions), text)
        return image_text_metrics(
            image_rows,
            image_ids,
            text_rows,
            text_ids,
            languages,
            float(params["logit_scale"]),
            builder.config.evaluation.batch_size,
        )

    return evaluate


def teacher_learning(builder: Builder) -> Parts:
    """Parallel text, and the teacher or what it says of the English side.

    Raises:
        ValueError: the states of student and teacher have different widths.
    """
    config = builder.config
    assert config.teacher is not None
    target = config.teacher.target
    student = AltCLIPProcessor.from_pretrained(builder.folder / "model").tokenizer
    source = pretrained.fetch(config.teacher.source)
    kind = CLIPTextModelWithProjection if target == "projected" else CLIPTextModel
    teacher, teacher_params = kind.from_pretrained(source, dtype=config.model.dtype, param_dtype="float32")
    places = parallel.param_shardings(builder.mesh, teacher_params, teacher.params_prefix)
    helper = jax.device_put(teacher_params, places)
    objective = TeacherLearning(builder.model, teacher, target)
    _check_widths(builder.model, teacher, target)
    tokenizer = load_tokenizer(hub.fetch_files(config.teacher.source, TOKENIZER_FILES))
    open_stream = functools.partial(text_pair_stream, config, teacher=tokenizer, student=student)
    stream, lookup = open_stream(config.data.train), None
    teach = builder.encoder(
        lambda params, batch: objective.teach(params, batch["teacher_input_ids"], batch["teacher_attention_mask"])
    )
    if config.teacher.store and builder.storing:

        def compute() -> Pieces:
            for batch in builder.walk(stream.all_sources):
                yield batch.arrays["example"], teach(helper, _teacher_arrays(batch))

        lookup = Lookup("teacher_features", "example", builder.features("teacher_train", len(stream.mixture), compute))
        stream = text_pair_stream(config, config.data.train, None, student)
    locked = builder.locked(["text_model", "logit_scale", *(["text_projection"] if target == "projected" else [])])
    evaluate = None
    if config.data.evaluate:
        evaluate = _text_pair_evaluation(builder, objective, locked, helper, open_stream(config.data.evaluate), teach)
    return Parts(
        objective=objective,
        stream=stream,
        lookup=lookup,
        locked=locked,
        helper={} if lookup is not None else helper,
        evaluate=evaluate,
    )


def _text_pair_evaluation(
    builder: Builder,
    objective: TeacherLearning,
    locked: Params,
    helper: Params,
    stream: TextPairStream,
    teach: Callable[..., np.ndarray],
) -> Evaluate:
    student = builder.encoder(
        lambda params, batch: objective.student(params, batch["input_ids"], batch["attention_mask"])
    )

    def evaluate(state: TrainState) -> dict[str, float]:
        params = merge(state.smoothed, locked)
        pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        languages: list[str] = []
        for batch in builder.walk(stream.all_examples):
            ids = {name: batch.arrays[name] for name in ("input_ids", "attention_mask")}
            pieces.append(
                (student(params, ids), teach(helper, _teacher_arrays(batch)), batch.arrays["teacher_input_ids"])
            )
            languages += [language or "any" for language in batch.languages]
        students, teachers, sources = (np.concatenate(column) for column in zip(*pieces, strict=True))
        same = np.unique(sources, axis=0, return_inverse=True)[1].reshape(-1)
        return text_pair_metrics(students, teachers, same, languages)

    return evaluate


def _teacher_arrays(batch: HostBatch) -> dict[str, np.ndarray]:
    return {name: batch.arrays[name] for name in ("teacher_input_ids", "teacher_attention_mask")}


def _check_widths(model: TwoTowerModel, teacher: Any, target: str) -> None:
    """Raises ValueError where student and teacher cannot be compared."""
    if target == "projected":
        ours, theirs, what = model.config.projection_dim, teacher.config.projection_dim, "projection_dim"
    else:
        ours, theirs = model.config.text_config.project_dim, teacher.config.hidden_size
        what = "text_config.project_dim, which must be the teacher's hidden_size"
    if ours != theirs:
        raise ValueError(
            f"The student's states have {ours} numbers and the teacher's {theirs}: see the student's {what}."
        )
