"""Quantized checkpoints: made while a float one is read, written, read again, and refused where they are not sound."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from altclip_jax import (
    AltCLIP,
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPTextModel,
    AltCLIPVisionModel,
    CheckpointError,
    CLIPConfig,
    CLIPModel,
    parallel,
    student,
)
from altclip_jax.assets import PICTURES, default_checkpoint
from altclip_jax.quantization.rules import quantization_rules
from altclip_jax.training.config import RunConfig
from altclip_jax.training.loop import train
from altclip_jax.weights.convert import flatten
from altclip_jax.weights.folder import save_orbax

ROOT = Path(__file__).parents[2]
DEFAULT = default_checkpoint()
QUERY = "text_model.roberta.encoder.layer.0.attention.self.query.weight"
SCHEMES = ["int8", "int4"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A float checkpoint."""
    folder = tmp_path_factory.mktemp("float")
    tower = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AltCLIPConfig(
        text_config={**tower, "vocab_size": 500, "max_position_embeddings": 20, "project_dim": 128},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=128,
    )
    model = AltCLIPModel(config)
    model.save_pretrained(folder, model.init_params(jax.random.key(0)))
    return folder


@pytest.fixture(scope="module", params=SCHEMES)
def loaded(request, source):
    return AltCLIPModel.from_pretrained(source, quantize=request.param)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("int4")
    model, params = AltCLIPModel.from_pretrained(source, quantize="int4")
    model.save_pretrained(folder, params)
    return folder


