"""AltCLIP, the multilingual CLIP, in JAX and Flax linen.

The public index. Names are imported when first used, so that `import altclip_jax` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altclip_jax.config import AltCLIPConfig, AltCLIPTextConfig, AltCLIPVisionConfig
    from altclip_jax.inference.pipeline import AltCLIP
    from altclip_jax.model.altclip import AltCLIPModel
    from altclip_jax.model.outputs import AltCLIPOutput, AltCLIPTextOutput, AltCLIPVisionOutput
    from altclip_jax.model.text import AltCLIPTextModel
    from altclip_jax.model.vision import AltCLIPVisionModel
    from altclip_jax.processing.image import AltCLIPImageProcessor, ImageError
    from altclip_jax.processing.processor import AltCLIPProcessor
    from altclip_jax.processing.tokenizer import AltCLIPTokenizer
    from altclip_jax.weights.stored import CheckpointError

__version__ = "0.1.0"

_HOMES = {
    # the one convenient object
    "AltCLIP": "inference.pipeline",
    # what a model is
    "AltCLIPConfig": "config",
    "AltCLIPTextConfig": "config",
    "AltCLIPVisionConfig": "config",
    # the networks and what they return
    "AltCLIPModel": "model.altclip",
    "AltCLIPTextModel": "model.text",
    "AltCLIPVisionModel": "model.vision",
    "AltCLIPOutput": "model.outputs",
    "AltCLIPTextOutput": "model.outputs",
    "AltCLIPVisionOutput": "model.outputs",
    # strings and images in
    "AltCLIPProcessor": "processing.processor",
    "AltCLIPImageProcessor": "processing.image",
    "AltCLIPTokenizer": "processing.tokenizer",
    # what goes wrong with files
    "CheckpointError": "weights.stored",
    "ImageError": "processing.image",
}

__all__ = [
    "AltCLIP",
    "AltCLIPConfig",
    "AltCLIPImageProcessor",
    "AltCLIPModel",
    "AltCLIPOutput",
    "AltCLIPProcessor",
    "AltCLIPTextConfig",
    "AltCLIPTextModel",
    "AltCLIPTextOutput",
    "AltCLIPTokenizer",
    "AltCLIPVisionConfig",
    "AltCLIPVisionModel",
    "AltCLIPVisionOutput",
    "CheckpointError",
    "ImageError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'altclip_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"altclip_jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
