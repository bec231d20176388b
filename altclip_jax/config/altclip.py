"""AltCLIP's configurations.

Source: configuration_altclip.py of transformers 4.56.2, and the config.json files of BAAI/AltCLIP, -m9 and -m18.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from altclip_jax.config.base import size_problems
from altclip_jax.config.towers import VisionConfig, XLMRobertaConfig
from altclip_jax.config.two_towers import TwoTowerConfig, is_flagai, sub_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class AltCLIPTextConfig(XLMRobertaConfig):
    """The text tower: XLM-RoBERTa, a LayerNorm and a linear layer to `project_dim`."""

    model_type: ClassVar[str] = "altclip_text_model"

    vocab_size: int = 250002
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    initializer_range: float = 0.02  # unused by the reference's initialisation, kept for the file
    initializer_factor: float = 0.02  # the standard deviation of every initial weight
    layer_norm_eps: float = 1e-5
    project_dim: int = 768

    def _problems(self) -> list[str]:
        return [*super()._problems(), *size_problems(self, "project_dim")]

    @classmethod
    def _select(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return sub_config(values, "text_config", cls)

    @classmethod
    def _check_model_type(cls, found: str) -> None:
        if found not in ("xlm-roberta", "roberta"):  # how FlagAI's own files call the text tower
            super()._check_model_type(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AltCLIPVisionConfig(VisionConfig):
    """The image tower: a CLIP ViT. The defaults are those of a ViT-B/32, as in the reference."""

    model_type: ClassVar[str] = "altclip_vision_model"

    @classmethod
    def _check_model_type(cls, found: str) -> None:
        if found != "clip_vision_model":  # FlagAI's files; the tower is CLIP's, unchanged
            super()._check_model_type(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AltCLIPConfig(TwoTowerConfig):
    """Both towers, the width they are compared in, and the initial temperature.

    `text_config` and `vision_config` are configurations or mappings of their fields; absent, they are the defaults.
    The reference's default model is not BAAI/AltCLIP: for that one use `AltCLIPConfig.altclip()`.
    """

    model_type: ClassVar[str] = "altclip"
    text_class: ClassVar[type[AltCLIPTextConfig]] = AltCLIPTextConfig
    vision_class: ClassVar[type[AltCLIPVisionConfig]] = AltCLIPVisionConfig

    text_config: AltCLIPTextConfig = dataclasses.field(default_factory=AltCLIPTextConfig)
    vision_config: AltCLIPVisionConfig = dataclasses.field(default_factory=AltCLIPVisionConfig)
    projection_dim: int = 768

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:  # noqa: D102 - described by the base
        if isinstance(values, Mapping) and is_flagai(values):
            parts = {name: value for name, value in values.items() if not name.endswith("_config_dict")}
            values = {**parts, "model_type": cls.model_type}
        return super().from_dict(values, **overrides)

    @classmethod
    def altclip(cls) -> Self:
        """BAAI/AltCLIP: XLM-R large and ViT-L/14, Chinese and English; 864,186,113 parameters."""
        vision = AltCLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
        )
        return cls(vision_config=vision)

    @classmethod
    def altclip_m9(cls) -> Self:
        """BAAI/AltCLIP-m9: the network of BAAI/AltCLIP, trained on nine languages."""
        return cls.altclip()

    @classmethod
    def altclip_m18(cls) -> Self:
        """BAAI/AltCLIP-m18: XLM-R large and ViT-H/14, eighteen languages; 1,193,017,857 parameters.

        Its published configuration says quick_gelu although its image tower was trained with gelu; this follows the
        configuration, as the reference does.
        """
        vision = AltCLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14
        )
        return cls(text_config=AltCLIPTextConfig(project_dim=1024), vision_config=vision, projection_dim=1024)
