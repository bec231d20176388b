"""Files are written whole or not at all, one tensor at a time, as the safetensors library writes them."""

import json
import os
import resource
import stat
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from altclip_jax.files.checkpoint_folder import model_files
from altclip_jax.files.whole import Change
from altclip_jax.weights.readers import CheckpointError, open_checkpoint
from altclip_jax.weights.safetensors_file import TensorSource, add_weights, write_safetensors

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(2.5, np.float32),
    'quoted "重み"': np.ones(3, ml_dtypes.bfloat16),
    "c": np.zeros((0, 3), np.float32),
    "d": np.arange(3),
    "e": np.array([True, False]),
    "f": np.ones(2, ml_dtypes.float8_e4m3fn),
}


def save_sharded(folder, tensors, max_shard_bytes=10**9):
    with Change(folder) as change:
        add_weights(change, tensors, max_shard_bytes)
        written = sorted(file.name for file in change.staged.iterdir())
        change.install(model_files(folder))
    return [folder / name for name in written]


def sources(arrays: dict[str, np.ndarray]) -> list[TensorSource]:
    return [TensorSource(name, array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items()]


def numbered(value: int, names: str = "abcdef") -> dict[str, np.ndarray]:
    """Tensors of 400 bytes, all filled with one value."""
    return {name: np.full(100, value, np.float32) for name in names}


def values(path: Path) -> set[float]:
    """The values in a checkpoint, which tell which save it is from."""
    with open_checkpoint(path) as checkpoint:
        return {float(value) for name in checkpoint.infos for value in checkpoint.read(name)}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_file_is_byte_for_byte_what_the_safetensors_library_writes(tmp_path):
    write_safetensors(tmp_path / "ours.safetensors", sources(ARRAYS))
    safetensors.numpy.save_file(ARRAYS, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_written_tensors_are_read_back_equal(tmp_path, read_all):
    views = {"t": np.arange(12, dtype=np.float32).reshape(3, 4).T, "v": np.arange(12, dtype=np.float32)[::2]}
    write_safetensors(tmp_path / "model.safetensors", sources(ARRAYS | views), {"format": "pt", "key": "值"})
    found = read_all(tmp_path)
    for name, array in (ARRAYS | views).items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert found[name].tobytes() == array.tobytes()
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt", "key": "值"}


def test_shards_have_the_names_and_the_index_of_transformers(tmp_path):
    files = save_sharded(tmp_path / "new" / "folder", sources(numbered(1)), max_shard_bytes=1000)
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert [file.name for file in files] == [*shards, "model.safetensors.index.json"]
    assert names(tmp_path / "new" / "folder") == sorted(file.name for file in files)
    index = json.loads(files[-1].read_text())
    assert index == {
        "metadata": {"total_size": 2400},
        "weight_map": {name: shards[number // 2] for number, name in enumerate("abcdef")},
    }
    assert values(tmp_path / "new" / "folder") == {1}
    assert safetensors.numpy.load_file(files[1]).keys() == {"c", "d"}


@pytest.mark.parametrize(("limit", "count"), [(2400, 1), (2399, 2), (400, 6), (1, 6)])
def test_shards_are_filled_up_to_the_limit(limit, count, tmp_path):
    files = save_sharded(tmp_path, sources(numbered(1)), max_shard_bytes=limit)
    assert sum(file.suffix == ".safetensors" for file in files) == count
    assert values(tmp_path) == {1}


def test_limit_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="max_shard_bytes must be positive, got 0"):
        save_sharded(tmp_path, sources(ARRAYS), max_shard_bytes=0)


def test_each_array_is_let_go_before_the_next_is_made(tmp_path):
    alive: list[weakref.ref] = []

    def load() -> np.ndarray:
        assert all(reference() is None for reference in alive)
        array = np.ones(1000, np.float32)
        alive.append(weakref.ref(array))
        return array

    write_safetensors(tmp_path / "m.safetensors", [TensorSource(n, (1000,), np.dtype("f4"), load) for n in "abc"])
    assert len(alive) == 3


def test_files_have_the_rights_that_the_umask_gives(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", sources(ARRAYS))
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "other").stat().st_mode
    )


@pytest.mark.parametrize(("before", "after"), [(1000, 3000), (3000, 1000), (1000, 500), (500, 1000), (1000, 1000)])
def test_weights_of_an_earlier_save_are_removed_and_nothing_else(before, after, tmp_path):
    others = ["model-best.safetensors", "pytorch_model.bin.old", "tokenizer.json"]
    for name in others:
        (tmp_path / name).touch()
    save_sharded(tmp_path, sources(numbered(1)), before)
    files = save_sharded(tmp_path, sources(numbered(2)), after)
    assert names(tmp_path) == sorted([*others, *(file.name for file in files)])
    assert values(tmp_path) == {2}


def test_faults_of_the_tensors_are_all_told_before_anything_is_written(tmp_path):
    faulty = [
        *sources({"twice": np.ones(2), "__metadata__": np.ones(2), "complex": np.ones(2, np.complex128)}),
        *sources({"twice": np.ones(2), "text": np.array(["a"]), "big": np.ones(2, ">f4")}),
    ]
    with pytest.raises(CheckpointError) as raised:
        save_sharded(tmp_path / "new", faulty)
    assert len(raised.value.faults) == 5
    for name in ("twice", "__metadata__", "complex", "text", "big"):
        assert f"'{name}'" in str(raised.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("array", [np.ones((3, 2), np.float32), np.ones((2, 3), np.float16), np.ones(6, np.float32)])
def test_array_unlike_its_declaration_is_refused(array, tmp_path):
    wrong = TensorSource("w", (2, 3), np.dtype(np.float32), lambda: array)
    with pytest.raises(CheckpointError, match=r"'w' was declared as float32\[2, 3\], but its source gave float"):
        write_safetensors(tmp_path / "m.safetensors", [wrong])
    assert names(tmp_path) == []


def failing_on(fail_at: str, error: BaseException, arrays: dict[str, np.ndarray]) -> list[TensorSource]:
    def load() -> np.ndarray:
        raise error

    return [s._replace(load=load) if s.name == fail_at else s for s in sources(arrays)]


@pytest.mark.parametrize("before", [1000, 3000])
@pytest.mark.parametrize("after", [1000, 3000])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the source cannot be read"), MemoryError()])
def test_interrupted_save_leaves_the_earlier_checkpoint_and_no_other_file(before, after, error, tmp_path):
    save_sharded(tmp_path, sources(numbered(1)), before)
    earlier = names(tmp_path)
    with pytest.raises(type(error)) as raised:
        save_sharded(tmp_path, failing_on("f", error, numbered(2)), after)
    assert raised.value is error
    assert names(tmp_path) == earlier
    assert values(tmp_path) == {1}


def test_full_disk_is_a_sentence_and_leaves_the_earlier_checkpoint(tmp_path):
    save_sharded(tmp_path, sources(numbered(1)), 1000)
    earlier = names(tmp_path)
    large = {"a": np.full(1_000_000, 2, np.float32)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors could not be written: File too large"):
            save_sharded(tmp_path, sources(large))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == earlier
    assert values(tmp_path) == {1}


@pytest.mark.parametrize(
    "write", [save_sharded, lambda path, tensors: write_safetensors(path / "m.safetensors", tensors)]
)
def test_folder_that_cannot_be_written_is_a_sentence(write, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file.* could not be written: (File exists|Not a directory)"):
        write(tmp_path / "file", sources(ARRAYS))


def test_content_is_on_disk_before_the_file_gets_its_name(tmp_path, monkeypatch):
    save_sharded(tmp_path, sources(numbered(1)), 1500)
    events: list[tuple[str, int] | str] = []  # (what is synced, its size then), or what gets its name
    fsync, replace = os.fsync, Path.replace

    def recording_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(path.name if path.is_dir() else (path.name, os.fstat(descriptor).st_size))
        fsync(descriptor)

    def recording_replace(self: Path, target: Path) -> Path:
        events.append(str(target.relative_to(tmp_path)))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    files = save_sharded(tmp_path, sources(numbered(2)), 1500)
    names, place = [file.name for file in files], ".altclip_jax.save"
    assert sorted(events[:3]) == [(file.name, file.stat().st_size) for file in files]
    assert events[3][0] == "journal.json.tmp"
    assert events[4:6] == [f"{place}/journal.json", place]
    assert sorted(events[6:9]) == [f"{place}/old/{name}" for name in names]
    assert sorted(events[9:11]) == names[:2]
    assert events[11:] == [tmp_path.name, names[2], tmp_path.name, tmp_path.name, place]