@pytest.fixture
def damaged(saved, tmp_path):
    """Writes the checkpoint with other tensors and other values in config.json's quantization_config."""

    def write(change=lambda tensors: None, **said):
        shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
        tensors = load_file(saved / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        config = json.loads((saved / "config.json").read_text())
        config["quantization_config"] |= said
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_quantized_while_it_is_read_is_quantized_afterwards(loaded, source):
    model, params = loaded
    _, floats = AltCLIPModel.from_pretrained(source)
    scheme = "int4" if any(getattr(leaf, "scheme", "") == "int4" for leaf in flatten(params).values()) else "int8"
    same(params, model.quantize_params(floats, scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_codes_are_the_same_in_every_dtype(scheme, dtype, source):
    whole = flatten(AltCLIPModel.from_pretrained(source, quantize=scheme)[1])
    for path, leaf in flatten(AltCLIPModel.from_pretrained(source, quantize=scheme, param_dtype=dtype)[1]).items():
        assert np.dtype(leaf.dtype).name == dtype
        if hasattr(leaf, "codes"):
            np.testing.assert_array_equal(leaf.codes, whole[path].codes)
            np.testing.assert_array_equal(leaf.scales, whole[path].scales)


def test_written_and_read_again_it_is_the_same_in_every_form(loaded, tmp_path):
    model, params = loaded
    model.save_pretrained(tmp_path / "safetensors", params)
    model.save_pretrained(tmp_path / "shards", params, max_shard_bytes=150_000)
    save_orbax(model, tmp_path / "orbax", params)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for form in ("safetensors", "shards", "orbax"):
        again, read = AltCLIPModel.from_pretrained(tmp_path / form)
        same(read, params)
        assert again.config.extra["quantization_config"]["version"] == 1


def test_the_file_is_laid_out_as_documented(saved, source):
    tensors = load_file(saved / "model.safetensors")
    assert QUERY not in tensors
    codes, scales, zeros = (tensors[f"{QUERY}.{part}"] for part in ("codes", "scales", "zero_points"))
    assert (codes.dtype, codes.shape, scales.dtype, scales.shape) == (np.uint8, (128, 64), ml_dtypes.bfloat16, (128, 1))
    table = "text_model.roberta.embeddings.word_embeddings.weight"
    assert tensors[f"{table}.codes"].dtype == np.int8
    assert tensors[f"{table}.scales"].shape == (len(tensors[f"{table}.codes"]), 1)
    back = np.empty((128, 128), np.float32)
    back[:, 0::2], back[:, 1::2] = codes & 15, codes >> 4
    back = (back - 8) * np.float32(scales) + np.float32(zeros)
    _, params = AltCLIPModel.from_pretrained(saved)
    leaf = params["text_model"]["layer_0"]["attention"]["query"]["kernel"]
    np.testing.assert_allclose(np.asarray(leaf).T, back, atol=1e-6)
    original = load_file(source / "model.safetensors")[QUERY]
    assert np.linalg.norm(back - original) < 0.1 * np.linalg.norm(original)


@pytest.mark.parametrize(("kind", "part"), [(AltCLIPTextModel, "text_model"), (AltCLIPVisionModel, "vision_model")])
def test_towers_out_of_a_full_checkpoint_and_alone(kind, part, saved, tmp_path, source):
    _, full = AltCLIPModel.from_pretrained(saved)
    tower, params = kind.from_pretrained(saved)
    same(params, full[part])
    tower.save_pretrained(tmp_path, params)
    same(kind.from_pretrained(tmp_path)[1], full[part])
    same(kind.from_pretrained(source, quantize="int4")[1], full[part])


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_onto_a_mesh_it_is_read_in_pieces_with_the_same_values(axes, saved, tmp_path, source):
    mesh = parallel.make_mesh(**axes)
    model, whole = AltCLIPModel.from_pretrained(saved)
    save_orbax(model, tmp_path / "orbax", whole)
    for place, how in ((saved, {}), (tmp_path / "orbax", {}), (source, {"quantize": "int4"})):
        _, params = AltCLIPModel.from_pretrained(place, mesh=mesh, **how)
        same(params, whole)
        places = parallel.param_shardings(mesh, params)
        jax.tree.map(lambda leaf, place: leaf.sharding == place or pytest.fail(leaf), params, places)


def test_saved_float_again_it_says_nothing_of_bits(saved, tmp_path):
    model, params = AltCLIPModel.from_pretrained(saved)
    floats = jax.tree.map(np.asarray, params, is_leaf=lambda leaf: hasattr(leaf, "codes"))
    model.save_pretrained(tmp_path, floats)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    same(AltCLIPModel.from_pretrained(tmp_path)[1], floats)


def _cut(tensors):
    tensors[f"{QUERY}.codes"] = tensors[f"{QUERY}.codes"][:, :60].copy()


def _another_dtype(tensors):
    tensors[f"{QUERY}.codes"] = tensors[f"{QUERY}.codes"].astype(np.float32)


def _without_zero_points(tensors):
    del tensors[f"{QUERY}.zero_points"]


def _groups_that_do_not_divide(tensors):
    for part in ("scales", "zero_points"):
        tensors[f"{QUERY}.{part}"] = np.repeat(tensors[f"{QUERY}.{part}"], 3, axis=1)


def _nan(tensors):
    tensors[f"{QUERY}.scales"][3] = np.nan
    tensors[f"{QUERY}.zero_points"][3] = np.inf


def _float_too(tensors):
    tensors[QUERY] = np.zeros((128, 128), np.float32)


def _quantized_bias(tensors):
    tensors[f"{QUERY[:-6]}bias.codes"] = tensors.pop(f"{QUERY[:-6]}bias").astype(np.int8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_cut, [f"wrong shape: {QUERY}.codes is (128, 60), expected (128, 64)"]),
        (_another_dtype, ["23 int4 tensors", "float32 tensors"]),
        (_without_zero_points, [f"missing: {QUERY}.zero_points (128, 1)"]),
        (_groups_that_do_not_divide, [f"wrong shape: {QUERY}.scales is (128, 3), expected (128, 1)"]),
        (_nan, ["query/kernel are not all positive numbers", "query/kernel are not all finite"]),
        (_float_too, [f"unexpected: {QUERY} (128, 128)"]),
        (_quantized_bias, ["9 int8 tensors"]),
    ],
)
def test_damage_is_named(damaged, change, words):
    with pytest.raises(CheckpointError) as caught:
        AltCLIPModel.from_pretrained(damaged(change))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"version": 2}, "has version 2, and this altclip_jax reads version 1"),
        ({"quant_method": "torchao"}, "has quant_method 'torchao': such weights are not read here"),
        ({"tensors": {"int4": 20, "int8": 8}}, "says that 20 int4 tensors and 8 int8 tensors are quantized"),
        ({"tensors": None}, "says that None are quantized"),
    ],
)
def test_another_description_is_refused(damaged, said, words):
    with pytest.raises(CheckpointError, match=words):
        AltCLIPModel.from_pretrained(damaged(**said))


def test_weights_and_description_of_different_checkpoints_are_refused(saved, tmp_path, source):
    for weights, config in ((saved, source), (source, saved)):
        shutil.copy(weights / "model.safetensors", tmp_path)
        shutil.copy(config / "config.json", tmp_path)
        with pytest.raises(CheckpointError, match="no tensor"):
            AltCLIPModel.from_pretrained(tmp_path)


