"""Reference models of transformers 4.56.2 with every tensor randomised, written as checkpoints."""

import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
import torch
import transformers
from transformers import AltCLIPConfig, AltCLIPModel, CLIPConfig, CLIPModel

torch.set_num_threads(1)

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "project_dim": 24,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 6,
}

CLIP_TEXT = {
    "vocab_size": 99,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 12,
    "projection_dim": 20,
    "eos_token_id": 98,
}


def randomise(model, seed):
    """Every tensor random: a default-initialised one hides swapped norms and dropped biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale":
                parameter.copy_(torch.tensor(3.1))
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
            else:
                parameter.copy_(noise * (0.2 if "embedding" in name else parameter.shape[-1] ** -0.5))
    return model.eval()


@pytest.fixture(scope="session")
def make_reference(tmp_path_factory):
    """Returns a function (text=, vision=, **top) -> (reference model, folder it was saved to)."""
    assert transformers.__version__ == "4.56.2", "parity is defined against transformers 4.56.2"
    made = {}

    def make(text=None, vision=None, seed=0, **top):
        key = repr((text, vision, seed, top))
        if key not in made:
            config = AltCLIPConfig(
                text_config={**TEXT, **(text or {})},
                vision_config={**VISION, **(vision or {})},
                projection_dim=20,
                **top,
            )
            model = randomise(AltCLIPModel(config), seed)
            folder = tmp_path_factory.mktemp("reference")
            model.save_pretrained(folder)
            made[key] = model, folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_clip_reference(tmp_path_factory):
    """Returns a function (text=, vision=, seed=) -> (reference CLIP, folder it was saved to)."""
    made = {}

    def make(text=None, vision=None, seed=0):
        key = repr((text, vision, seed))
        if key not in made:
            config = CLIPConfig(
                text_config={**CLIP_TEXT, **(text or {})}, vision_config={**VISION, **(vision or {})}, projection_dim=20
            )
            model = randomise(CLIPModel(config), seed)
            folder = tmp_path_factory.mktemp("clip")
            model.save_pretrained(folder)
            made[key] = model, folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def inputs():
    """Texts with right, left and inner padding and without any, and random pictures."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 99, (4, 9))
    ids[0, 6:] = 1
    ids[1, :3] = 1
    ids[2, 4] = 1
    pixels = rng.standard_normal((3, 3, 30, 30), dtype=np.float32)
    return {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64), "pixel_values": pixels}
