"""A sharded checkpoint is read as one, and every disagreement between index and shards is told."""

import json

import numpy as np
import pytest
import safetensors.numpy

from altclip_jax.weights.readers import CheckpointError, open_checkpoint

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ARRAYS = {name: np.full((2, 3), ord(name), np.float32) for name in "abcd"}


def write_index(folder, weight_map, name="model.safetensors.index.json"):
    path = folder / name
    path.write_text(weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map}))
    return path


@pytest.fixture
def folder(tmp_path):
    """Two shards, with a and b in the first and c and d in the second."""
    safetensors.numpy.save_file({name: ARRAYS[name] for name in "ab"}, tmp_path / FIRST, {"format": "pt"})
    safetensors.numpy.save_file({name: ARRAYS[name] for name in "cd"}, tmp_path / SECOND, {"format": "pt"})
    write_index(tmp_path, {"c": SECOND, "d": SECOND, "a": FIRST, "b": FIRST})
    return tmp_path


def refusal(folder, weight_map) -> CheckpointError:
    path = write_index(folder, weight_map)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(folder)
    assert str(path) in str(raised.value)
    return raised.value


def test_shards_are_read_as_one_checkpoint(folder, read_all):
    found = read_all(folder)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    with open_checkpoint(folder / "model.safetensors.index.json") as checkpoint:
        assert checkpoint.files == (folder / FIRST, folder / SECOND)
        assert checkpoint.infos["c"].file == folder / SECOND
        assert checkpoint.metadata == {"format": "pt"}


def test_shards_by_torch_are_read_as_one_checkpoint(tmp_path, write_torch, read_all):
    write_torch(tmp_path / "pytorch_model-00001-of-00002.bin", {"a": ARRAYS["a"]})
    write_torch(tmp_path / "pytorch_model-00002-of-00002.bin", {"b": ARRAYS["b"]})
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    write_index(tmp_path, weight_map, "pytorch_model.bin.index.json")
    found = read_all(tmp_path)
    for name in "ab":
        np.testing.assert_array_equal(found[name], ARRAYS[name], strict=True)


def test_links_to_shards_are_followed(folder, tmp_path, read_all):
    (tmp_path / "blobs").mkdir()
    (folder / FIRST).rename(tmp_path / "blobs" / "0123")
    (folder / FIRST).symlink_to(tmp_path / "blobs" / "0123")
    assert read_all(folder).keys() == ARRAYS.keys()


def test_every_absent_or_damaged_shard_is_named(folder):
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1])
    weight_map = {
        "a": FIRST,
        "b": FIRST,
        "c": SECOND,
        "d": SECOND,
        "e": "lost-1.safetensors",
        "f": "lost-1.safetensors",
    }
    unnameable = "a" * 300 + ".safetensors"
    error = refusal(folder, weight_map | {"g": "lost-2.safetensors", "h": unnameable})
    assert len(error.faults) == 4
    for part in [
        "the shard lost-1.safetensors, which should hold 2 tensors, is missing",
        "the shard lost-2.safetensors, which should hold 1 tensors, is missing",
        f"{folder / SECOND}: 'd' ends at byte",
        "File name too long",
    ]:
        assert part in str(error)


def test_every_disagreement_about_a_tensor_is_told(folder):
    third = "model-3.safetensors"
    safetensors.numpy.save_file({"a": ARRAYS["a"], "y": ARRAYS["b"]}, folder / third)
    weight_map = {"a": FIRST, "b": SECOND, "c": SECOND, "d": SECOND, "x": FIRST, "y": third}
    error = refusal(folder, weight_map)
    assert set(error.faults) == {
        f"'a' is in more than one shard: {FIRST}, {third}",
        f"'b' should be in {SECOND}, found in {FIRST}",
        f"'x' should be in {FIRST}, which lacks it",
    }
    error = refusal(folder, {"b": FIRST, "y": third})
    assert set(error.faults) == {f"'a' is in {FIRST}, {third} but not in the index"}


@pytest.mark.parametrize(
    "shard",
    [
        *(
            "../outside.safetensors",
            "/etc/outside.safetensors",
            "sub/inside.safetensors",
            "./inside.safetensors",
        ),
        *(
            "..\\outside.safetensors",
            "C:\\outside.safetensors",
            "C:outside.safetensors",
            "sub\\x.safetensors",
        ),
        *("", ".", "..", ".safetensors/", "null\0.safetensors", "line\n.safetensors", "\ud800.safetensors"),
        *("config.json", "model.bin"),
    ],
)
def test_shards_outside_the_folder_are_never_opened(shard, folder):
    safetensors.numpy.save_file({"c": ARRAYS["c"]}, folder.parent / "outside.safetensors")
    (folder / "sub").mkdir()
    for inside in (folder / "sub" / "inside.safetensors", folder / "inside.safetensors"):
        safetensors.numpy.save_file({"c": ARRAYS["c"]}, inside)
    error = refusal(folder, {"a": FIRST, "b": FIRST, "c": shard})
    assert error.faults == (f"'c' should be in a file *.safetensors beside the index, found {shard!r}",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object but a list"),
        ("{}", "should have a weight_map"),
        ('{"weight_map": []}', "should have a weight_map"),
        ('{"weight_map": {}}', "should have a weight_map"),
        ('{"weight_map": {"a": 3, "b": null}}', "2 faults\n  - 'a' should be in a file, found a int"),
        (f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}', "'a' stands twice"),
        ("[" * 100_000, "is not JSON"),
        ("\ufeff{}", "is not JSON"),
        ("version https://git-lfs.github.com/spec/v1\n", "is not JSON"),
    ],
)
def test_index_that_is_no_map_is_refused(content, message, folder):
    assert message in str(refusal(folder, content))


def test_giant_index_is_refused_unread(folder):
    with (folder / "model.safetensors.index.json").open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(CheckpointError, match="has 2147483648 bytes; at most 8388608 are read"):
        open_checkpoint(folder)
