"""A small model with every parameter random, and a batch for it."""

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIPConfig, AltCLIPModel

TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "project_dim": 16,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
    "attention_dropout": 0.1,
}
ROWS = 16


@pytest.fixture(scope="session")
def model():
    return AltCLIPModel(AltCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))


@pytest.fixture(scope="session")
def params(model):
    """Every value random and activations of order one, so that rounding is that of float32 and no more."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        if leaf.ndim == 1:
            noise = 0.2 * noise + (1 if path[-1].key == "scale" else 0)
        elif path[-1].key == "kernel":
            noise = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        return jax.numpy.asarray(noise, leaf.dtype)

    values = jax.tree_util.tree_map_with_path(value, model.param_shapes())
    return {**values, "logit_scale": jax.numpy.float32(2.5)}


@pytest.fixture(scope="session")
def batch():
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 60, (ROWS, 7)).astype(np.int32)
    ids[0, 4:] = 1
    return {
        "input_ids": ids,
        "attention_mask": (ids != 1).astype(np.int32),
        "pixel_values": rng.standard_normal((ROWS, 3, 12, 12), dtype=np.float32),
    }
