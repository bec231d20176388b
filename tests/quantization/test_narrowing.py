"""A finite number never becomes infinite in silence: not in a file, not in memory."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from altclip_jax import AltCLIPModel, CheckpointError, parallel
from altclip_jax.assets import default_checkpoint
from altclip_jax.checkpoints import convert
from altclip_jax.quantization.narrowing import NarrowingError, narrow
from altclip_jax.weights.convert import flatten, unflatten
from altclip_jax.weights.folder import save_orbax

LARGE = {
    "text_projection/kernel": 70000.0,
    "visual_projection/kernel": -3.3e38,
    "text_model/token_embedding/embedding": 65520.0,
}
IN_FILE = {
    "text_projection.weight": "70000",
    "visual_projection.weight": "3.3e+38",
    "text_model.roberta.embeddings.word_embeddings.weight": "65520",
}


@pytest.fixture(scope="module")
def large():
    """A model some of whose parameters float16 has no place for, others of which are infinite or not numbers."""
    model, params = AltCLIPModel.from_pretrained(default_checkpoint())
    flat = {path: np.array(leaf) for path, leaf in flatten(params).items()}
    for path, value in LARGE.items():
        flat[path][1, 1] = value
    flat["text_model/final_norm/bias"][:3] = np.inf, np.nan, 65519.0
    return model, unflatten(flat)


@pytest.fixture(scope="module")
def saved(large, tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    model, params = large
    model.save_pretrained(folder / "one file", params)
    model.save_pretrained(folder / "shards", params, max_shard_bytes=1_000_000)
    save_orbax(model, folder / "orbax", params)
    return folder


def names_all(message, names, dtype="float16"):
    """All tensors are named with what they hold, and no other is."""
    assert len(re.findall(r"\n  - ", message)) == len(names)
    for name, value in names.items():
        assert f"{name} holds {value}, and {dtype} ends at 65504 (bfloat16 and float32 reach further)" in message
    return True


def test_a_file_with_infinite_numbers_is_not_written(large, tmp_path):
    model, params = large
    for folder in (tmp_path / "new" / "deep", tmp_path / "new"):
        with pytest.raises(CheckpointError) as raised:
            model.save_pretrained(folder, params, dtype="float16")
        assert names_all(str(raised.value), IN_FILE)
        assert not folder.exists() or list(folder.iterdir()) == []
    model.save_pretrained(tmp_path, params)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match="The file would have infinite numbers"):
        model.save_pretrained(tmp_path, params, dtype="float16", max_shard_bytes=1_000_000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_what_was_infinite_stays_and_bfloat16_has_place(large, tmp_path):
    model, params = large
    model.save_pretrained(tmp_path, params, dtype="bfloat16")
    bias = flatten(AltCLIPModel.from_pretrained(tmp_path)[1])["text_model/final_norm/bias"]
    assert np.isposinf(bias[0])
    assert np.isnan(bias[1])
    beyond = {**flatten(params), "text_projection/kernel": np.full((8, 8), 3.4e38, np.float32)}
    beyond["text_projection/kernel"] = np.full_like(flatten(params)["text_projection/kernel"], 3.4e38)
    with pytest.raises(
        CheckpointError, match=r"text_projection\.weight holds 3\.4e\+38, and bfloat16 ends at 3\.38953e\+38 "
    ):
        model.save_pretrained(tmp_path, unflatten(beyond), dtype="bfloat16")


@pytest.mark.parametrize("form", ["one file", "shards"])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_model_with_infinite_numbers_is_not_loaded(form, devices, saved):
    mesh = None if devices == 1 else parallel.make_mesh(fsdp=2, devices=jax.devices()[:2])
    with pytest.raises(CheckpointError) as raised:
        AltCLIPModel.from_pretrained(saved / form, param_dtype="float16", mesh=mesh)
    assert names_all(str(raised.value), IN_FILE)
    AltCLIPModel.from_pretrained(saved / form, dtype="float16")
    AltCLIPModel.from_pretrained(saved / form, param_dtype="bfloat16", mesh=mesh)


@pytest.mark.parametrize("devices", [1, 2])
def test_orbax_changes_dtypes_and_is_watched(devices, saved):
    mesh = None if devices == 1 else parallel.make_mesh(fsdp=2, devices=jax.devices()[:2])
    with pytest.raises(CheckpointError) as raised:
        AltCLIPModel.from_pretrained(saved / "orbax", param_dtype="float16", mesh=mesh)
    assert names_all(str(raised.value), {path: f"{abs(value):.6g}" for path, value in LARGE.items()})
    AltCLIPModel.from_pretrained(saved / "orbax", param_dtype="bfloat16", mesh=mesh)


def test_a_conversion_says_it_before_it_writes(saved, tmp_path):
    with pytest.raises(CheckpointError) as raised:
        convert(saved / "one file", tmp_path / "half", dtype="float16")
    assert names_all(str(raised.value), IN_FILE)
    assert not (tmp_path / "half").exists()


@pytest.fixture(scope="module")
def finite(large, tmp_path_factory):
    """The same without what cannot be quantized at all."""
    model, params = large
    flat = flatten(params)
    bias = np.nan_to_num(flat["text_model/final_norm/bias"], posinf=0.0)
    folder = tmp_path_factory.mktemp("finite")
    model.save_pretrained(folder, unflatten({**flat, "text_model/final_norm/bias": bias}))
    return folder


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_few_bits_that_give_infinite_numbers_are_refused(quantize, finite, tmp_path):
    with pytest.raises(CheckpointError) as raised:
        AltCLIPModel.from_pretrained(finite, param_dtype="float16", quantize=quantize)
    assert {path for path in LARGE if path in str(raised.value)} >= {
        "text_projection/kernel",
        "visual_projection/kernel",
    }
    model, params = AltCLIPModel.from_pretrained(finite, quantize=quantize)
    model.save_pretrained(tmp_path, params)
    with pytest.raises(CheckpointError, match="would have infinite numbers"):
        AltCLIPModel.from_pretrained(tmp_path, param_dtype="float16")
    AltCLIPModel.from_pretrained(tmp_path, param_dtype="bfloat16")


def test_scales_that_are_infinite_are_refused(large):
    model, params = large
    flat = {path: np.ones_like(leaf) for path, leaf in flatten(params).items()}
    for layer in (0, 1):
        kernel = flat[f"text_model/layer_{layer}/mlp/up/kernel"]
        kernel[:] = np.where(np.arange(len(kernel)) % 2, 3.4e38, -3.4e38)[:, None]
    with pytest.raises(CheckpointError) as raised:
        model.quantize_params(unflatten(flat), "int4")
    for layer in (0, 1):
        assert f"layer_{layer}/mlp/up/kernel holds numbers too large for int4, whose scales are bfloat16" in str(
            raised.value
        )


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)),
    st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32, np.float64]),
)
def test_what_is_refused_is_what_would_become_infinite(array, dtype):
    with np.errstate(over="ignore"):
        expected = array.astype(dtype)
    lost = np.isfinite(array) & ~np.isfinite(expected)
    if not lost.any():
        assert narrow(array, np.dtype(dtype)).tobytes() == expected.tobytes()
        return
    with pytest.raises(NarrowingError, match=re.escape(f"holds {np.abs(array[lost]).max():.6g}, and")):
        narrow(array, np.dtype(dtype))
