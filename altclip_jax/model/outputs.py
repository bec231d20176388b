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
class TowerOutput(_Record):
    """What a tower returns; the sequence of a picture is the class token and its patches.

    As in the reference, the last states of texts are those after the final norm (and AltCLIP's `transformation`), the
    last states of pictures those before the post norm, and the pooled states of both are normalised.
    """

    last_hidden_state: Array  # (batch, sequence, hidden), or (texts, sequence, project_dim) of AltCLIP
    pooler_output: Array  # the same of one place: AltCLIP's first token, CLIP's end of text, the class token
    hidden_states: tuple[Array, ...] | None = None  # layers + 1 of (batch, sequence, hidden), embeddings first
    attentions: tuple[Array, ...] | None = None  # layers of (batch, heads, sequence, sequence)
    projection_state: Array | None = None  # always None, as in the reference


@struct.dataclass
class CLIPTextModelOutput(_Record):
    """What CLIP's text tower with its projection returns."""

    text_embeds: Array  # (texts, projection), float32, not normalised
    last_hidden_state: Array  # (texts, sequence, hidden), after the final norm
    hidden_states: tuple[Array, ...] | None = None  # layers + 1 of (texts, sequence, hidden), embeddings first
    attentions: tuple[Array, ...] | None = None  # layers of (texts, heads, sequence, sequence)


@struct.dataclass
class AltCLIPOutput(_Record):
    """What a model with two towers returns, AltCLIP or CLIP."""

    loss: Array | None  # (), mean of the two cross-entropies, when asked for
    logits_per_image: Array  # (images, texts), float32
    logits_per_text: Array  # (texts, images), float32
    text_embeds: Array  # (texts, projection), unit norm, float32
    image_embeds: Array  # (images, projection), unit norm, float32
    text_model_output: TowerOutput
    vision_model_output: TowerOutput


AltCLIPTextOutput = AltCLIPVisionOutput = CLIPTextOutput = TowerOutput
CLIPOutput = AltCLIPOutput
