"""What does not fit is refused by name before the device answers with NaN or another row."""

import functools
import inspect

import jax
import numpy as np
import pytest

from altclip_jax import (
    AltCLIPModel,
    AltCLIPTextModel,
    AltCLIPVisionModel,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
)

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}


@pytest.fixture(scope="module")
def text(config, params):
    return functools.partial(AltCLIPTextModel(config.text_config).apply, {"params": params["text_model"]})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "exactly one of them; got neither"),
        ({"input_ids": np.ones((1, 2), int), "inputs_embeds": np.ones((1, 2, 16))}, "got both"),
        ({"input_ids": np.array([[0, 60]])}, "outside the vocabulary of 60 rows, such as 60"),
        ({"input_ids": np.array([[0, -1]])}, "such as -1"),
        ({"input_ids": np.array([[0, 5]]), "token_type_ids": np.array([[0, 1]])}, "token types of 1 rows"),
        ({"input_ids": np.array([[0, 5]]), "position_ids": np.array([[0, 24]])}, "position table of 24 rows"),
        ({"input_ids": np.full((1, 23), 5)}, "23 tokens and the position table ends after 22"),
        ({"input_ids": np.full((1, 25), 1)}, "25 tokens"),
        ({"input_ids": np.array([0, 5])}, r"shape \(batch, sequence\)"),
        ({"input_ids": np.array([[0.0, 5.0]])}, "must be integers"),
        ({"inputs_embeds": np.ones((1, 2, 9))}, r"\(batch, sequence, 16\)"),
        ({"input_ids": np.array([[0, 5]]), "attention_mask": np.ones((1, 1, 2, 2))}, "attention_mask must have shape"),
        ({"input_ids": np.array([[0, 5]]), "attention_mask": np.ones((1, 1))}, r"\(1, 2\) or \(1, 2, 2\) beside"),
        ({"input_ids": np.array([[0, 5]] * 3), "attention_mask": np.ones((2, 2))}, r"got float64 of shape \(2, 2\)"),
        (
            {"input_ids": np.array([[0, 5]]), "position_ids": np.array([2, 3])},
            r"position_ids must be integers of shape",
        ),
        ({"input_ids": np.array([[0, 5]]), "position_ids": np.array([[2]])}, r"shape \(1, 2\) beside these texts"),
        ({"input_ids": np.array([[0, 5]]), "position_ids": np.array([[2.0, 3.0]])}, "got float64"),
        ({"input_ids": np.array([[0, 5]]), "token_type_ids": np.array([[0]])}, "token_type_ids must be integers"),
        ({"input_ids": np.array([[0, 5]]), "head_mask": np.ones(3)}, r"\(heads,\) = \(2,\)"),
    ],
)
def test_texts_that_do_not_fit(text, inputs, words):
    with pytest.raises(ValueError, match=words):
        text(**inputs)


RAGGED = [[0, 5, 2], [0, 5, 6, 7, 2]]
FULL = np.array([[0, 5, 2, 1, 1], [0, 5, 6, 7, 2]])


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": RAGGED},
        {"input_ids": [np.array(row) for row in RAGGED]},
        {"input_ids": np.array([np.array(row) for row in RAGGED], dtype=object)},
        {"input_ids": FULL, "attention_mask": RAGGED},
        {"input_ids": FULL, "position_ids": RAGGED},
        {"input_ids": FULL, "token_type_ids": RAGGED},
    ],
)
def test_texts_that_were_not_padded_are_named_with_the_way_out(text, inputs):
    name = list(inputs)[-1]
    with pytest.raises(ValueError, match=f"^{name} has rows of different lengths.*padding=True, return_tensors='np'"):
        text(**inputs)


@pytest.mark.parametrize("ids", [RAGGED, FULL.tolist()])
def test_lists_of_tokens_do_not_go_through_jit(config, params, ids):
    apply = functools.partial(jax.jit(AltCLIPModel(config).apply, static_argnames="method"), {"params": params})
    with pytest.raises(TypeError, match=r"^input_ids is a list.*padding=True, return_tensors='np'"):
        apply(ids, method="get_text_features")
    with pytest.raises(TypeError, match=r"^pixel_values is a list.*np\.stack"):
        apply(list(np.zeros((2, 3, 12, 12), np.float32)), method="get_image_features")