def test_what_is_quantized_is_not_quantized_again(saved):
    with pytest.raises(ValueError, match="is quantized already"):
        AltCLIPModel.from_pretrained(saved, quantize="int8")


def test_nothing_is_trained_from_what_is_quantized(saved, tmp_path):
    recipe = ROOT / "recipes" / "emoji" / "contrastive.toml"
    with pytest.raises(ValueError, match="is quantized, and training needs float weights"):
        train(RunConfig.read(recipe, [f"model.source={saved}", f"folder={tmp_path / 'run'}"]))
    own = AltCLIPConfig.from_json(DEFAULT)
    vision = {name: getattr(own.vision_config, name) for name in own.vision_config.field_names()}
    wide = {"hidden_size": own.text_config.project_dim, "num_attention_heads": 1}
    config = CLIPConfig(text_config=wide, vision_config=vision, projection_dim=own.projection_dim)
    clip = CLIPModel(config)
    clip.save_pretrained(tmp_path, clip.quantize_params(clip.init_params(jax.random.key(0)), "int8"))
    sources = {"clip": tmp_path, "config": DEFAULT, "tokenizer": DEFAULT, "image_processor": DEFAULT}
    with pytest.raises(ValueError, match="is quantized, and a checkpoint to train from needs float weights"):
        student.start(tmp_path / "student", **sources)


def test_values_that_are_not_finite_are_named(tmp_path, source):
    tensors = load_file(source / "model.safetensors")
    tensors[QUERY][5, 5] = np.inf
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=f"{QUERY} in .* holds values that are not finite"):
        AltCLIPModel.from_pretrained(tmp_path, quantize="int4")


def test_a_group_size_that_does_not_divide_is_named(source):
    with pytest.raises(ValueError, match="groups of 96 do not divide the input axis of text_model/layer_0"):
        AltCLIPModel.from_pretrained(source, quantize=quantization_rules("int4", 96))


def test_an_orbax_checkpoint_is_not_quantized_while_it_is_read(tmp_path, source):
    model, params = AltCLIPModel.from_pretrained(source)
    save_orbax(model, tmp_path, params)
    with pytest.raises(ValueError, match="altclip convert"):
        AltCLIPModel.from_pretrained(tmp_path, quantize="int8")


def test_the_object_says_how_it_is_stored():
    clip = AltCLIP.from_pretrained(quantize="int4", dtype="bfloat16", param_dtype="bfloat16")
    assert "stored bfloat16 and int4 and int8, computed bfloat16" in repr(clip)
    assert clip.classify(PICTURES / "cat_noto.png", ["cat", "dog"]).argmax() == 0


PROGRAM = """
import sys
import jax, numpy as np
from altclip_jax import AltCLIPConfig, AltCLIPModel
from altclip_jax.weights.convert import tensor_sources
from altclip_jax.weights.families import ALTCLIP
from altclip_jax.weights.safetensors_file import write_safetensors
config = AltCLIPConfig(
    text_config={"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 150_000, "project_dim": 64},
    vision_config={"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1},
    projection_dim=64,
)
model = AltCLIPModel(config)
shapes = model.param_shapes()
if sys.argv[1] == "write":
    def rising(shape):
        return lambda: np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape) % 1000
    sources = tensor_sources(shapes, shapes, table=ALTCLIP)
    sources = [source._replace(load=rising(source.shape)) for source in sources]
    write_safetensors(sys.argv[2] + "/model.safetensors", sources)
    config.save(sys.argv[2])
else:
    def peak():
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    jax.device_put(np.zeros(4)).block_until_ready()
    before = peak()
    how = {"param_dtype": "bfloat16"} | ({} if sys.argv[1] == "bfloat16" else {"quantize": sys.argv[1]})
    model, params = AltCLIPModel.from_pretrained(sys.argv[2], **how)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(size, (peak() - before) * 1024)
"""


def test_a_float32_file_becomes_a_smaller_model_without_a_float32_copy(tmp_path):
    subprocess.run([sys.executable, "-c", PROGRAM, "write", str(tmp_path)], check=True)
    largest = 150_000 * 512 * 4
    for how in ("bfloat16", "int8", "int4"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how, str(tmp_path)], check=True, capture_output=True)
        size, growth = map(int, done.stdout.split())
        assert growth <= 1.1 * size + 100_000_000, (how, size, growth)
        assert growth < size + largest / 2, (how, size, growth)
