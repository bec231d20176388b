"""The rules: every parameter has one, and what they cannot do is said in sentences."""

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIPConfig, AltCLIPModel, CLIPConfig, CLIPModel
from altclip_jax.quantization.leaves import shape_leaves
from altclip_jax.quantization.rules import (
    Form,
    QuantizationRule,
    choose_forms,
    quantization_rules,
)
from altclip_jax.weights.convert import flatten

FULL = flatten(AltCLIPModel(AltCLIPConfig.altclip()).param_shapes())


def small(width, **text):
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AltCLIPConfig(
        text_config={**sizes, "vocab_size": 50, "max_position_embeddings": 16, "project_dim": 64, **text},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=64,
    )
    return flatten(AltCLIPModel(config).param_shapes())


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_every_parameter_of_every_family_has_one_rule_and_every_rule_a_parameter(scheme):
    families = [
        FULL,
        flatten(CLIPModel(CLIPConfig()).param_shapes()),
        small(64, position_embedding_type="relative_key"),
    ]
    used = set()
    for path, leaf in {path: leaf for shapes in families for path, leaf in shapes.items()}.items():
        alone = {path: leaf}
        choose_forms(alone, scheme)
        found = [rule for rule in quantization_rules(scheme) if not _refused(alone, rule)]
        assert len(found) == 1, path
        used |= set(found)
    assert used == set(quantization_rules(scheme))


def _refused(shapes, rule):
    try:
        choose_forms(shapes, [rule])
    except ValueError:
        return True
    return False


def test_in_full_size_layers_are_int4_in_groups_of_128_and_vectors_float():
    forms = choose_forms(FULL, "int4")
    assert {form for path, form in forms.items() if "/layer_" in path} == {Form("int4", 128)}
    assert sum("/layer_" in path for path in forms) == 48 * 6
    rest = {path for path, form in forms.items() if form == Form("int8")}
    assert len(rest) == 8
    assert {path.split("/")[-1] for path in FULL if path not in forms} == {
        "bias",
        "scale",
        "class_embedding",
        "logit_scale",
    }
    assert set(choose_forms(FULL, "int8").values()) == {Form("int8")}


@pytest.mark.parametrize(
    ("width", "query", "down"),
    [
        (128, Form("int4", 128), Form("int4", 128)),
        (192, Form("int4", 64), Form("int4", 128)),
        (512, Form("int4", 128), Form("int4", 128)),
        (96, Form("int4", 32), Form("int4", 128)),
        (40, Form("int8"), Form("int4", 32)),
    ],
)
def test_where_128_does_not_divide_groups_are_smaller_and_else_int8(width, query, down):
    forms = choose_forms(small(width), "int4")
    assert forms["text_model/layer_0/attention/query/kernel"] == query
    assert forms["vision_model/layer_0/mlp/down/kernel"] == down


def test_a_group_size_that_is_named_is_kept_or_refused():
    shapes = small(192)
    assert set(choose_forms(shapes, quantization_rules("int4", 96)).values()) == {Form("int8"), Form("int4", 96)}
    with pytest.raises(ValueError, match="groups of 128 do not divide the input axis of text_model/layer_0") as caught:
        choose_forms(shapes, quantization_rules("int4", 128))
    assert str(caught.value).count("\n") == 2 * 5  # down, whose input axis is 768, can
    for size in (0, 7, -2):
        with pytest.raises(ValueError, match="positive even numbers"):
            quantization_rules("int4", size)
    with pytest.raises(ValueError, match="group_size=64 is for int4"):
        quantization_rules("int8", 64)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([QuantizationRule("text_model/layers/.*", "float")], "no parameter has the path 'text_model/layers/.*'"),
        ([QuantizationRule(".*/kernel", "int8")], "no rule says how text_model/layer_0/attention/query/bias is stored"),
        ([QuantizationRule(".*_norm/scale", "int8")], "is no kernel and no table: leave it float"),
        ([QuantizationRule(".*/embedding", "int4")], "is a table, whose rows are read one by one"),
        ([QuantizationRule(".*/patch_embedding/kernel", "int4")], "has more axes than a matrix"),
    ],
)
def test_rules_that_do_not_fit_are_named(rules, words):
    with pytest.raises(ValueError, match="cannot be quantized by these rules") as caught:
        choose_forms(FULL, [*rules, *(quantization_rules("int8") if words[:7] != "no rule" else ())])
    assert words in str(caught.value)


def test_unknown_schemes_are_refused():
    with pytest.raises(ValueError, match="quantize='int3' is not one of int8, int4"):
        choose_forms(FULL, "int3")
    with pytest.raises(ValueError, match="'fp4' of the rule"):
        QuantizationRule(".*", "fp4")
    with pytest.raises(TypeError, match="QuantizationRules"):
        choose_forms(FULL, [("a", "int8")])


def test_own_rules_come_before_those_of_a_scheme():
    rules = (QuantizationRule(r"vision_model/layer_\d+/.*/kernel", "float"), *quantization_rules("int4"))
    forms = choose_forms(FULL, rules)
    assert not any(path.startswith("vision_model/layer_") for path in forms)
    assert forms["text_model/layer_3/mlp/up/kernel"] == Form("int4", 128)
    # a tower's paths are those of a full model
    text = {path.removeprefix("text_model/"): leaf for path, leaf in FULL.items() if path.startswith("text_model/")}
    assert choose_forms(text, "int4", "text_model/")["layer_3/mlp/up/kernel"] == Form("int4", 128)


def test_in_full_size_the_bytes_are_within_the_targets():
    floats = sum(4 * leaf.size for leaf in FULL.values())
    for scheme, share in (("int8", 0.30), ("int4", 0.175)):
        shapes = shape_leaves(FULL, choose_forms(FULL, scheme))
        size = sum(part.size * np.dtype(part.dtype).itemsize for part in jax.tree.leaves(shapes))
        assert size <= share * floats
