"""A folder to a model and back: every fault in one message, towers out of a full checkpoint, other spellings."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from altclip_jax import (
    AltCLIP,
    AltCLIPModel,
    AltCLIPTextModel,
    AltCLIPVisionModel,
    CheckpointError,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
)
from altclip_jax.assets import default_checkpoint
from altclip_jax.checkpoints import convert
from altclip_jax.pretrained import PretrainedModel
from altclip_jax.weights import families, rules
from altclip_jax.weights.convert import flatten
from altclip_jax.weights.folder import save_orbax

DEFAULT = default_checkpoint()
TEACHER = Path(__file__).parents[2] / "recipes" / "emoji" / "teacher"


@pytest.fixture(scope="module")
def tensors():
    return load_file(DEFAULT / "model.safetensors")


@pytest.fixture
def write(tmp_path):
    def write(tensors, config=None):
        save_file(tensors, tmp_path / "model.safetensors")
        text = (DEFAULT / "config.json").read_text() if config is None else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
        return tmp_path

    return write


def equal(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    assert all(np.array_equal(np.asarray(left[path]), np.asarray(right[path])) for path in left)


@pytest.mark.parametrize("table", [families.ALTCLIP, families.CLIP, families.XLM_ROBERTA])
def test_every_rule_inverts(table):
    for rule in table.rules:
        name, path = rule.name.replace("{i}", "11"), rule.path.replace("{i}", "11")
        assert table.path_of(name) == (path, rule.transform)
        assert table.name_of(path) == (name, rule.transform)
        assert table.canonical_name(name) == name
        assert not table.is_ignored(name)


def test_every_transform_inverts():
    rng = np.random.default_rng(0)
    for transform, shape in (("same", (3,)), ("same", ()), ("linear", (2, 5)), ("patches", (4, 3, 2, 2))):
        array = rng.standard_normal(shape).astype(np.float32)
        there = rules.to_param(array, transform, np.dtype(np.float32))
        assert rules.torch_shape(there.shape, transform) == shape
        assert np.array_equal(rules.from_param(there, transform, np.dtype(np.float32)), array)


def test_every_fault_is_named_at_once(tensors, write):
    broken = dict(tensors)
    del broken["text_projection.weight"]
    broken["text_model.pre_LN.bias"] = np.zeros(5, np.float32)
    broken["logit_scale"] = np.zeros((), np.int32)
    broken["vision_model.extra.weight"] = np.zeros(2, np.float32)
    broken["text_model.roberta.encoder.layers.0.output.dense.bias"] = np.zeros(128, np.float32)
    with pytest.raises(CheckpointError) as caught:
        AltCLIPModel.from_pretrained(write(broken))
    for words in (
        "missing: text_projection.weight (128, 128)",
        "wrong shape: text_model.pre_LN.bias is (5,), expected (128,)",
        "wrong dtype: logit_scale is int32",
        "unexpected: vision_model.extra.weight (2,)",
        "set twice",
        "5 faults",
    ):
        assert words in str(caught.value)


def test_buffers_and_poolers_are_tolerated_and_nothing_else(tensors, write):
    extra = {
        "text_model.roberta.embeddings.position_ids": np.arange(66)[None],
        "vision_model.embeddings.position_ids": np.arange(17)[None],
        "text_model.roberta.pooler.dense.weight": np.zeros((128, 128), np.float32),
    }
    AltCLIPModel.from_pretrained(write({**tensors, **extra}))
    with pytest.raises(CheckpointError, match=r"lm_head.bias"):
        AltCLIPModel.from_pretrained(write({**tensors, "lm_head.bias": np.zeros(3, np.float32)}))


def test_other_spellings_of_the_names(tensors, write):
    _, params = AltCLIPModel.from_pretrained(DEFAULT)
    newer = {
        name.replace("roberta.encoder.layer.", "roberta.encoder.layers."): array for name, array in tensors.items()
    }
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in tensors.items()
    }
    newest = {
        name.replace("vision_model.encoder.layers.", "vision_model.encoder.layer."): array
        for name, array in tensors.items()
    }
    for spelled in (newer, newest, older):
        assert spelled.keys() != tensors.keys()
        equal(AltCLIPModel.from_pretrained(write(spelled))[1], params)


def test_towers_out_of_a_full_checkpoint_and_alone(tmp_path, tensors, write):
    _, params = AltCLIPModel.from_pretrained(DEFAULT)
    for model_class, part in ((AltCLIPTextModel, "text_model"), (AltCLIPVisionModel, "vision_model")):
        model, tower = model_class.from_pretrained(DEFAULT)
        equal(tower, params[part])
        model.save_pretrained(tmp_path / part, tower)
        equal(model_class.from_pretrained(tmp_path / part)[1], tower)
    bare = {
        name.removeprefix("vision_model."): array for name, array in tensors.items() if name.startswith("vision_model.")
    }
    folder = write(bare, json.loads((tmp_path / "vision_model" / "config.json").read_text()))
    equal(AltCLIPVisionModel.from_pretrained(folder)[1], params["vision_model"])


@pytest.mark.parametrize(
    ("source", "model_class"),
    [
        *((DEFAULT, kind) for kind in (AltCLIPModel, AltCLIPTextModel, AltCLIPVisionModel)),
        *((TEACHER, kind) for kind in (CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModel)),
    ],
)
def test_dtype_computes_and_param_dtype_stores(source, model_class):
    for dtypes, computed, stored in (
        ({}, "float32", "float32"),  # both files are bfloat16
        ({"dtype": "bfloat16"}, "bfloat16", "float32"),
        ({"param_dtype": "bfloat16"}, "float32", "bfloat16"),
        ({"dtype": "float16", "param_dtype": "bfloat16"}, "float16", "bfloat16"),
    ):
        model, params = model_class.from_pretrained(source, **dtypes)
        assert (jnp.dtype(model.dtype), jnp.dtype(model.param_dtype)) == (jnp.dtype(computed), jnp.dtype(stored))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(stored)}
        assert jax.tree.map(lambda leaf: leaf.dtype, params) == jax.tree.map(
            lambda leaf: leaf.dtype, model.param_shapes()
        )


@pytest.mark.parametrize("form", ["safetensors", "orbax", "int8", "int4"])
def test_dtype_leaves_what_is_stored_alone_in_every_form(form, tmp_path):
    model, params = AltCLIPModel.from_pretrained(DEFAULT, quantize=form if form.startswith("int") else None)
    (save_orbax if form == "orbax" else type(model).save_pretrained)(model, tmp_path, params)
    computed, again = AltCLIPModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert computed.dtype == jnp.bfloat16
    equal(again, params)
    assert {np.dtype(leaf.dtype).name for leaf in flatten(again).values()} == {"float32"}  # few bits: what they give
    _, half = AltCLIPModel.from_pretrained(tmp_path, param_dtype="bfloat16")
    assert {np.dtype(leaf.dtype).name for leaf in flatten(half).values()} == {"bfloat16"}


def test_the_pipeline_computes_in_dtype_and_stores_in_param_dtype():
    for dtypes, words in (
        ({"dtype": "bfloat16"}, "stored float32, computed bfloat16"),
        ({"param_dtype": "bfloat16"}, "stored bfloat16, computed float32"),
    ):
        assert words in repr(AltCLIP.from_pretrained(**dtypes))


def test_what_is_saved_has_the_dtype_that_is_asked_for(tmp_path):
    model, params = AltCLIPModel.from_pretrained(DEFAULT, dtype="bfloat16")
    model.save_pretrained(tmp_path, params, dtype="float16")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    assert {array.dtype.name for array in load_file(tmp_path / "model.safetensors").values()} == {"float16"}
    with pytest.raises(ValueError, match="'float32', 'bfloat16' or 'float16'"):
        AltCLIPModel.from_pretrained(DEFAULT, dtype="int8")


def test_shards_and_orbax_read_back_equal(tmp_path):
    model, params = AltCLIPModel.from_pretrained(DEFAULT)
    model.save_pretrained(tmp_path / "shards", params, max_shard_bytes=1_000_000)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 5
    equal(AltCLIPModel.from_pretrained(tmp_path / "shards")[1], params)
    save_orbax(model, tmp_path / "orbax", params)
    equal(AltCLIPModel.from_pretrained(tmp_path / "orbax")[1], params)


@pytest.mark.parametrize("form", ["safetensors", "orbax"])
def test_parameters_come_onto_the_default_device(tmp_path, form):
    model, params = AltCLIPModel.from_pretrained(DEFAULT)
    model.save_pretrained(tmp_path, params) if form == "safetensors" else save_orbax(model, tmp_path, params)
    third = jax.devices()[3]
    with jax.default_device(third):
        _, found = AltCLIPModel.from_pretrained(tmp_path)
    assert {device for leaf in jax.tree.leaves(found) for device in leaf.devices()} == {third}
    equal(found, params)


@pytest.fixture
def traces(monkeypatch):
    """Lists the models that are traced."""
    seen, init = [], AltCLIPModel.init

    def counted(self, *args, **kwargs):
        seen.append(self)
        return init(self, *args, **kwargs)

    monkeypatch.setattr(PretrainedModel, "init", counted, raising=False)
    return seen


def test_a_model_is_traced_once_for_its_shapes(tmp_path, tensors, write, traces):
    config = json.loads((DEFAULT / "config.json").read_text())
    source = write(tensors, config | {"initializer_factor": 0.75})  # of no other test
    model, params = AltCLIPModel.from_pretrained(source)
    assert len(traces) == 1
    save_orbax(model, tmp_path / "orbax", params)
    convert(source, tmp_path / "new", dtype="float32")
    AltCLIPModel.from_pretrained(tmp_path / "new")
    assert len(traces) == 1
    shapes = model.param_shapes()
    shapes["text_model"].clear()  # what one caller does with its tree is not seen by the next
    assert len(jax.tree.leaves(model.param_shapes())) == len(jax.tree.leaves(params))
    other = AltCLIPModel(model.config.replace(projection_dim=3), param_dtype=jnp.bfloat16)
    assert other.param_shapes()["text_projection"]["kernel"].shape[1] == 3
    assert other.param_shapes()["text_projection"]["kernel"].dtype == jnp.bfloat16
    assert len(traces) == 2


@pytest.mark.parametrize("model_class", [AltCLIPModel, AltCLIPVisionModel, CLIPModel, CLIPVisionModel])
def test_large_pictures_are_not_made_to_learn_the_shapes(model_class):
    """One such picture has 43 GB, and the scores of its patches more than any machine."""
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**tower, "image_size": 60_000, "patch_size": 100}
    kind = model_class.config_class
    config = kind(**vision) if "Vision" in model_class.__name__ else kind(text_config=tower, vision_config=vision)
    model = model_class(config)
    shapes = {path: leaf.shape for path, leaf in flatten(model.param_shapes()).items()}
    made = flatten(model.init_params(jax.random.key(0), lambda path: "position_embedding" in path))
    assert all(leaf.shape == shapes[path] for path, leaf in made.items())
    assert (600**2 + 1, 8) in {leaf.shape for leaf in made.values()}


def test_parameters_of_another_model_are_not_saved(tmp_path):
    model, params = AltCLIPModel.from_pretrained(DEFAULT)
    wrong = {**params, "logit_scale": jnp.zeros(2), "more": jnp.zeros(1)}
    del wrong["text_projection"]
    with pytest.raises(ValueError, match="missing: text_projection/kernel") as caught:
        model.save_pretrained(tmp_path, wrong)
    assert "unexpected: more" in str(caught.value)
    assert "wrong shape: logit_scale is (2,), expected ()" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_reading_a_gigabyte_takes_little_more_than_a_gigabyte(tmp_path):
    program = """
