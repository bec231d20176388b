"""What a stage learns: how a batch becomes features, and features a loss.

The two halves are apart because gradient caching needs them so: features of parts of a batch, the loss of the whole.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from altclip_jax.model.two_towers import normalize
from altclip_jax.training.losses import ContrastiveForm, contrastive_loss, mean_squared_error
from altclip_jax.weights.convert import Params

if TYPE_CHECKING:
    from altclip_jax.pretrained import CLIPTextModel, CLIPTextModelWithProjection, TwoTowerModel

Batch = dict[str, Array]
Features = dict[str, Array]


class Objective(Protocol):
    """What a step needs to know of a stage."""

    def encode(self, params: Params, helper: Params, batch: Batch, keys: Array | None) -> Features:
        """Returns what the loss compares, one row per row of the batch; `keys` are those of dropout, one per row."""
        ...

    def loss(self, features: Features, log_scale: Array | None) -> tuple[Array, dict[str, Array]]:
        """Returns the loss of a whole batch and what else is worth telling."""
        ...

    def plain(self) -> Objective:
        """Returns the same objective, computed without anything that saves memory: to count its arithmetic."""
        ...


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Texts and pictures of a pair together, all others apart.

    Attributes:
        model: AltCLIP, or CLIP for training from scratch.
        form: Of the loss, see `contrastive_loss`.
        chunk_rows: See there.
        mesh: See there.
        image_dropout: Whether the image tower drops anything where there are keys; a locked one does not.
    """

    model: TwoTowerModel
    form: ContrastiveForm = "plain"
    chunk_rows: int = 1024
    mesh: Mesh | None = None
    image_dropout: bool = True

    def encode(self, params: Params, helper: Params, batch: Batch, keys: Array | None) -> Features:
        """Returns unit embeddings; a batch with `image_features` brings the image tower's pooled states along."""
        text = self.texts(params, batch["input_ids"], batch["attention_mask"], keys)
        return {"text": text, "image": self.images(params, batch, keys)}

    def texts(
        self, params: Params, input_ids: Array, mask: Array, keys: Array | None = None
    ) -> Float[Array, "batch projection"]:
        """Returns unit embeddings of texts."""
        return normalize(_apply(self.model, params, "get_text_features", keys, input_ids, mask))

    def images(self, params: Params, batch: Batch, keys: Array | None = None) -> Float[Array, "batch projection"]:
        """Returns unit embeddings of pictures, or of the pooled states in `image_features`."""
        if "image_features" in batch:
            return normalize(_apply(self.model, params, _project_image, None, batch["image_features"]))
        own = keys if self.image_dropout else None
        return normalize(_apply(self.model, params, "get_image_features", own, batch["pixel_values"]))

    def loss(self, features: Features, log_scale: Array | None) -> tuple[Array, dict[str, Array]]:
        """Returns the symmetric loss over the whole batch."""
        if log_scale is None:
            raise ValueError("The contrastive loss needs the model's logit_scale.")
        value = contrastive_loss(
            features["text"],
            features["image"],
            log_scale,
            form=self.form,
            chunk_rows=self.chunk_rows,
            mesh=self.mesh,
        )
        return value, {"scale": jnp.exp(log_scale.astype(jnp.float32))}

    def plain(self) -> Contrastive:
        """Returns this objective with all scores at once and nothing computed twice."""
        return dataclasses.replace(self, model=self.model.clone(remat=False), form="plain")


@dataclasses.dataclass(frozen=True)
class TeacherLearning:
    """The student's embedding of one sentence towards the teacher's embedding of its translation.

    Attributes:
        model: The student.
        teacher: The English text tower, with its projection for "projected"; None where batches bring
            `teacher_features` along.
        target: "pooled" or "projected", see `TeacherSettings`.
    """

    model: TwoTowerModel
    teacher: CLIPTextModel | CLIPTextModelWithProjection | None = None
    target: Literal["pooled", "projected"] = "pooled"

    def encode(self, params: Params, helper: Params, batch: Batch, keys: Array | None) -> Features:
        """Returns the states of both; `helper` are the teacher's parameters, which nothing is learned for."""
        student = self.student(params, batch["input_ids"], batch["attention_mask"], keys)
        teacher = batch.get("teacher_features")
        if teacher is None:
            teacher = self.teach(helper, batch["teacher_input_ids"], batch["teacher_attention_mask"])
        return {"student": student, "teacher": jax.lax.stop_gradient(teacher)}

    def student(
        self, params: Params, input_ids: Array, mask: Array, keys: Array | None = None
    ) -> Float[Array, "batch width"]:
        """Returns the student's states, float32."""
        method: Any = "get_text_features" if self.target == "projected" else _pooled_text
        return _apply(self.model, params, method, keys, input_ids, mask).astype(jnp.float32)

    def teach(self, helper: Params, input_ids: Array, mask: Array) -> Float[Array, "batch width"]:
        """Returns the teacher's states, float32."""
        if self.teacher is None:
            raise ValueError("This objective has no teacher and the batch brings no teacher_features.")
        output: Any = self.teacher.apply({"params": helper}, input_ids, mask)
        return jnp.asarray(output.text_embeds if self.target == "projected" else output.pooler_output, jnp.float32)

    def loss(self, features: Features, log_scale: Array | None) -> tuple[Array, dict[str, Array]]:
        """Returns the mean squared error over batch and width."""
        return mean_squared_error(features["student"], features["teacher"]), {}

    def plain(self) -> TeacherLearning:
        """Returns this objective with nothing computed twice."""
        return dataclasses.replace(self, model=self.model.clone(remat=False))


def dropout_rates(model: Any) -> list[float]:
    """Returns the rates with which a model drops something in training."""
    return [
        rate
        for config in (model.config.text_config, model.config.vision_config)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")
        if (rate := getattr(config, name, 0.0)) > 0 and math.isfinite(rate)
    ]


def _project_image(model: Any, pooled: Array, **_: Any) -> Array:
    features: Array = model.visual_projection(pooled)
    return features


def _pooled_text(model: Any, input_ids: Array, mask: Array, deterministic: bool = True) -> Array:
    states: Array = model.text_model(input_ids, attention_mask=mask, deterministic=deterministic).pooler_output
    return states


def _apply(model: Any, params: Params, method: Any, keys: Array | None, *inputs: Array) -> Array:
    """Runs a method on a batch; with keys row by row under vmap, so that a row's dropout depends on its key alone."""
    if keys is None:
        whole: Array = model.apply({"params": params}, *inputs, method=method)
        return whole

    def one(key: Array, *row: Array) -> Array:
        alone = [values[None] for values in row]
        out: Array = model.apply({"params": params}, *alone, method=method, deterministic=False, rngs={"dropout": key})
        return out[0]

    return jax.vmap(one)(keys, *inputs)
