"""Fresh parameters straight onto a mesh: no device computes a whole matrix, and the values are those of one device."""

import math
import re

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIPConfig, AltCLIPModel, AltCLIPTextModel, parallel
from altclip_jax.weights.convert import flatten

TOWER = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
MODEL = AltCLIPModel(
    AltCLIPConfig(
        text_config={**TOWER, "vocab_size": 4003},
        vision_config={**TOWER, "image_size": 16, "patch_size": 8},
        projection_dim=48,
    )
)
TEXT = AltCLIPTextModel(MODEL.config.text_config)
KEY = jax.random.key(3)
MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


def of_each_kind(path):
    """Without the parameters that are made and cut as others are, whose compilation takes long."""
    return not re.search(r"(key|value|down|position_embedding|token_type_embedding)/[a-z]+$", path)


@pytest.fixture(scope="module")
def alone():
    """The parameters that one device computes."""
    return TEXT.init_params(KEY, of_each_kind)


@pytest.fixture
def programs(monkeypatch):
    """The compiled programs that were told where their results go."""
    found = []
    jit = jax.jit

    def spying(function, **how):
        made = jit(function, **how)

        def compiled(*arguments):
            found.append(made.lower(*arguments).compile())
            return found[-1](*arguments)

        return compiled if "out_shardings" in how else made

    monkeypatch.setattr(jax, "jit", spying)
    return found


def equal_bits(sharded, whole):
    sharded, whole = flatten(sharded), flatten(whole)
    assert sharded.keys() == whole.keys()
    for path, leaf in sharded.items():
        assert leaf.dtype == whole[path].dtype
        assert leaf.ndim < 2 or len({str(shard.index) for shard in leaf.addressable_shards}) > 1, path
        for shard in leaf.addressable_shards:
            assert np.asarray(shard.data).tobytes() == np.asarray(whole[path])[shard.index].tobytes(), path


@pytest.mark.parametrize("axes", MESHES)
def test_values_are_those_of_one_device_and_no_device_computes_more_than_its_share(axes, alone, programs):
    params = TEXT.init_params(KEY, of_each_kind, mesh=parallel.make_mesh(**axes))
    equal_bits(params, alone)
    (program,) = programs
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", program.as_text())
    most = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert most == max(shard.data.size for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)


def test_some_parts_in_bfloat16_are_those_parts_on_one_device():
    model, mesh = MODEL.clone(param_dtype=np.dtype("bfloat16")), parallel.make_mesh(**MESHES[1])

    def wanted(path):
        return path.endswith(("patch_embedding/kernel", "projection/kernel", "text_model/layer_0/mlp/up/kernel"))

    params = model.init_params(KEY, wanted, mesh=mesh)
    assert set(params) == {"text_model", "vision_model", "text_projection", "visual_projection"}
    equal_bits(params, model.init_params(KEY, wanted))
