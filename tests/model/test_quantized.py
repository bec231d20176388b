"""Parameters in few bits compute what their arrays compute, in every way that parameters are computed with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from altclip_jax import AltCLIPConfig, AltCLIPModel, AltCLIPTextModel, CLIPConfig, CLIPModel, parallel
from altclip_jax.inference.encoder import encode_images, encode_text
from altclip_jax.inference.pmapped import pmap_encoders, replicated
from altclip_jax.model.layers import lookup
from altclip_jax.model.stacked import stack_layers, unstack_layers
from altclip_jax.quantization.leaves import (
    Int4Array,
    Int8Array,
    QuantizedArray,
    dequantize,
    is_quantized,
    join_leaves,
    split_leaves,
)
from altclip_jax.weights.convert import flatten

TOWER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
TEXT = {**TOWER, "vocab_size": 60, "max_position_embeddings": 24, "project_dim": 64, "initializer_factor": 0.3}
VISION = {**TOWER, "image_size": 32, "patch_size": 8, "initializer_factor": 2.0}
CONFIG = AltCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=32)
IDS = np.random.default_rng(0).integers(3, 60, (8, 7)).astype(np.int32)
MASK = np.array([[1] * 7, [1] * 3 + [0] * 4] * 4, np.int32)
PIXELS = np.random.default_rng(1).standard_normal((8, 3, 32, 32)).astype(np.float32)
MODEL = AltCLIPModel(CONFIG)


@pytest.fixture(scope="module")
def floats():
    return MODEL.init_params(jax.random.key(0))


@pytest.fixture(scope="module", params=["int8", "int4"])
def params(request, floats):
    return MODEL.quantize_params(floats, request.param)


def logits(params, model=MODEL):
    return jax.jit(model.apply)({"params": params}, IDS, PIXELS, MASK).logits_per_text


def same_trees(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_model_computes_with_the_arrays_that_its_leaves_give(params, floats):
    assert is_quantized(params)
    assert not is_quantized(dequantize(params))
    np.testing.assert_allclose(logits(params), logits(dequantize(params)), atol=1e-5)
    assert np.abs(logits(params) - logits(floats)).max() > 1e-4


def test_leaves_are_arrays_to_who_asks(params):
    for leaf in flatten(params).values():
        if isinstance(leaf, QuantizedArray):
            array = leaf.dequantize()
            assert (leaf.shape, leaf.ndim, leaf.size, leaf.dtype) == (array.shape, array.ndim, array.size, array.dtype)
            assert leaf.nbytes < array.nbytes / 2
            np.testing.assert_array_equal(np.asarray(leaf), array)
            np.testing.assert_array_equal(jnp.asarray(leaf), array)


def test_nibbles_scales_and_zero_points_are_what_their_description_says(floats):
    leaf = MODEL.quantize_params(floats, "int4")["text_model"]["layer_1"]["mlp"]["down"]["kernel"]
    assert isinstance(leaf, Int4Array)
    assert (leaf.codes.shape, leaf.codes.dtype, leaf.group_size) == ((64, 64), np.uint8, 128)
    codes, scales, zeros = (np.asarray(part) for part in (leaf.codes, leaf.scales, leaf.zero_points))
    assert scales.dtype == zeros.dtype == jnp.bfloat16
    expected = np.zeros((128, 64), np.float32)
    for row in range(128):
        code = codes[row // 2] >> 4 if row % 2 else codes[row // 2] & 15
        expected[row] = (code.astype(np.float32) - 8) * np.float32(scales[0]) + np.float32(zeros[0])
    np.testing.assert_allclose(leaf.dequantize(), expected, atol=1e-7)


def with_dtype(tree, dtype):
    def changed(leaf):
        few_bits = isinstance(leaf, QuantizedArray)
        return dataclasses.replace(leaf, dtype=np.dtype(dtype)) if few_bits else leaf.astype(dtype)

    return jax.tree.map(changed, tree, is_leaf=lambda leaf: isinstance(leaf, QuantizedArray))


def test_layers_in_a_stack_give_the_same_and_come_back(params):
    (stacked,) = stack_layers(params)
    assert stacked["text_model"]["layers"]["mlp"]["up"]["kernel"].shape == (2, 64, 128)
    np.testing.assert_allclose(logits(stacked), logits(params), atol=1e-5)
    same_trees(unstack_layers(stacked), params)


def test_layers_are_made_arrays_of_one_by_one():
    config = AltCLIPConfig(text_config={**TEXT, "hidden_size": 256, "num_hidden_layers": 8}, vision_config=VISION)
    model = AltCLIPTextModel(config.text_config)
    shapes = model.param_shapes()
    floats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    params = model.quantize_params(floats, "int4")
    half = with_dtype(floats, jnp.bfloat16)
    arrays = 4 * sum(leaf.size for path, leaf in flatten(shapes).items() if "/layer_" in f"/{path}")
    for tree in (params, *stack_layers(params), half):
        compiled = jax.jit(model.apply).lower({"params": tree}, IDS[:1], MASK[:1]).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < arrays / 2


def test_looked_up_rows_are_those_of_the_table_and_nan_outside():
    rng = np.random.default_rng(0)
    scales = np.float32(rng.random((9, 1)))
    table = Int8Array(jnp.int8(rng.integers(-128, 128, (9, 4))), jnp.asarray(scales), np.dtype(np.float32))
    ids = jnp.array([[0, 8], [9, -1]])
    found = lookup(table, ids)
    np.testing.assert_array_equal(found, lookup(table.dequantize(), ids))
    assert np.isnan(found[1]).all()


def test_the_dtype_is_that_of_the_arrays(params):
    half = with_dtype(params, jnp.bfloat16)
    assert {np.dtype(leaf.dtype).name for leaf in flatten(half).values()} == {"bfloat16"}
    model = AltCLIPModel(CONFIG, dtype=jnp.bfloat16)
    found = logits(half, model)
    assert np.abs(found - logits(params)).max() < 0.05 * np.abs(logits(params)).max()


def test_a_tree_is_taken_apart_into_plain_arrays_and_joined_again(params):
    apart = split_leaves(params)
    kernel = apart["text_model"]["layer_0"]["mlp"]["up"]["kernel"]
    assert set(kernel) in ({"codes", "scales"}, {"codes", "scales", "zero_points"})
    same_trees(join_leaves(apart, np.float32), params)


def test_a_quantized_program_is_exported(params):
    run = jax.jit(lambda params, ids, mask: encode_text(MODEL, params, ids, mask))
    exported = jax.export.export(run, platforms=["cpu", "cuda", "tpu"])(params, IDS, MASK)
    np.testing.assert_array_equal(exported.call(params, IDS, MASK), run(params, IDS, MASK))


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8}, {"tensor": 8}])
def test_a_mesh_cuts_the_parts_by_the_rules_and_gives_the_same(params, axes):
    mesh = parallel.make_mesh(**axes)
    placed = jax.device_put(params, parallel.param_shardings(mesh, params))
    codes = placed["text_model"]["layer_0"]["attention"]["query"]["kernel"].codes
    pieces = len({str(shard.index) for shard in codes.addressable_shards})
    assert pieces == axes.get("fsdp", 1) * axes.get("tensor", 1)
    for encode, given in ((encode_text, (IDS, MASK)), (encode_images, (PIXELS,))):
        found = encode(MODEL, placed, *jax.device_put(given, parallel.sharding(mesh)), mesh=mesh)
        np.testing.assert_allclose(found, encode(MODEL, params, *given), atol=1e-6)


def test_pmap_takes_them_too(params):
    text, _ = pmap_encoders(MODEL)
    found = text(replicated(params), IDS, MASK)
    np.testing.assert_allclose(found, encode_text(MODEL, params, IDS, MASK), atol=1e-6)


def test_a_clip_and_relative_positions_are_quantized_too():
    clip = CLIPConfig(
        text_config={**TOWER, "vocab_size": 60, "max_position_embeddings": 24, "eos_token_id": 59},
        vision_config=VISION,
        projection_dim=32,
    )
    relative = AltCLIPConfig(
        text_config={**TEXT, "position_embedding_type": "relative_key_query"}, vision_config=VISION, projection_dim=32
    )
    for model in (CLIPModel(clip), AltCLIPModel(relative)):
        params = model.quantize_params(model.init_params(jax.random.key(0)), "int4")
        np.testing.assert_allclose(logits(params, model), logits(dequantize(params), model), atol=1e-5)


def test_a_leaf_of_another_shape_is_named(params):
    text = params["text_model"]
    wrong = {**text, "transformation": {**text["transformation"], "kernel": text["layer_0"]["mlp"]["up"]["kernel"]}}
    words = r'"kernel" in "/text_model/.*transformation.*", .* shape \(64, 64\), .* has shape \(64, 128\)'
    with pytest.raises(ScopeParamShapeError, match=words):
        logits({**params, "text_model": wrong})


def test_what_is_quantized_is_not_quantized_again(params):
    with pytest.raises(ValueError, match="quantized already"):
        MODEL.quantize_params(params, "int8")
