"""CLIP's configurations, those of the teacher.

Source: configuration_clip.py of transformers 4.56.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from altclip_jax.config.base import Config, is_int, rate_problems, size_problems, tower_problems
from altclip_jax.config.towers import VisionConfig
from altclip_jax.config.two_towers import TwoTowerConfig, is_flagai, sub_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(Config):
    """CLIP's text tower: a causal transformer that is read off at the end-of-text token.

    Files from before transformers 4.31 say eos_token_id 2, which was never true: the tower then takes the position of
    the highest id, which is that of the end-of-text token in CLIP's vocabulary.
    """

    model_type: ClassVar[str] = "clip_text_model"

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512  # of CLIPTextModelWithProjection; in a full model its own projection_dim decides
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02  # unused by the reference's initialisation, kept for the file
    initializer_factor: float = 1.0
    pad_token_id: int | None = 1  # no meaning here, kept for the file
    bos_token_id: int | None = 49406  # likewise
    eos_token_id: int = 49407

    def _problems(self) -> list[str]:
        return [
            *super()._problems(),
            *size_problems(
                self,
                "vocab_size hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads"
                " max_position_embeddings",
            ),
            *rate_problems(self, "attention_dropout"),
            *tower_problems(self),
            *self._end_problems(),
        ]

    @property
    def max_tokens(self) -> int:
        """The longest text, in tokens."""
        return self.max_position_embeddings

    def _end_problems(self) -> list[str]:
        if is_int(self.eos_token_id):
            return []
        return [f"eos_token_id={self.eos_token_id!r} must be an integer: texts are read off at this token"]

    @property
    def reads_at_highest_id(self) -> bool:
        """Whether texts are read off at their highest id instead of the first `eos_token_id`."""
        return self.eos_token_id == 2

    @classmethod
    def _select(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        own = sub_config(values, "text_config", cls)
        if own is values or "projection_dim" not in values:
            return own
        return {**own, "projection_dim": values["projection_dim"]}  # so wide is the projection in the model's file


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(VisionConfig):
    """CLIP's image tower. The defaults are those of a ViT-B/32."""

    model_type: ClassVar[str] = "clip_vision_model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig(TwoTowerConfig):
    """Both towers, the width they are compared in, and the initial temperature.

    `text_config` and `vision_config` are configurations or mappings of their fields; absent, they are the defaults.
    """

    model_type: ClassVar[str] = "clip"
    text_class: ClassVar[type[CLIPTextConfig]] = CLIPTextConfig
    vision_class: ClassVar[type[CLIPVisionConfig]] = CLIPVisionConfig

    text_config: CLIPTextConfig = dataclasses.field(default_factory=CLIPTextConfig)
    vision_config: CLIPVisionConfig = dataclasses.field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:  # noqa: D102 - described by the base
        if isinstance(values, Mapping) and is_flagai(values):
            raise ValueError("CLIPConfig found the text tower of an AltCLIP that FlagAI wrote: use AltCLIPConfig.")
        return super().from_dict(values, **overrides)
