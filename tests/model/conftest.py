"""A small model with every parameter random, and inputs for it."""

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIPConfig, AltCLIPModel

TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "project_dim": 12,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}


@pytest.fixture(scope="session")
def config():
    return AltCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=10)


@pytest.fixture(scope="session")
def model(config):
    return AltCLIPModel(config)


@pytest.fixture(scope="session")
def params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), model.param_shapes()
    )


@pytest.fixture(scope="session")
def batch():
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 60, (8, 7))
    ids[0, 4:] = 1
    pixels = rng.standard_normal((8, 3, 12, 12), dtype=np.float32)
    return {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int32), "pixel_values": pixels}
