"""AltCLIP, the multilingual CLIP, in JAX and Flax linen.

The public index. Names are imported when first used, so that `import altclip_jax` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from altclip_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from altclip_jax.config import (
        AltCLIPConfig,
        AltCLIPTextConfig,
        AltCLIPVisionConfig,
        CLIPConfig,
        CLIPTextConfig,
        CLIPVisionConfig,
        XLMRobertaConfig,
    )
    from altclip_jax.export.folder import export_program
    from altclip_jax.files.checkpoint_folder import CheckpointError
    from altclip_jax.inference.pipeline import AltCLIP
    from altclip_jax.model.outputs import (
        AltCLIPOutput,
        AltCLIPTextOutput,
        AltCLIPVisionOutput,
        CLIPOutput,
        CLIPTextModelOutput,
        CLIPTextOutput,
    )
    from altclip_jax.pretrained import (
        AltCLIPModel,
        AltCLIPTextModel,
        AltCLIPVisionModel,
        CLIPModel,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionModel,
    )
    from altclip_jax.processing.image import AltCLIPImageProcessor, ImageError
    from altclip_jax.processing.processor import AltCLIPProcessor
    from altclip_jax.processing.tokenizer import AltCLIPTokenizer, CLIPTokenizer, load_tokenizer


_HOMES = {
    # the one convenient object
    "AltCLIP": "inference.pipeline",
    # its programs for those who have only jax
    "export_program": "export.folder",
    # what a model is
    "AltCLIPConfig": "config",
    "AltCLIPTextConfig": "config",
    "AltCLIPVisionConfig": "config",
    "CLIPConfig": "config",
    "CLIPTextConfig": "config",
    "CLIPVisionConfig": "config",
    "XLMRobertaConfig": "config",
    # the networks and what they return
    "AltCLIPModel": "pretrained",
    "AltCLIPTextModel": "pretrained",
    "AltCLIPVisionModel": "pretrained",
    "AltCLIPOutput": "model.outputs",
    "AltCLIPTextOutput": "model.outputs",
    "AltCLIPVisionOutput": "model.outputs",
    "CLIPModel": "pretrained",
    "CLIPTextModel": "pretrained",
    "CLIPTextModelWithProjection": "pretrained",
    "CLIPVisionModel": "pretrained",
    "CLIPOutput": "model.outputs",
    "CLIPTextModelOutput": "model.outputs",
    "CLIPTextOutput": "model.outputs",
    # strings and images in
    "AltCLIPProcessor": "processing.processor",
    "AltCLIPImageProcessor": "processing.image",
    "AltCLIPTokenizer": "processing.tokenizer",
    "CLIPTokenizer": "processing.tokenizer",
    "load_tokenizer": "processing.tokenizer",
    # what goes wrong with files
    "CheckpointError": "files.checkpoint_folder",
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
    "CLIPConfig",
    "CLIPModel",
    "CLIPOutput",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextModelOutput",
    "CLIPTextModelWithProjection",
    "CLIPTextOutput",
    "CLIPTokenizer",
    "CLIPVisionConfig",
    "CLIPVisionModel",
    "CheckpointError",
    "ImageError",
    "XLMRobertaConfig",
    "__version__",
    "export_program",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'altclip_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"altclip_jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
