"""Numbers that transformers 4.56.2 gave for a model that a formula fills; they need neither it nor torch."""

import numpy as np
import pytest

from altclip_jax import AltCLIPConfig, AltCLIPModel
from altclip_jax.weights.convert import params_from_tensors, tensor_sources
from altclip_jax.weights.families import ALTCLIP
from altclip_jax.weights.readers import TensorInfo

CONFIG = AltCLIPConfig(
    text_config={
        "vocab_size": 50,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 20,
        "project_dim": 6,
    },
    vision_config={
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    },
    projection_dim=4,
)
IDS = np.array([[0, 5, 6, 7, 2, 1, 1], [0, 9, 3, 11, 12, 13, 2]])


def formula(count, k):
    i = np.arange(count, dtype=np.int64)
    return (((i * 7919 + k * 104729 + 12345) % 10007) / 10007 - 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def model_and_params():
    model = AltCLIPModel(CONFIG)
    sources = tensor_sources(model.init_params(_key()), model.param_shapes(), table=ALTCLIP)
    shapes = {source.name: source.shape for source in sources}
    tensors = {}
    for k, name in enumerate(sorted(shapes)):
        value = formula(int(np.prod(shapes[name])), k).reshape(shapes[name])
        if name.endswith(".weight") and value.ndim == 1:
            value = value + np.float32(1)
        tensors[name] = np.float32(2.6592) if name == "logit_scale" else value
    infos = {name: TensorInfo(name, np.shape(value), np.dtype(np.float32), __file__) for name, value in tensors.items()}
    assert len(tensors) == 83
    read = lambda name: np.asarray(tensors[name])  # noqa: E731
    return model, params_from_tensors(infos, read, model.param_shapes(), table=ALTCLIP)


def _key():
    import jax

    return jax.random.key(0)


def test_embeddings_logits_and_loss(model_and_params):
    model, params = model_and_params
    pixels = 2 * formula(384, 1000).reshape(2, 3, 8, 8)
    mask = (IDS != 1).astype(int)
    out = model.apply({"params": params}, IDS, pixels, mask, return_loss=True, output_hidden_states=True)
    close = lambda ours, golden, atol=1e-5: np.testing.assert_allclose(ours, golden, rtol=0, atol=atol)  # noqa: E731
    close(out.text_embeds, [[0.32667, -0.53991, -0.29296, 0.7183], [0.26101, -0.56885, -0.23884, 0.74245]])
    close(out.image_embeds, [[0.5601, -0.36592, 0.48791, 0.56066], [0.55676, -0.36878, 0.49334, 0.55735]])
    close(out.logits_per_image, [[9.146774759, 9.343451423], [9.096504530, 9.300561500]])
    close(out.loss, 0.693944, 2e-6)
    text = [float(np.abs(state).sum()) for state in out.text_model_output.hidden_states]
    vision = [float(np.abs(state).sum()) for state in out.vision_model_output.hidden_states]
    close(text, [89.3813, 101.4439, 88.5204], 2e-4)
    close(vision, [69.6689, 81.9419, 105.1532], 2e-4)
    close(
        out.text_model_output.pooler_output,
        [
            [-0.24987, 0.60407, 0.56417, -0.86972, -0.01578, 0.94432],
            [-0.32238, 0.43114, 0.50206, -0.94243, -0.18891, 0.88201],
        ],
    )


def test_features_with_and_without_mask_and_at_another_size(model_and_params):
    model, params = model_and_params
    text = lambda **how: model.apply({"params": params}, IDS, **how, method="get_text_features")  # noqa: E731
    masked = text(attention_mask=(IDS != 1).astype(int))
    np.testing.assert_allclose(masked[0], [0.42065, -0.69525, -0.37725, 0.92496], rtol=0, atol=1e-5)
    np.testing.assert_allclose(text()[0], [0.43127, -0.70339, -0.38267, 0.93823], rtol=0, atol=1e-5)
    pixels = 2 * formula(576, 2000).reshape(1, 3, 12, 16)
    image = model.apply({"params": params}, pixels, interpolate_pos_encoding=True, method="get_image_features")
    np.testing.assert_allclose(image[0], [0.91233, -0.60329, 0.81832, 0.9141], rtol=0, atol=1e-5)
