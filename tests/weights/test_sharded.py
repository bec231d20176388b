"""A checkpoint straight onto a mesh: every byte read once, no device with a whole matrix, the values of one device."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from altclip_jax import (
    AltCLIPModel,
    AltCLIPTextModel,
    AltCLIPVisionModel,
    CheckpointError,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    parallel,
)
from altclip_jax.assets import default_checkpoint
from altclip_jax.weights.convert import flatten
from altclip_jax.weights.folder import save_orbax
from altclip_jax.weights.stored_file import StoredFile

DEFAULT = default_checkpoint()
MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
TOGETHER = "altclip_jax.weights.convert._TOGETHER_BYTES"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The embedded model in float32: in bfloat16 its pieces lie in runs too short to be read one by one."""
    folder = tmp_path_factory.mktemp("wide")
    model, params = AltCLIPModel.from_pretrained(DEFAULT)
    model.save_pretrained(folder, params, dtype="float32")
    return folder


@pytest.fixture
def reads(monkeypatch):
    """The sizes of everything that is read from files (`bytes`) and of the arrays made of it (`arrays`)."""
    found = {"bytes": [], "arrays": []}
    read_into, read = StoredFile._read_into, StoredFile.read

    def counting_read_into(self, buffer, begin):
        found["bytes"].append(len(buffer))
        read_into(self, buffer, begin)

    def counting_read(self, *arguments):
        array = read(self, *arguments)
        found["arrays"].append(array.nbytes)
        return array

    monkeypatch.setattr(StoredFile, "_read_into", counting_read_into)
    monkeypatch.setattr(StoredFile, "read", counting_read)
    return found


@pytest.fixture
def puts(monkeypatch):
    """The sizes of everything that is put onto a device."""
    sizes = []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, *rest, **how: sizes.append(x.nbytes) or put(x, *rest, **how))
    return sizes


def equal_bits(sharded, whole):
    sharded, whole = flatten(sharded), flatten(whole)
    assert sharded.keys() == whole.keys()
    for path, leaf in sharded.items():
        assert leaf.dtype == whole[path].dtype, path
        for shard in leaf.addressable_shards:
            assert np.asarray(shard.data).tobytes() == np.asarray(whole[path])[shard.index].tobytes(), path


def pieces(leaf):
    return len({str(shard.index) for shard in leaf.addressable_shards})


def largest_shard(params):
    return max(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)