import sys
import numpy as np
from altclip_jax import AltCLIPConfig, AltCLIPModel
from altclip_jax.weights.convert import tensor_sources
from altclip_jax.weights.families import ALTCLIP
from altclip_jax.weights.safetensors_file import TensorSource, write_safetensors
config = AltCLIPConfig(
    text_config={"hidden_size": 1024, "num_hidden_layers": 1, "project_dim": 64},
    vision_config={"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1},
    projection_dim=64,
)
if sys.argv[1] == "write":
    model = AltCLIPModel(config)
    shapes = model.param_shapes()
    def rising(shape):
        return lambda: np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    sources = tensor_sources(shapes, shapes, table=ALTCLIP)
    sources = [source._replace(load=rising(source.shape)) for source in sources]
    write_safetensors(sys.argv[2] + "/model.safetensors", sources)
    config.save(sys.argv[2])
else:
    def peak():
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    AltCLIPModel(config).param_shapes()
    before = peak()
    model, params = AltCLIPModel.from_pretrained(sys.argv[2])
    import jax
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(size, (peak() - before) * 1024)
"""
    subprocess.run([sys.executable, "-c", program, "write", str(tmp_path)], check=True)
    done = subprocess.run([sys.executable, "-c", program, "read", str(tmp_path)], check=True, capture_output=True)
    size, growth = map(int, done.stdout.split())
    assert size >= 1_000_000_000
    assert growth <= 1.2 * size + 100_000_000, (size, growth)
