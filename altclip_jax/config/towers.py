"""The towers' configurations that more than one family shares: the ViT, and XLM-RoBERTa."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from altclip_jax.config.base import (
    POSITION_EMBEDDING_TYPES,
    Config,
    choice_problems,
    is_int,
    rate_problems,
    size_problems,
    tower_problems,
)
from altclip_jax.config.two_towers import sub_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(Config):
    """The image tower of CLIP, which AltCLIP took unchanged. The defaults are those of a ViT-B/32."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512  # unused: the model's own projection_dim decides
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0

    def _problems(self) -> list[str]:
        sizes = size_problems(
            self,
            "hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads num_channels"
            " image_size patch_size",
        )
        if not sizes and self.patch_size > self.image_size:
            sizes = [f"patch_size={self.patch_size} must not exceed image_size={self.image_size}"]
        return [
            *super()._problems(),
            *sizes,
            *rate_problems(self, "attention_dropout"),
            *tower_problems(self),
        ]

    @property
    def grid_size(self) -> int:
        """Patches along one side of a picture of `image_size`."""
        return self.image_size // self.patch_size

    @classmethod
    def _select(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return sub_config(values, "vision_config", cls)


@dataclasses.dataclass(frozen=True, kw_only=True)
class XLMRobertaConfig(Config):
    """An XLM-RoBERTa encoder, of which a student's text tower can be made.

    Source: configuration_xlm_roberta.py of transformers 4.56.2.
    """

    model_type: ClassVar[str] = "xlm-roberta"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True  # no meaning here, kept for the file

    def __post_init__(self) -> None:
        ids: object = self.eos_token_id
        if isinstance(ids, list):
            object.__setattr__(self, "eos_token_id", tuple(ids))
        super().__post_init__()

    def _problems(self) -> list[str]:
        return [
            *super()._problems(),
            *size_problems(
                self,
                "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size"
                " max_position_embeddings type_vocab_size",
            ),
            *rate_problems(self, "hidden_dropout_prob attention_probs_dropout_prob"),
            *tower_problems(self),
            *choice_problems(self, "position_embedding_type", POSITION_EMBEDDING_TYPES),
            *self._pad_problems(),
        ]

    def _pad_problems(self) -> list[str]:
        limit = min(self.vocab_size, self.max_position_embeddings - 1)
        if is_int(self.pad_token_id) and 0 <= self.pad_token_id < limit:
            return []
        return [
            f"pad_token_id={self.pad_token_id!r} must be an integer in [0, {limit}): it is a row of the vocabulary and"
            " positions start after it"
        ]

    @property
    def max_tokens(self) -> int:
        """The longest text, in tokens that are not padding: positions count from `pad_token_id` + 1."""
        return self.max_position_embeddings - self.pad_token_id - 1
