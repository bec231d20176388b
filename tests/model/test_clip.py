"""CLIP without the reference: numbers that it gave, what is refused, and what must not change the result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from altclip_jax import AltCLIPModel, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from altclip_jax.model.text import end_of_text
from altclip_jax.weights.convert import flatten, params_from_tensors, tensor_sources
from altclip_jax.weights.families import CLIP
from altclip_jax.weights.readers import CheckpointError, TensorInfo

TOWER = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
TEXT = {**TOWER, "vocab_size": 50, "max_position_embeddings": 10, "eos_token_id": 49, "projection_dim": 4}
CONFIG = CLIPConfig(text_config=TEXT, vision_config={**TOWER, "image_size": 8, "patch_size": 4}, projection_dim=4)
IDS = np.array([[48, 5, 6, 49, 7, 49, 49], [48, 9, 3, 11, 12, 13, 49]])


def formula(count, k):
    i = np.arange(count, dtype=np.int64)
    return (((i * 7919 + k * 104729 + 12345) % 10007) / 10007 - 0.5).astype(np.float32)


PIXELS = 2 * formula(384, 1000).reshape(2, 3, 8, 8)


def made(model_class, config, **fields):
    """A model whose tensors a formula fills, as in test_golden.py."""
    model = model_class(config, **fields)
    shapes = {s.name: s.shape for s in tensor_sources(model.param_shapes(), model.param_shapes(), table=CLIP)}
    tensors = {}
    for k, name in enumerate(sorted(shapes)):
        value = formula(int(np.prod(shapes[name])), k).reshape(shapes[name])
        if name.endswith(".weight") and value.ndim == 1:
            value = value + np.float32(1)
        tensors[name] = np.float32(2.6592) if name == "logit_scale" else value
    infos = {name: TensorInfo(name, np.shape(value), np.dtype(np.float32), __file__) for name, value in tensors.items()}
    read = lambda name: np.asarray(tensors[name])  # noqa: E731
    return model, params_from_tensors(infos, read, model.param_shapes(), table=CLIP)


@pytest.fixture(scope="module")
def clip():
    return made(CLIPModel, CONFIG)


def test_numbers_that_the_reference_gave(clip):
    model, params = clip
    out = model.apply({"params": params}, IDS, PIXELS, return_loss=True, output_hidden_states=True)
    close = lambda ours, golden, atol=1e-5: np.testing.assert_allclose(ours, golden, rtol=0, atol=atol)  # noqa: E731
    pooled = [
        [-0.234907, 0.591039, -1.380207, 0.570774, 0.363639, 0.481966, -2.645804, 1.278805],
        [-0.196388, 0.789088, -1.624636, 0.484469, 0.562289, -0.174810, -2.329688, 1.323851],
    ]
    close(out.text_model_output.pooler_output, pooled)
    close(out.text_embeds, [[0.668636, -0.022625, -0.319595, 0.671023], [0.690925, -0.016460, -0.202407, 0.693818]])
    close(out.image_embeds, [[0.463669, -0.033806, -0.752123, 0.467096], [0.453041, -0.061106, -0.763216, 0.456642]])
    close(out.logits_per_image, [[12.350661, 11.388334], [12.208405, 11.218316]], 2e-5)
    close(out.loss, 0.758968, 2e-6)
    sums = [float(np.abs(state).sum()) for state in out.text_model_output.hidden_states]
    close(sums, [37.61367, 98.99344, 127.93056], 2e-4)


def test_texts_are_read_off_by_the_rule_of_the_configuration():
    ids = jnp.array([[7, 49, 60, 49], [7, 8, 9, 10], [49, 49, 2, 49], [60, 2, 60, 49]])
    rule = lambda eos: end_of_text(ids, CLIPTextConfig.from_dict({**TEXT, "eos_token_id": eos})).tolist()  # noqa: E731
    assert rule(49) == [1, 0, 0, 3]
    assert rule(2) == [2, 3, 0, 0]
    assert CLIPTextConfig().eos_token_id == 49407


def test_right_padding_changes_nothing_with_or_without_a_mask(clip):
    model, params = clip
    features = functools.partial(model.apply, {"params": params}, method="get_text_features")
    short = features(IDS[:1, :4])
    mask = np.array([[1, 1, 1, 1, 0, 0, 0]])
    np.testing.assert_allclose(features(IDS[:1]), short, rtol=0, atol=1e-6)
    np.testing.assert_allclose(features(IDS[:1], mask), short, rtol=0, atol=1e-6)


def test_the_text_towers_share_their_parameters(clip):
    _, params = clip
    plain = CLIPTextModel(CONFIG.text_config).apply({"params": params["text_model"]}, IDS)
    projected = CLIPTextModelWithProjection(CONFIG.text_config).apply(
        {"params": {name: params[name] for name in ("text_model", "text_projection")}}, IDS
    )
    assert np.array_equal(plain.last_hidden_state, projected.last_hidden_state)
    expected = plain.pooler_output @ params["text_projection"]["kernel"]
    np.testing.assert_allclose(projected.text_embeds, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_class", [CLIPModel, AltCLIPModel])
def test_recomputing_changes_neither_loss_nor_gradient(clip, model, params, batch, model_class):
    if model_class is CLIPModel:
        config, tree, given = CONFIG, clip[1], {"input_ids": IDS, "pixel_values": PIXELS}
    else:
        config, tree, given = model.config, params, batch

    def loss(tree, remat):
        return model_class(config, remat=remat).apply({"params": tree}, **given, return_loss=True).loss

    results, products = {}, {}
    for remat in (False, "dots", True):
        step = jax.value_and_grad(functools.partial(loss, remat=remat))
        results[remat] = jax.jit(step)(tree)
        products[remat] = str(jax.make_jaxpr(step)(tree)).count("dot_general")
    for remat in ("dots", True):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        jax.tree.map(close, results[remat], results[False])
    # "dots" repeats the products of attention alone, True those with parameters too
    assert products[False] < products["dots"] < products[True]


def test_an_unknown_way_to_recompute_is_refused():
    with pytest.raises(ValueError, match="remat='some' is not one of False, True and 'dots'"):
        CLIPTextModel(CONFIG.text_config, remat="some").param_shapes()


def test_fused_attention_and_half_precision_stay_near(clip):
    model, params = clip
    mask = np.array([[1, 1, 1, 1, 0, 0, 0], [1] * 7])
    exact = model.apply({"params": params}, IDS, PIXELS, mask)
    fused = CLIPModel(CONFIG, attention_implementation="xla").apply({"params": params}, IDS, PIXELS, mask)
    np.testing.assert_allclose(fused.logits_per_text, exact.logits_per_text, rtol=0, atol=2e-5)
    half = CLIPModel(CONFIG, dtype=jnp.bfloat16).apply({"params": params}, IDS, PIXELS, mask)
    assert half.text_model_output.last_hidden_state.dtype == jnp.bfloat16
    assert half.text_embeds.dtype == half.logits_per_text.dtype == jnp.float32
    np.testing.assert_allclose(half.text_embeds, exact.text_embeds, rtol=0, atol=0.02)


def test_dropout_needs_a_key_and_follows_it():
    config = CLIPTextConfig.from_dict({**TEXT, "attention_dropout": 0.5})
    model, params = made(CLIPTextModelWithProjection, config)
    apply = functools.partial(model.apply, {"params": params}, IDS, deterministic=False)
    first, again, other = (apply(rngs={"dropout": jax.random.key(seed)}).text_embeds for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "You have to specify input_ids"),
        ({"input_ids": np.zeros((1, 11), int)}, "11 tokens long and this tower takes 1 to 10: truncate"),
        ({"input_ids": np.zeros((1, 0), int)}, "0 tokens long"),
        ({"input_ids": np.zeros((1, 3))}, "input_ids must be integers"),
        ({"input_ids": np.array([[3, 50]])}, "outside the vocabulary of 50 rows"),
        ({"input_ids": IDS, "position_ids": IDS}, "outside the position table of 10 rows"),
        (
            {"input_ids": IDS, "attention_mask": np.ones((2, 6))},
            r"shape \(2, 7\) beside .* got float64 of shape \(2, 6\)",
        ),
        ({"input_ids": IDS, "attention_mask": np.ones((2, 7, 7))}, r"got float64 of shape \(2, 7, 7\)"),
    ],
)
def test_what_does_not_fit_is_refused(clip, given, words):
    _, params = clip
    with pytest.raises(ValueError, match=words):
        CLIPTextModel(CONFIG.text_config).apply({"params": params["text_model"]}, **given)


def test_an_id_outside_its_table_is_nan_under_jit(clip):
    model, params = clip
    wrong = IDS.copy()
    wrong[1, 2] = 50
    features = jax.jit(functools.partial(model.apply, method="get_text_features"))({"params": params}, wrong)
    assert np.isnan(features[1]).all()
    assert np.isfinite(features[0]).all()


def test_every_fault_of_a_checkpoint_is_named_at_once(clip, tmp_path):
    model, params = clip
    wider = CLIPConfig(
        text_config={**TEXT, "vocab_size": 51}, vision_config=CONFIG.vision_config.to_dict(), projection_dim=4
    )
    model.save_pretrained(tmp_path, params)
    wider.replace(text_config={**TEXT, "vocab_size": 51, "num_hidden_layers": 1}).save(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        CLIPModel.from_pretrained(tmp_path)
    assert "text_model.embeddings.token_embedding.weight is (50, 8), expected (51, 8)" in str(caught.value)
    assert "unexpected: text_model.encoder.layers.1.mlp.fc1.weight" in str(caught.value)


def test_a_full_checkpoint_and_its_parts_come_back_equal(clip, tmp_path):
    model, params = clip
    model.save_pretrained(tmp_path / "full", params)
    again, read = CLIPModel.from_pretrained(tmp_path / "full")
    assert again.config.replace(extra={}) == CONFIG
    same(read, params)
    tower, text = CLIPTextModel.from_pretrained(tmp_path / "full")
    same(text, params["text_model"])
    tower.save_pretrained(tmp_path / "text", text)
    same(CLIPTextModel.from_pretrained(tmp_path / "text")[1], text)
    with pytest.raises(CheckpointError, match=r"missing: text_projection.weight \(4, 8\)"):
        CLIPTextModelWithProjection.from_pretrained(tmp_path / "text")


def same(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    assert all(np.array_equal(np.asarray(left[path]), np.asarray(right[path])) for path in left)


def test_the_legacy_rule_and_the_projection_width_of_published_files():
    openai = {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 768, "eos_token_id": 2, "bos_token_id": 0, "model_type": "clip_text_model"},
        "vision_config": {"patch_size": 14, "model_type": "clip_vision_model"},
    }
    read = CLIPTextConfig.from_dict(openai)
    assert (read.projection_dim, read.reads_at_highest_id) == (768, True)
    assert CLIPConfig.from_dict(openai).text_config.projection_dim == 512
    openai["text_config_dict"] = {"hidden_size": 768}
    assert not CLIPTextConfig.from_dict(openai).reads_at_highest_id
    with pytest.raises(ValueError, match="use AltCLIPConfig"):
        CLIPConfig.from_dict({**openai, "text_config": {"model_type": "xlm-roberta"}})
    with pytest.raises(ValueError, match=r"eos_token_id=\[1\] must be an integer"):
        CLIPTextConfig(eos_token_id=[1])
