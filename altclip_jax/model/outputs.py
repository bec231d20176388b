"""The records that the models return: pytrees with the fields that users of AltCLIP and CLIP know."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import struct
from jax import Array


class _Record:
    """What the records share."""

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are set, in order, nested records as tuples: the reference's `return_dict=False`."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return tuple(value.to_tuple() if isinstance(value, _Record) else value for value in values if value is not None)


@struct.dataclass
class AltCLIPTextOutput(_Record):
    """What the text tower returns."""

    last_hidden_state: Array  # (texts, sequence, project_dim), after the final norm and the transformation
    pooler_output: Array  # (texts, project_dim), its first token
    hidden_states: tuple[Array, ...] | None = None  # layers + 1 of (texts, sequence, hidden), embeddings first
    attentions: tuple[Array, ...] | None = None  # layers of (texts, heads, sequence, sequence)
    projection_state: Array | None = None  # always None, as in the reference


@struct.dataclass
class AltCLIPVisionOutput(_Record):
    """What the image tower returns."""

    last_hidden_state: Array  # (images, patches + 1, hidden), class token first, before the post norm
    pooler_output: Array  # (images, hidden), the class token after the post norm
    hidden_states: tuple[Array, ...] | None = None  # layers + 1 of (images, patches + 1, hidden), after the pre norm
    attentions: tuple[Array, ...] | None = None  # layers of (images, heads, patches + 1, patches + 1)


@struct.dataclass
class CLIPTextOutput(_Record):
    """What CLIP's text tower returns."""

    last_hidden_state: Array  # (texts, sequence, hidden), after the final norm
    pooler_output: Array  # (texts, hidden), of it the end-of-text token
    hidden_states: tuple[Array, ...] | None = None  # layers + 1 of (texts, sequence, hidden), embeddings first
    attentions: tuple[Array, ...] | None = None  # layers of (texts, heads, sequence, sequence)


@struct.dataclass
class CLIPTextModelOutput(_Record):
    """What CLIP's text tower with its projection returns."""

    text_embeds: Array  # (texts, projection), float32, not normalised
    last_hidden_state: Array  # (texts, sequence, hidden), after the final norm
    hidden_states: tuple[Array, ...] | None = None  # layers + 1 of (texts, sequence, hidden), embeddings first
    attentions: tuple[Array, ...] | None = None  # layers of (texts, heads, sequence, sequence)


@struct.dataclass
class AltCLIPOutput(_Record):
    """What the model returns."""

    loss: Array | None  # (), mean of the two cross-entropies, when asked for
    logits_per_image: Array  # (images, texts), float32
    logits_per_text: Array  # (texts, images), float32
    text_embeds: Array  # (texts, projection), unit norm, float32
    image_embeds: Array  # (images, projection), unit norm, float32
    text_model_output: AltCLIPTextOutput
    vision_model_output: AltCLIPVisionOutput


@struct.dataclass
class CLIPOutput(_Record):
    """What a CLIP returns."""

    loss: Array | None  # (), mean of the two cross-entropies, when asked for
    logits_per_image: Array  # (images, texts), float32
    logits_per_text: Array  # (texts, images), float32
    text_embeds: Array  # (texts, projection), unit norm, float32
    image_embeds: Array  # (images, projection), unit norm, float32
    text_model_output: CLIPTextOutput
    vision_model_output: AltCLIPVisionOutput
