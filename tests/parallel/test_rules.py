"""The partition rules: every large matrix of a full-size model is cut, and what has no rule is an error."""

import math
import re
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIPConfig, AltCLIPModel, CLIPConfig, CLIPModel, parallel
from altclip_jax.weights.convert import flatten

LARGE = 100_000  # elements
TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 16}
PICTURES = {**TOWER, "image_size": 224, "patch_size": 14}
ALTCLIP = AltCLIPConfig(
    text_config={**TOWER, "vocab_size": 250002, "position_embedding_type": "relative_key"},
    vision_config=PICTURES,
    projection_dim=768,
)
CLIP = CLIPConfig(
    text_config={**TOWER, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    vision_config=PICTURES,
    projection_dim=768,
)


@pytest.fixture(scope="module")
def families():
    """The parameters of an AltCLIP and a CLIP, of two layers each and otherwise in full size, as shapes."""
    return [flatten(AltCLIPModel(ALTCLIP).param_shapes()), flatten(CLIPModel(CLIP).param_shapes())]


def test_every_large_matrix_is_cut_over_all_devices_that_can_cut_it(families):
    for axes, least, tables in (({"fsdp": 8}, 8, 8), ({"data": 2, "fsdp": 2, "tensor": 2}, 4, 2)):
        mesh = parallel.make_mesh(**axes)
        for shapes in families:
            kept = {True: 0, False: 0}
            for path, place in flatten(parallel.param_shardings(mesh, shapes)).items():
                size, shard = math.prod(shapes[path].shape), math.prod(place.shard_shape(shapes[path].shape))
                # what is looked up, and pictures' patches, are not cut along "tensor"
                cut = tables if path.endswith(("embedding", "patch_embedding/kernel")) else least
                assert size < LARGE or shard * cut == size, (axes, path, shapes[path].shape)
                kept[size < LARGE] += shard
            assert kept[True] < 0.01 * kept[False]  # what is whole everywhere is next to nothing


def test_every_parameter_has_one_rule_and_every_rule_a_parameter(families):
    used = set()
    for path in {path for shapes in families for path in shapes}:
        found = [pattern for pattern, _ in parallel.PARTITION_RULES if re.fullmatch(pattern, path)]
        assert len(found) == 1, (path, found)
        used |= set(found)
    assert used == {pattern for pattern, _ in parallel.PARTITION_RULES}


def test_a_parameter_without_a_rule_is_an_error_that_names_it(families):
    leaf = jax.ShapeDtypeStruct((2048, 2048), np.float32)
    paths = [path.rsplit("/", 1)[0] for path in families[0]]
    unknown = [f"{path}/lora" for path in dict.fromkeys(paths)] + ["head/kernel"]
    tree = {**families[0], **dict.fromkeys(unknown, leaf)}
    with pytest.raises(ValueError, match=r"No rule in altclip_jax/parallel\.py") as caught:
        parallel.param_shardings(parallel.make_mesh(fsdp=8), tree)
    assert all(path in str(caught.value) for path in unknown)
    assert "query/kernel" not in str(caught.value)


class Device(NamedTuple):
    process_index: int


def laid_out(data, tensor, each, order=None):
    """A mesh of which no device exists: `each` of a process, in the order of their processes or in another."""
    count = data * tensor
    devices = np.empty(count, object)
    devices[:] = [Device(place // each) for place in (order or range(count))]
    return SimpleNamespace(devices=devices.reshape(data, 1, tensor), shape={"data": data, "fsdp": 1, "tensor": tensor})


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (laid_out(4, 1, each=2), [((0,), range(6)), ((1,), range(6, 12))]),
        (laid_out(2, 2, each=2), [((0,), range(6)), ((1,), range(6, 12))]),
        (laid_out(1, 2, each=1), [((0, 1), range(12))]),
        (laid_out(2, 2, each=1), [((0, 1), range(6)), ((2, 3), range(6, 12))]),
        (laid_out(2, 2, each=2, order=(0, 2, 1, 3)), [((0, 1), range(12))]),
        (laid_out(4, 1, each=2, order=(0, 2, 1, 3)), [((0,), [0, 1, 2, 6, 7, 8]), ((1,), [3, 4, 5, 9, 10, 11])]),
        (laid_out(3, 2, each=3), [((0,), range(4)), ((0, 1), range(4, 8)), ((1,), range(8, 12))]),
    ],
    ids=["data", "tensor within", "tensor across", "both", "turned", "by turns", "one block in common"],
)
def test_rows_are_shared_by_who_holds_them(mesh, expected):
    shares = parallel.row_shares(mesh, 12)
    assert [(share.holders, share.rows.tolist()) for share in shares] == [(who, list(rows)) for who, rows in expected]


def test_the_rows_of_one_process_are_one_share():
    for axes in ({"data": 8}, {"fsdp": 2, "tensor": 4}, {"tensor": 8}):
        (share,) = parallel.row_shares(parallel.make_mesh(**axes), 16)
        assert share.holders == (0,)
        np.testing.assert_array_equal(share.rows, parallel.local_rows(parallel.make_mesh(**axes), 16))
    with pytest.raises(ValueError, match="12 rows cannot be dealt evenly over data x fsdp = 8 devices"):
        parallel.row_shares(parallel.make_mesh(data=8), 12)
