"""The model under jit, vmap, grad, remat, a sharded batch and pmap: the same numbers on eight fake devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from altclip_jax import AltCLIPModel


@pytest.fixture(scope="module")
def plain(model, params, batch):
    return model.apply({"params": params}, **batch)


def same(left, right, atol=2e-6):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=atol)


def test_jit(model, params, batch, plain):
    same(jax.jit(model.apply)({"params": params}, **batch), plain)


def test_vmap_over_a_leading_axis(model, params, batch, plain):
    split = jax.tree.map(lambda array: jnp.asarray(array).reshape(2, 4, *array.shape[1:]), batch)
    out = jax.vmap(lambda part: model.apply({"params": params}, **part).text_embeds)(split)
    same(out.reshape(8, -1), plain.text_embeds)


def test_a_batch_sharded_over_eight_devices(model, params, batch, plain):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    placed = jax.device_put(batch, NamedSharding(mesh, P("data")))
    replicated = jax.device_put(params, NamedSharding(mesh, P()))
    out = jax.jit(model.apply)({"params": replicated}, **placed)
    assert len(out.text_embeds.sharding.device_set) == 8
    same(out, plain)


def test_pmap(model, params, batch, plain):
    split = jax.tree.map(lambda array: array.reshape(8, 1, *array.shape[1:]), batch)
    out = jax.pmap(lambda part, params: model.apply({"params": params}, **part), in_axes=(0, None))(split, params)
    same(out.image_embeds.reshape(8, -1), plain.image_embeds)
    same(out.text_embeds.reshape(8, -1), plain.text_embeds)


def test_remat_changes_neither_loss_nor_gradient(config, model, params, batch):
    def loss_of(model):
        return jax.jit(jax.value_and_grad(lambda p: model.apply({"params": p}, **batch, return_loss=True).loss))(params)

    same(loss_of(AltCLIPModel(config, remat=True)), loss_of(model), 2e-5)


def test_pad_rows_get_no_gradient(model, params, batch):
    inputs = {key: value for key, value in batch.items() if key != "attention_mask"}
    gradient = jax.grad(lambda p: model.apply({"params": p}, **inputs, return_loss=True).loss)(params)["text_model"]
    for name in ("token_embedding", "position_embedding"):
        assert not np.asarray(gradient[name]["embedding"][1]).any()
        assert np.asarray(gradient[name]["embedding"]).any()


@pytest.mark.parametrize("implementation", ["xla"])
def test_fused_attention_equals_the_plain_one(config, params, batch, plain, implementation):
    fused = AltCLIPModel(config, attention_implementation=implementation)
    same(fused.apply({"params": params}, **batch), plain, 5e-6)


def test_fused_attention_refuses_what_it_cannot_give(config, params, batch):
    fused = AltCLIPModel(config, attention_implementation="xla")
    with pytest.raises(ValueError, match=r"output_attentions.*attention_implementation='plain'"):
        fused.apply({"params": params}, **batch, output_attentions=True)
    with pytest.raises(ValueError, match="attention dropout"):
        fused.apply({"params": params}, **batch, deterministic=False, rngs={"dropout": jax.random.key(0)})
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        AltCLIPModel(config, attention_implementation="cudnn").apply({"params": params}, **batch)
    with pytest.raises(ValueError, match="not one of plain, xla, cudnn"):
        AltCLIPModel(config, attention_implementation="flash").apply({"params": params}, **batch)


def test_dropout_follows_its_key(model, params, batch):
    run = functools.partial(model.apply, {"params": params}, **batch, deterministic=False)
    first = run(rngs={"dropout": jax.random.key(0)}).text_embeds
    same(first, run(rngs={"dropout": jax.random.key(0)}).text_embeds, 0)
    assert np.abs(first - run(rngs={"dropout": jax.random.key(1)}).text_embeds).max() > 1e-3


def test_flags_of_the_configuration_are_the_defaults_of_the_calls(config, params, batch):
    model = AltCLIPModel(config.replace(output_hidden_states=True))
    out = model.apply({"params": params}, **batch)
    assert len(out.text_model_output.hidden_states) == 3
    assert out.text_model_output.attentions is None
    assert model.apply({"params": params}, **batch, output_hidden_states=False).text_model_output.hidden_states is None


def test_initialisation_has_the_references_spread(config):
    from altclip_jax.weights.convert import flatten

    wide = config.replace(
        text_config=config.text_config.replace(hidden_size=128, vocab_size=500),
        vision_config=config.vision_config.replace(hidden_size=128, intermediate_size=256),
    )
    flat = flatten(AltCLIPModel(wide).init_params(jax.random.key(0)))
    width, layers = 128, 2
    expected = {
        "text_model/token_embedding/embedding": 0.02,
        "text_model/layer_0/attention/query/kernel": 0.02,
        "text_model/layer_1/mlp/down/kernel": 0.02,
        "text_model/transformation/kernel": 0.02,
        "vision_model/class_embedding": width**-0.5,
        "vision_model/patch_embedding/kernel": 0.02,
        "vision_model/layer_0/attention/value/kernel": width**-0.5 * (2 * layers) ** -0.5,
        "vision_model/layer_0/attention/out/kernel": width**-0.5,
        "vision_model/layer_0/mlp/up/kernel": (2 * width) ** -0.5,
        "vision_model/layer_0/mlp/down/kernel": width**-0.5 * (2 * layers) ** -0.5,
        "visual_projection/kernel": width**-0.5,
        "text_projection/kernel": 12**-0.5,
    }
    for path, spread in expected.items():
        assert np.std(flat[path]) == pytest.approx(spread, rel=4 / np.sqrt(2 * flat[path].size)), path
    assert not np.asarray(flat["text_model/token_embedding/embedding"][1]).any()
    assert not np.asarray(flat["text_model/position_embedding/embedding"][1]).any()
    assert float(flat["logit_scale"]) == pytest.approx(2.6592)
    assert all(not np.asarray(leaf).any() for path, leaf in flat.items() if path.endswith("bias"))
    assert all((np.asarray(leaf) == 1).all() for path, leaf in flat.items() if path.endswith("scale") and leaf.ndim)
