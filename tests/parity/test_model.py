"""The network against transformers 4.56.2: unit embeddings to 5e-6, logits to 1e-4, states and attentions to 2e-5.

Rounding noise was measured at 2e-7 on embeddings and 5e-6 on hidden states of order 1 to 5.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from altclip_jax import AltCLIPModel, AltCLIPTextModel, AltCLIPVisionModel

STATES = 2e-5
CONFIGS = {
    "plain": {},
    "swapped activations": {"text": {"hidden_act": "quick_gelu"}, "vision": {"hidden_act": "gelu"}},
    "gelu_new and relu": {"text": {"hidden_act": "gelu_new"}, "vision": {"hidden_act": "relu"}},
    "silu": {"text": {"hidden_act": "silu"}, "vision": {"hidden_act": "silu"}},
    "other epsilons": {"text": {"layer_norm_eps": 1e-2}, "vision": {"layer_norm_eps": 3e-3}},
    "relative_key": {"text": {"position_embedding_type": "relative_key"}},
    "relative_key_query": {"text": {"position_embedding_type": "relative_key_query"}},
    "two token types, one channel": {"text": {"type_vocab_size": 2}, "vision": {"num_channels": 1}},
    "another pad": {"text": {"pad_token_id": 4}},
    "patches that do not divide": {"vision": {"patch_size": 7}},
    "one layer, one head": {
        "text": {"num_hidden_layers": 1, "num_attention_heads": 1},
        "vision": {"num_hidden_layers": 1, "num_attention_heads": 1},
    },
}


def to_torch(inputs):
    return {name: torch.tensor(value) for name, value in inputs.items()}


def close(ours, theirs, atol, what=""):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=0, atol=atol, err_msg=what)


def same_output(ours, theirs):
    close(ours.text_embeds, theirs.text_embeds, 5e-6, "text_embeds")
    close(ours.image_embeds, theirs.image_embeds, 5e-6, "image_embeds")
    close(ours.logits_per_image, theirs.logits_per_image, 1e-4, "logits_per_image")
    close(ours.logits_per_text, theirs.logits_per_text, 1e-4, "logits_per_text")
    for name in ("text_model_output", "vision_model_output"):
        same_tower(getattr(ours, name), theirs[name])


def same_tower(ours, theirs):
    close(ours.last_hidden_state, theirs.last_hidden_state, STATES, "last_hidden_state")
    close(ours.pooler_output, theirs.pooler_output, STATES, "pooler_output")
    for name in ("hidden_states", "attentions"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert (mine is None) == (other is None)
        if mine is not None:
            assert len(mine) == len(other)
            for index, (left, right) in enumerate(zip(mine, other, strict=True)):
                close(left, right, STATES, f"{name}[{index}]")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_output_equals_the_reference(make_reference, inputs, name):
    reference, folder = make_reference(**CONFIGS[name])
    channels = CONFIGS[name].get("vision", {}).get("num_channels", 3)
    inputs = {**inputs, "pixel_values": inputs["pixel_values"][:, :channels]}
    model, params = AltCLIPModel.from_pretrained(folder)
    flags = {"output_hidden_states": True, "output_attentions": True}
    ours = jax.jit(functools.partial(model.apply, **flags))({"params": params}, **inputs)
    same_output(ours, reference(**to_torch(inputs), **flags))


@pytest.mark.parametrize("dropped", ["attention_mask", None])
@pytest.mark.parametrize("texts", [1, 4])
def test_with_and_without_mask_for_unequal_batches(make_reference, inputs, dropped, texts):
    reference, folder = make_reference()
    inputs = {name: value for name, value in inputs.items() if name != dropped}
    inputs["input_ids"] = inputs["input_ids"][:texts]
    if dropped is None:
        inputs["attention_mask"] = inputs["attention_mask"][:texts]
    model, params = AltCLIPModel.from_pretrained(folder)
    same_output(model.apply({"params": params}, **inputs), reference(**to_torch(inputs)))


def test_three_dimensional_fractional_and_fully_masked_masks(make_reference, inputs):
    reference, folder = make_reference()
    model, params = AltCLIPTextModel.from_pretrained(folder)
    ids, rng = inputs["input_ids"], np.random.default_rng(3)
    whole = (rng.random((4, 9, 9)) > 0.3).astype(np.int64)
    none = np.zeros((4, 9), np.int64)
    fractional = rng.random((4, 9)).astype(np.float32)
    for mask in (whole, none, fractional, inputs["attention_mask"].astype(bool)):
        given = torch.tensor(mask)
        theirs = reference.text_model(torch.tensor(ids), attention_mask=given, output_attentions=True)
        same_tower(model.apply({"params": params}, ids, mask, output_attentions=True), theirs)


def test_the_text_towers_other_arguments(make_reference, inputs):
    reference, folder = make_reference(text={"type_vocab_size": 2})
    model, params = AltCLIPTextModel.from_pretrained(folder)
    rng = np.random.default_rng(4)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cases = [
        {"input_ids": ids, "attention_mask": mask, "head_mask": np.array([1.0, 0, 1, 0.5], np.float32)},
        {"input_ids": ids, "attention_mask": mask, "head_mask": rng.random((3, 4)).astype(np.float32)},
        {"inputs_embeds": rng.standard_normal((4, 9, 32)).astype(np.float32), "attention_mask": mask},
        {"input_ids": ids, "position_ids": rng.integers(0, 40, (4, 9)), "token_type_ids": rng.integers(0, 2, (4, 9))},
        {"input_ids": ids, "position_ids": np.arange(9)[None] + 5},
    ]
    for case in cases:
        flags = {"output_attentions": True, "output_hidden_states": True}
        same_tower(model.apply({"params": params}, **case, **flags), reference.text_model(**to_torch(case), **flags))


@pytest.mark.parametrize("size", [(30, 30), (42, 42), (24, 24), (36, 18), (33, 50), (20, 45), (6, 6)])
def test_interpolated_positions_at_any_size(make_reference, size):
    reference, folder = make_reference()
    model, params = AltCLIPVisionModel.from_pretrained(folder)
    pixels = np.random.default_rng(5).standard_normal((2, 3, *size), dtype=np.float32)
    theirs = reference.vision_model(torch.tensor(pixels), interpolate_pos_encoding=True)
    same_tower(model.apply({"params": params}, pixels, interpolate_pos_encoding=True), theirs)


def test_a_tall_picture_with_the_native_number_of_patches_is_resampled(make_reference):
    reference, folder = make_reference(vision={"image_size": 32, "patch_size": 8})
    model, params = AltCLIPVisionModel.from_pretrained(folder)
    pixels = np.random.default_rng(6).standard_normal((1, 3, 64, 16), dtype=np.float32)
    theirs = reference.vision_model(torch.tensor(pixels), interpolate_pos_encoding=True)
    same_tower(model.apply({"params": params}, pixels, interpolate_pos_encoding=True), theirs)


def test_features_are_plain_arrays_and_not_normalised(make_reference, inputs):
    reference, folder = make_reference()
    model, params = AltCLIPModel.from_pretrained(folder)
    given = to_torch(inputs)
    text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    ours = model.apply({"params": params}, **text, method="get_text_features")
    close(ours, reference.get_text_features(given["input_ids"], given["attention_mask"]), STATES)
    ours = model.apply({"params": params}, inputs["pixel_values"], method="get_image_features")
    close(ours, reference.get_image_features(given["pixel_values"]), STATES)


def test_tuple_has_the_order_of_the_reference(make_reference, inputs):
    reference, folder = make_reference()
    model, params = AltCLIPModel.from_pretrained(folder)
    inputs = {**inputs, "input_ids": inputs["input_ids"][:3], "attention_mask": inputs["attention_mask"][:3]}
    ours = model.apply({"params": params}, **inputs, return_loss=True).to_tuple()
    theirs = reference(**to_torch(inputs), return_loss=True, return_dict=False)
    assert len(ours) == len(theirs) == 7
    for left, right in zip(jax.tree.leaves(ours), _leaves(theirs), strict=True):
        close(left, right, 1e-4)


def _leaves(value):
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("name", ["plain", "relative_key_query", "another pad"])
def test_loss_and_its_gradient_for_every_parameter(make_reference, inputs, name):
    reference, folder = make_reference(**CONFIGS[name])
    model, params = AltCLIPModel.from_pretrained(folder)
    inputs = {**inputs, "input_ids": inputs["input_ids"][:3], "attention_mask": inputs["attention_mask"][:3]}
    pad = reference.config.text_config.pad_token_id
    inputs["input_ids"] = np.where(inputs["input_ids"] == 1, pad, inputs["input_ids"])
    del inputs["attention_mask"]  # so that pads are attended and their row would get a gradient

    def loss_of(params):
        return model.apply({"params": params}, **inputs, return_loss=True).loss

    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(params)
    reference.zero_grad()
    theirs = reference(**to_torch(inputs), return_loss=True).loss
    theirs.backward()
    close(loss, theirs, 2e-6)
    zeros = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in reference.named_parameters()}
    ours = state_dict_of(model, gradient)
    assert ours.keys() == zeros.keys()
    for key, expected in zeros.items():
        relative = name == "relative_key_query" and key.startswith("text_model")
        if key.endswith((".key.bias", ".k_proj.bias")) and not relative:
            # the true gradient is zero, and all of both is rounding: up to 1.9e-7 was seen, differently on each machine
            assert max(np.abs(ours[key]).max(), float(expected.abs().max())) < 1e-6, key
            continue
        scale = max(1e-2, float(expected.abs().max()))
        np.testing.assert_allclose(ours[key] / scale, expected.numpy() / scale, rtol=0, atol=2e-5, err_msg=key)
    assert not ours["text_model.roberta.embeddings.word_embeddings.weight"][pad].any()


def state_dict_of(model, params):
    from altclip_jax.weights.convert import tensor_sources

    return {
        source.name: source.load() for source in tensor_sources(params, model.param_shapes(), table=model.rule_table)
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_no_worse_than_the_references(make_reference, dtype):
    # single draws scatter by 15% either way; pooled over six models ours was measured at 0.85 to 0.99 of theirs
    names = ("text_embeds", "image_embeds", "logits_per_image")
    errors = {name: np.zeros(2) for name in names}
    for seed in range(6):
        reference, folder = make_reference(seed=seed)
        rng = np.random.default_rng(seed)
        ids, pixels = rng.integers(3, 99, (32, 9)), rng.standard_normal((32, 3, 30, 30), dtype=np.float32)
        exact = reference(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels))
        half = type(reference).from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        theirs = half(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels).to(half.dtype))
        model, params = AltCLIPModel.from_pretrained(folder, dtype=dtype, param_dtype=dtype)
        assert all(leaf.dtype == jnp.dtype(dtype) for leaf in jax.tree.leaves(params))
        ours = jax.jit(model.apply)({"params": params}, ids, pixels)
        for name in names:
            truth = exact[name].detach().numpy()
            for place, value in enumerate((np.asarray(getattr(ours, name)), theirs[name].detach().float().numpy())):
                errors[name][place] += np.mean((value - truth) ** 2)
    assert all(mine <= theirs for mine, theirs in errors.values()), errors


def test_what_is_saved_loads_in_the_reference_without_a_missing_or_unexpected_key(make_reference, inputs, tmp_path):
    reference, folder = make_reference()
    for model_class in (AltCLIPModel, AltCLIPTextModel, AltCLIPVisionModel):
        model, params = model_class.from_pretrained(folder)
        target = tmp_path / model_class.__name__
        model.save_pretrained(target, params)
        import transformers

        again, told = getattr(transformers, model_class.__name__).from_pretrained(target, output_loading_info=True)
        assert not any(told.values()), told
        expected = {
            name.removeprefix("text_model.") if model_class is AltCLIPTextModel else name: value
            for name, value in reference.state_dict().items()
        }
        for name, value in again.state_dict().items():
            assert torch.equal(value, expected[name]), name


def test_activations_equal_torchs():
    from torch.nn import functional

    from altclip_jax.config import ACTIVATIONS as NAMES
    from altclip_jax.model.layers import ACTIVATIONS

    theirs = {
        "gelu": functional.gelu,
        "gelu_new": functools.partial(functional.gelu, approximate="tanh"),
        "relu": functional.relu,
        "silu": functional.silu,
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "selu": functional.selu,  # named by the reference's documents, absent from its code
    }
    assert set(NAMES) == set(ACTIVATIONS) == set(theirs)
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    for name in NAMES:
        close(ACTIVATIONS[name](jnp.asarray(x)), theirs[name](torch.tensor(x)), 2e-6, name)
