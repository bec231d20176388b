"""The two stages: what each makes of a run's configuration."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.samples import ImageTextSource
from altclip_jax.data.sources import Mixture
from altclip_jax.data.streams import ImageTextStream, Stream, TextPairStream
from altclip_jax.distributed import from_first, is_first, together
from altclip_jax.evaluation.classes import read_classes, read_templates
from altclip_jax.evaluation.collection import collect
from altclip_jax.evaluation.labelled import open_labelled
from altclip_jax.evaluation.retrieval_run import RetrievalRun, evaluate_retrieval, open_collection
from altclip_jax.evaluation.zero_shot_run import ZeroShotRun, evaluate_zero_shot
from altclip_jax.files.checkpoint_folder import read_whole
from altclip_jax.inference.pipeline import AltCLIP
from altclip_jax.model.vision import VisionTower
from altclip_jax.pretrained import CLIPTextModel, CLIPTextModelWithProjection, TwoTowerModel
from altclip_jax.processing.processor import TOKENIZER, AltCLIPProcessor, check_tokenizer, load_processor
from altclip_jax.processing.tokenizer import load_tokenizer
from altclip_jax.sweep import Encode, Known, Piece, Sweep, join
from altclip_jax.training.config import RunConfig, SourceSettings
from altclip_jax.training.description import features_of, read_features_of
from altclip_jax.training.evaluate import image_text_metrics, text_pair_metrics
from altclip_jax.training.features import Features, Pieces, computed_once
from altclip_jax.training.objectives import Contrastive, Objective, TeacherLearning
from altclip_jax.training.processes import find
from altclip_jax.training.run_folder import load_locked, require_teacher
from altclip_jax.training.state import TrainState, merge
from altclip_jax.training.streams import Lookup, image_text_stream, open_mixture, text_pair_stream
from altclip_jax.weights.convert import Params
from altclip_jax.weights.folder import CONFIG, WEIGHTS

Say = Callable[[str], None]
Evaluate = Callable[[TrainState], dict[str, float]]
TEXT_INPUTS = ("input_ids", "attention_mask")
_TEACHER_INPUTS = ("teacher_input_ids", "teacher_attention_mask")
_TOLD_EVERY = 30  # seconds, while features are computed


@dataclasses.dataclass(frozen=True)
class Builder:
    """What both stages are built from."""

    config: RunConfig
    folder: Path
    mesh: Mesh
    model: TwoTowerModel
    locked_shapes: Params
    sweep: Sweep
    storing: bool
    say: Say

    def locked(self, parts: Iterable[str]) -> Params:
        """Reads locked parts onto the mesh."""
        return load_locked(self.folder, self.locked_shapes, parts, self.mesh)

    def processor(self) -> AltCLIPProcessor:
        """Reads the processor of the run's model."""
        return load_processor(self.folder / "model", self.model.config, use_fast=self.config.data.use_fast)

    def things(self, mixture: Mixture[ImageTextSource]) -> Int[np.ndarray, " samples"]:
        """Returns which thing each sample is about, as the first process finds it; see `collect`."""
        log = self.folder / "bad_samples.jsonl"
        bad = BadSamples(log, max_bad_share=self.config.data.max_bad_share, logs=is_first())
        return from_first(together(lambda: collect(mixture, bad)).sample_ids)

    def features(
        self,
        name: str,
        rows: int,
        width: int,
        sources: Sequence[SourceSettings],
        pieces: Callable[[np.ndarray], Iterator[Piece]],
        ids: str,
        **settings: Any,
    ) -> Features:
        """Returns features that are computed once in the life of the run's folder.

        Args:
            name: Of their file.
            rows: How many there are.
            width: Numbers in each.
            sources: What they are computed of; anew if their settings or files change.
            pieces: Gets which are there already, and gives the others.
            ids: The array that says which they are.
            settings: What they depend on beside, by dotted names.
        """

        def compute(there: np.ndarray) -> Pieces:
            done = int(there.sum())
            told = time.monotonic()
            for piece in pieces(there):
                done += len(piece.values)
                if time.monotonic() - told > _TOLD_EVERY:
                    told = time.monotonic()
                    self.say(f"{name} features: {done:,} of {rows:,}")
                yield piece.kept[ids], piece.values

        path, of = self.folder / "features" / f"{name}.npy", features_of(sources, **settings)
        return computed_once(
            path, rows, width, of, compute, self.say, read=lambda found: read_features_of(found, settings)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a stage gives to its run.

    Attributes:
        objective: What is learned.
        stream: The batches.
        lookup: Features that stand in them instead of what they were computed of.
        pixel_table: What makes pixel_values of their pictures, see `ImageTextStream`; None without pictures.
        locked: What a step reads and does not change, on the mesh.
        helper: The teacher's parameters, on the mesh; empty without one.
        evaluate: None without data for it.
    """

    objective: Objective
    stream: Stream[Any]
    lookup: Lookup | None
    pixel_table: np.ndarray | None = None
    locked: Params
    helper: Params
    evaluate: Evaluate | None


def with_tasks(builder: Builder, parts: Parts) -> Parts:
    """Returns a stage that also measures the tasks of its configuration, as `altclip evaluate` does.

    Numbers are called TASK/NAME/LANGUAGE/NUMBER, and their means over languages TASK/NAME/NUMBER.
    """
    config = builder.config
    if not config.evaluation.has_tasks:
        return parts
    processor = builder.processor()
    processor = AltCLIPProcessor(processor.image_processor.orient(config.data.orientation), processor.tokenizer)
    whole = {**parts.locked, **builder.locked([part for part in builder.locked_shapes if part not in parts.locked])}
    measures = together(lambda: list(_measures(builder)))
    pictures_stay = not {"vision_model", "visual_projection"} & set(config.model.train)
    known: Known = {}

    def evaluate(state: TrainState) -> dict[str, float]:
        metrics = {} if parts.evaluate is None else parts.evaluate(state)
        if not pictures_stay:
            known.clear()
        clip = AltCLIP(builder.model, merge(state.smoothed, whole), processor)
        for name, measure in measures:
            of_languages = measure(clip, known).metrics()
            metrics |= {
                f"{name}/{language}/{number}": value
                for language, numbers in of_languages.items()
                for number, value in numbers.items()
            }
            for number in next(iter(of_languages.values())):
                metrics[f"{name}/{number}"] = float(np.mean([numbers[number] for numbers in of_languages.values()]))
        return metrics

    return dataclasses.replace(parts, evaluate=evaluate)


def _measures(builder: Builder) -> Iterator[tuple[str, Callable[[AltCLIP, Known], RetrievalRun | ZeroShotRun]]]:
    """Yields the tasks by name, their data opened.

    Raises:
        OSError, ValueError: as `open_collection` and `open_labelled`.
    """
    settings, log = builder.config.evaluation, builder.folder / "bad_samples.jsonl"

    def begin() -> BadSamples:
        return BadSamples(log, max_bad_share=builder.config.data.max_bad_share, logs=is_first())

    def alive(done: int) -> None:
        builder.sweep.stop()  # texts are not cut off, but whoever waits for this process must see that it works

    def measure(evaluate: Callable[..., Any], of: tuple[Any, ...], bad: BadSamples, clip: AltCLIP, known: Known) -> Any:
        own = copy.deepcopy(bad)  # what could not be read this time may be read the next
        rows, stop = settings.batch_size, builder.sweep.stop
        return evaluate(clip, *of, own, batch_size=rows, progress=alive, known=known, stop=stop)

    for name, retrieval in settings.retrieval.items():
        bad = begin()
        collection = open_collection(retrieval.data, retrieval.language, bad)
        yield f"retrieval/{name}", functools.partial(measure, evaluate_retrieval, (collection,), bad)
    for name, zero_shot in settings.zero_shot.items():
        bad = begin()
        classes = read_classes(Path(zero_shot.classes)).limited(zero_shot.language)
        templates = read_templates(Path(zero_shot.templates)) if zero_shot.templates else {}
        labelled = open_labelled(zero_shot.data, bad)
        yield f"zero_shot/{name}", functools.partial(measure, evaluate_zero_shot, (labelled, classes, templates), bad)


def contrastive(builder: Builder) -> Parts:
    """Pictures with captions, and features of a locked image tower where they may be stored."""
    config, data, model = builder.config, builder.config.data, builder.model
    image_locked = "vision_model" not in config.model.train
    objective = contrastive_objective(config, model, builder.mesh)
    processor = builder.processor()
    processor = AltCLIPProcessor(processor.image_processor.orient(data.orientation), processor.tokenizer)
    stored = builder.storing and image_locked and data.store_image_features and not data.augmentation
    make_stream = functools.partial(image_text_stream, data, processor=processor, seed=config.seed)
    mixture = open_mixture(data.train, "image_text")
    stream = make_stream(mixture, augmented=True, as_bytes=not stored)
    evaluated = make_stream(open_mixture(data.evaluate, "image_text")) if data.evaluate else None
    lookup, evaluation_lookup = None, None
    if stored:
        pooled = _image_features(builder)
        lookup = Lookup("image_features", "picture", pooled("train", stream, data.train))
        stream = make_stream(mixture, features=lookup.features)
        if evaluated is not None:
            evaluation_lookup = Lookup("image_features", "picture", pooled("evaluate", evaluated, data.evaluate))
            evaluated = make_stream(evaluated.mixture, features=evaluation_lookup.features)
    locked = builder.locked([part for part in builder.locked_shapes if not (stored and part == "vision_model")])
    return Parts(
        objective=objective,
        stream=stream,
        lookup=lookup,
        pixel_table=stream.pixel_table,
        locked=locked,
        helper={},
        evaluate=None
        if evaluated is None
        else _image_text_evaluation(builder, objective, locked, evaluated, evaluation_lookup),
    )


def contrastive_objective(config: RunConfig, model: TwoTowerModel, mesh: Mesh) -> Contrastive:
    """Returns what a contrastive run learns."""
    return Contrastive(
        model,
        form=config.loss.form,
        chunk_rows=config.loss.chunk_rows,
        mesh=mesh,
        image_dropout="vision_model" in config.model.train,
    )


def _image_features(builder: Builder) -> Callable[[str, ImageTextStream, Sequence[SourceSettings]], Features]:
    model = builder.model
    tower = VisionTower(
        model.config.vision_config, dtype=model.dtype, attention_implementation=model.attention_implementation
    )

    def states(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        output: Any = tower.apply({"params": params["vision_model"]}, batch["pixel_values"])
        return jnp.asarray(output.pooler_output, jnp.float32)

    encode = builder.sweep.encoder(states)

    def pooled(name: str, stream: ImageTextStream, sources: Sequence[SourceSettings]) -> Features:
        tower = functools.cache(lambda: builder.locked(["vision_model"]))  # read if anything is computed, and once

        def pieces(there: np.ndarray) -> Iterator[Piece]:
            return builder.sweep.over(
                stream.all_pictures, encode, tower(), inputs=["pixel_values"], keep=["picture"], but=there
            )

        width = model.config.vision_config.hidden_size
        turned = {"data.orientation": builder.config.data.orientation}
        return builder.features(f"image_{name}", stream.picture_count, width, sources, pieces, "picture", **turned)

    return pooled


def _image_text_evaluation(
    builder: Builder, objective: Contrastive, locked: Params, stream: ImageTextStream, lookup: Lookup | None
) -> Evaluate:
    sweep = builder.sweep
    texts = sweep.encoder(lambda params, batch: objective.texts(params, batch["input_ids"], batch["attention_mask"]))
    images = sweep.encoder(objective.images)
    all_images, inputs = stream.all_pictures, ["pixel_values"]
    if lookup is not None:
        all_images, inputs = lookup.add_to(stream.all_pictures), [lookup.name]
    things = builder.things(stream.mixture)

    def evaluate(state: TrainState) -> dict[str, float]:
        params = merge(state.smoothed, locked)
        image = join(sweep.over(all_images, images, params, inputs, ["example", "picture"]), "picture")
        text = join(sweep.over(stream.all_captions, texts, params, TEXT_INPUTS, ["example"]), "example")
        return image_text_metrics(
            image.values,
            things[image.kept["example"]],
            text.values,
            things[text.kept["example"]],
            text.languages,
            float(params["logit_scale"]),
            builder.config.evaluation.batch_size,
        )

    return evaluate


def teacher_learning(builder: Builder) -> Parts:
    """Parallel text, and the teacher or what it says of the English side.

    Raises:
        ValueError: the states of student and teacher have different widths, the teacher's tokenizer is not its own, or
            the run began with another teacher.
    """
    config = builder.config
    assert config.teacher is not None
    target = config.teacher.target
    student = builder.processor().tokenizer
    source = find(config.teacher.source).fetch(CONFIG, WEIGHTS, TOKENIZER)
    kind = CLIPTextModelWithProjection if target == "projected" else CLIPTextModel
    stored = config.teacher.store and builder.storing
    # what is stored once for the whole run is worth float32
    compute = "float32" if stored else config.model.dtype
    (teacher, helper), tokenizer = read_whole(
        source,
        lambda: (
            kind.from_pretrained(source, dtype=compute, mesh=builder.mesh),
            load_tokenizer(source, use_fast=config.data.use_fast),
        ),
    )
    objective = TeacherLearning(builder.model, teacher, target)
    check_widths(builder.model, teacher, target)
    known_as = require_teacher(builder.folder, config.teacher.source, helper)
    check_tokenizer(teacher.config, tokenizer, str(config.teacher.source))
    mixture = open_mixture(config.data.train, "text_pairs")
    stream, lookup = text_pair_stream(config, mixture, tokenizer, student), None
    teach = builder.sweep.encoder(
        lambda params, batch: objective.teach(params, batch["teacher_input_ids"], batch["teacher_attention_mask"]),
        teacher.params_prefix,
    )
    if stored:
        width = teacher.config.projection_dim if target == "projected" else teacher.config.hidden_size
        lookup = Lookup(
            "teacher_features",
            "example",
            builder.features(
                "teacher_train",
                len(stream.mixture),
                width,
                config.data.train,
                lambda there: builder.sweep.over(
                    stream.all_sources, teach, helper, _TEACHER_INPUTS, ["example"], but=there
                ),
                "example",
                **{"data.use_fast": config.data.use_fast, "teacher": known_as},
            ),
        )
        stream = text_pair_stream(config, mixture, None, student, features=lookup.features)
    locked = builder.locked(["text_model", "logit_scale", *(["text_projection"] if target == "projected" else [])])
    evaluate = None
    if config.data.evaluate:
        measured = text_pair_stream(config, open_mixture(config.data.evaluate, "text_pairs"), tokenizer, student)
        evaluate = _text_pair_evaluation(builder, objective, locked, helper, measured, teach)
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
    teach: Encode,
) -> Evaluate:
    sweep = builder.sweep
    encode = sweep.encoder(lambda params, batch: objective.student(params, batch["input_ids"], batch["attention_mask"]))

    @functools.cache
    def taught() -> Piece:
        keep = ["example", "teacher_input_ids"]
        return join(sweep.over(stream.all_sources, teach, helper, _TEACHER_INPUTS, keep), "example")

    def evaluate(state: TrainState) -> dict[str, float]:
        params = merge(state.smoothed, locked)
        students = join(sweep.over(stream.all_examples, encode, params, TEXT_INPUTS, ["example"]), "example")
        teachers = taught()
        # either pass may have met a sample that it could not read
        _, ours, theirs = np.intersect1d(students.kept["example"], teachers.kept["example"], return_indices=True)
        if not len(ours):
            raise ValueError("There is nothing to measure: no pair of the evaluation could be read on both sides.")
        same = np.unique(teachers.kept["teacher_input_ids"][theirs], axis=0, return_inverse=True)[1].reshape(-1)
        languages = [students.languages[place] for place in ours.tolist()]
        return text_pair_metrics(students.values[ours], teachers.values[theirs], same, languages)

    return evaluate


def check_widths(model: TwoTowerModel, teacher: Any, target: str) -> None:
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
