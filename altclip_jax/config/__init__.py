"""What a model is: its configuration, with Hugging Face's JSON in and out."""

from altclip_jax.config.altclip import AltCLIPConfig, AltCLIPTextConfig, AltCLIPVisionConfig
from altclip_jax.config.base import ACTIVATIONS, POSITION_EMBEDDING_TYPES, Config
from altclip_jax.config.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from altclip_jax.config.towers import VisionConfig, XLMRobertaConfig
from altclip_jax.config.two_towers import TwoTowerConfig, is_flagai

__all__ = [
    "ACTIVATIONS",
    "POSITION_EMBEDDING_TYPES",
    "AltCLIPConfig",
    "AltCLIPTextConfig",
    "AltCLIPVisionConfig",
    "CLIPConfig",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "Config",
    "TwoTowerConfig",
    "VisionConfig",
    "XLMRobertaConfig",
    "is_flagai",
]