def test_lists_of_equal_rows_are_taken_outside_jit(text):
    expected = text(input_ids=FULL, attention_mask=FULL != 1).pooler_output
    found = text(input_ids=FULL.tolist(), attention_mask=(FULL != 1).tolist()).pooler_output
    assert np.array_equal(found, expected)


def test_padding_does_not_count_towards_the_length_where_ids_are_known(text):
    ids = np.full((1, 24), 5)
    ids[0, 20:] = 1
    assert np.isfinite(text(input_ids=ids).pooler_output).all()
    with pytest.raises(ValueError, match="Inside jit padding counts"):
        jax.jit(text)(input_ids=ids)


def test_inside_jit_an_id_outside_its_table_is_never_mistaken_for_an_answer(text):
    for wrong in (60, -1):
        out = jax.jit(text)(input_ids=np.array([[0, wrong], [0, 5]])).pooler_output
        assert np.isnan(out[0]).all()
        assert np.isfinite(out[1]).all()
    out = jax.jit(text)(input_ids=np.array([[0, 5]]), token_type_ids=np.array([[0, 1]])).pooler_output
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 12, 13), r"Input image size \(12\*13\) doesn't match model \(12\*12\)\."),
        ((1, 1, 12, 12), r"\(batch, 3, height, width\)"),
        ((3, 12, 12), r"\(batch, 3, height, width\)"),
    ],
)
def test_pictures_that_do_not_fit(model, params, shape, words):
    with pytest.raises(ValueError, match=words):
        model.apply({"params": params}, np.zeros(shape, np.float32), method="get_image_features")


def test_pictures_of_different_sizes_are_named_with_the_way_out(model, params):
    pictures = [np.zeros((3, 12, side), np.float32) for side in (12, 13)]
    with pytest.raises(ValueError, match=r"^pixel_values has rows of different lengths.*AltCLIPProcessor"):
        model.apply({"params": params}, pictures, method="get_image_features")


def test_missing_inputs_and_unequal_pairs(model, params, batch):
    with pytest.raises(ValueError, match="You have to specify pixel_values"):
        model.apply({"params": params}, batch["input_ids"])
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model.apply({"params": params}, pixel_values=batch["pixel_values"])
    with pytest.raises(ValueError, match="8 texts and 3 images"):
        model.apply({"params": params}, batch["input_ids"], batch["pixel_values"][:3], return_loss=True)


@pytest.mark.parametrize(
    "model_class",
    [
        AltCLIPModel,
        AltCLIPTextModel,
        AltCLIPVisionModel,
        CLIPModel,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionModel,
    ],
)
def test_a_traced_flag_is_explained(model_class, batch):
    towers = {"text_config": TOWER, "vision_config": TOWER | {"image_size": 12, "patch_size": 4}}
    kind = model_class.config_class
    model = model_class(kind.from_dict({"model_type": kind.model_type, **towers}))
    inputs = {name: batch[name] for name in model.example_inputs()}
    arguments = inspect.signature(model_class.__call__).parameters
    flags = [name for name, argument in arguments.items() if "bool" in str(argument.annotation)]
    assert {"output_attentions", "deterministic"} < set(flags)
    for name in flags:
        words = rf"functools\.partial\(model\.apply, {name}=True\)\) or static_argnames=\('{name}',\)"
        with pytest.raises(TypeError, match=words):
            jax.eval_shape(model.apply, {"params": model.param_shapes()}, **inputs, **{name: True})


def test_a_static_flag_decides(text, batch):
    ids, key = batch["input_ids"], {"dropout": jax.random.key(0)}
    apply = jax.jit(text, static_argnames="deterministic")
    plain, dropped = (apply(ids, deterministic=flag, rngs=key).pooler_output for flag in (True, False))
    assert np.array_equal(plain, apply(ids).pooler_output)
    assert not np.allclose(plain, dropped, atol=0.1)