@pytest.mark.parametrize("axes", MESHES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_are_those_of_one_device_bit_for_bit(axes, dtype, monkeypatch):
    mesh = parallel.make_mesh(**axes)
    _, whole = AltCLIPModel.from_pretrained(DEFAULT, param_dtype=dtype)
    _, params = AltCLIPModel.from_pretrained(DEFAULT, param_dtype=dtype, mesh=mesh)
    equal_bits(params, whole)
    jax.tree.map(
        lambda leaf, place: leaf.sharding == place or pytest.fail(leaf), params, parallel.param_shardings(mesh, whole)
    )
    monkeypatch.setattr(TOGETHER, 0)
    equal_bits(AltCLIPModel.from_pretrained(DEFAULT, param_dtype=dtype, mesh=mesh)[1], whole)


@pytest.mark.parametrize("axes", MESHES)
@pytest.mark.parametrize("together", [0, 64 << 20])
def test_every_byte_is_read_once_and_no_device_holds_a_whole_matrix(axes, together, monkeypatch, wide, reads, puts):
    monkeypatch.setattr(TOGETHER, together)
    mesh = parallel.make_mesh(**axes)
    _, params = AltCLIPModel.from_pretrained(wide, mesh=mesh)
    size = (wide / "model.safetensors").stat().st_size
    assert abs(sum(reads["bytes"]) - size) <= 1024  # the first 512 bytes are looked at before they are read
    largest = largest_shard(params)
    # the files' kinds and headers aside, one piece at a time, or all those of a tensor as far as they may be together
    assert max(reads["arrays"]) <= max(largest, together)
    assert max(puts) <= largest
    for path, leaf in flatten(params).items():
        cut = pieces(leaf)
        assert {shard.data.size * cut for shard in leaf.addressable_shards} == {leaf.size}, path
        assert leaf.ndim < 2 or cut >= (8 if axes == {"fsdp": 8} else 2), path


def test_a_process_reads_of_a_file_what_its_devices_keep(monkeypatch, wide, reads):
    """As if four of the eight devices were another process's."""
    mesh = parallel.make_mesh(fsdp=8)
    monkeypatch.setattr(
        jax.sharding.NamedSharding,
        "addressable_devices_indices_map",
        lambda self, shape: dict(list(self.devices_indices_map(shape).items())[2:6]),
    )
    made = []
    monkeypatch.setattr(
        jax, "make_array_from_single_device_arrays", lambda shape, place, arrays, dtype: made.append(arrays)
    )
    AltCLIPModel.from_pretrained(wide, mesh=mesh)
    size = (wide / "model.safetensors").stat().st_size
    assert 0.5 * size < sum(reads["bytes"]) < 0.52 * size  # small vectors and the header are everyone's
    assert {len(arrays) for arrays in made} == {4}


def test_every_class_that_loads_also_loads_onto_a_mesh(tmp_path):
    mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 60, "max_position_embeddings": 8},
        vision_config={**tower, "image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    clip = CLIPModel(config)
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), clip.param_shapes())
    clip.save_pretrained(tmp_path, values)
    cases = [(kind, DEFAULT) for kind in (AltCLIPTextModel, AltCLIPVisionModel)]
    cases += [(kind, tmp_path) for kind in (CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModel)]
    for kind, folder in cases:
        _, whole = kind.from_pretrained(folder)
        _, params = kind.from_pretrained(folder, mesh=mesh)
        equal_bits(params, whole)
        matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]
        assert matrices
        assert all(pieces(leaf) > 1 for leaf in matrices), kind


def test_shards_bin_files_and_orbax_folders_load_onto_a_mesh(tmp_path, write_torch, reads):
    mesh = parallel.make_mesh(fsdp=8)
    model, whole = AltCLIPModel.from_pretrained(DEFAULT)
    model.save_pretrained(tmp_path / "shards", whole, max_shard_bytes=3_000_000)
    (tmp_path / "bin").mkdir()
    write_torch(tmp_path / "bin" / "pytorch_model.bin", load_file(DEFAULT / "model.safetensors"))
    shutil.copy(DEFAULT / "config.json", tmp_path / "bin")
    save_orbax(model, tmp_path / "orbax", whole)
    for form in ("shards", "bin", "orbax"):
        reads["bytes"].clear()
        _, params = AltCLIPModel.from_pretrained(tmp_path / form, mesh=mesh)
        equal_bits(params, whole)
        assert all(pieces(leaf) == 8 for leaf in jax.tree.leaves(params) if leaf.ndim >= 2)
        files = [file for file in (tmp_path / form).iterdir() if file.is_file()]
        # of each file the first 512 bytes are looked at before it is read
        assert sum(reads["bytes"]) <= sum(file.stat().st_size + 512 + 8 for file in files)


def test_every_fault_is_named_before_anything_is_read(tmp_path, reads):
    tensors = load_file(DEFAULT / "model.safetensors")
    del tensors["text_projection.weight"]
    tensors["text_model.pre_LN.bias"] = np.zeros(5, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(DEFAULT / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="2 faults") as caught:
        AltCLIPModel.from_pretrained(tmp_path, mesh=parallel.make_mesh(fsdp=8))
    assert "missing: text_projection.weight (128, 128)" in str(caught.value)
    assert "wrong shape: text_model.pre_LN.bias" in str(caught.value)
    assert not reads["arrays"]


def test_devices_that_keep_the_same_piece_do_not_share_its_memory():
    """A step that takes its parameters away writes into them, on every device."""
    mesh = parallel.make_mesh()
    _, params = AltCLIPModel.from_pretrained(DEFAULT, mesh=mesh)
    _, whole = AltCLIPModel.from_pretrained(DEFAULT)
    added = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(params)
    equal_bits(added, jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(1), whole))
