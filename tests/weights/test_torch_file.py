"""What torch.save writes is read without torch, element for element."""

import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from altclip_jax.weights.readers import CheckpointError, open_checkpoint


def ramp(*shape: int, dtype=np.float32) -> np.ndarray:
    """The values with which the sample files were filled: -2, -1, ... 4, -2, ..."""
    return (np.arange(np.prod(shape, dtype=int)) % 7 - 2).reshape(shape).astype(dtype)


def expected_state() -> dict[str, np.ndarray]:
    base = ramp(6, 5, 4)
    state = {
        "dense.weight": ramp(3, 4),
        "dense.bias": ramp(3),
        "tied.weight": ramp(3, 4),
        "norm.weight": np.ones(3, np.float32),
        "norm.bias": np.zeros(3, np.float32),
        "norm.running_mean": np.zeros(3, np.float32),
        "norm.running_var": ramp(3),
        "norm.num_batches_tracked": np.array(0, np.int64),
        "view.transposed": base.transpose(2, 0, 1),
        "view.rows": base[2:4],
        "view.strided": base[::2, 1::3, ::2],
        "view.repeated": np.broadcast_to(ramp(3), (2, 3)),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    for name in ("float64", "float16", "int64", "int32", "int16", "int8"):
        state[f"dtype.{name}"] = ramp(2, 5, dtype=name)
    state["dtype.bfloat16"] = ramp(2, 5, dtype=ml_dtypes.bfloat16)
    state["dtype.uint8"] = abs(ramp(2, 5)).astype(np.uint8)
    state["dtype.bool"] = ramp(2, 5).astype(bool)
    return state


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


def test_every_dtype_and_view_that_torch_saved_is_read_equal(checkpoint_files, read_all):
    assert_same(read_all(checkpoint_files / "state.bin"), expected_state())


def test_tied_tensors_are_read_as_separate_arrays(checkpoint_files, read_all):
    arrays = read_all(checkpoint_files / "state.bin")
    assert not np.shares_memory(arrays["dense.weight"], arrays["tied.weight"])


def test_state_dict_inside_a_training_checkpoint_of_protocol_5_is_unwrapped(checkpoint_files, read_all):
    found = read_all(checkpoint_files / "wrapped_protocol_5.bin")
    assert_same(found, {"w": ramp(2, 3), "b": ramp(3)})


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "module", "model"])
def test_known_wrappers_are_unwrapped(wrapper, tmp_path, op, write_archive, read_all):
    tensors = op.entries({"w": op.tensor(op.storage("Float", "0", 3), 0, [3], [1])})
    pickled = op.pickle(op.entries({"epoch": op.number(3), wrapper: tensors}))
    path = write_archive(tmp_path / "model.pt", pickled, {"0": ramp(3).tobytes()})
    assert_same(read_all(path), {"w": ramp(3)})


def test_two_wrappers_at_once_are_refused_by_name(tmp_path, op, write_archive):
    tensors = op.entries({"w": op.tensor(op.storage("Float", "0", 3), 0, [3], [1])})
    pickled = op.pickle(op.entries({"model": tensors, "state_dict": tensors}))
    path = write_archive(tmp_path / "model.pt", pickled, {"0": ramp(3).tobytes()})
    with pytest.raises(CheckpointError, match=r"several: 'state_dict', 'model'"):
        open_checkpoint(path)


def test_slices_of_transposed_tensors_equal_slices_of_the_array(checkpoint_files):
    whole = expected_state()["view.transposed"]
    with open_checkpoint(checkpoint_files / "state.bin") as checkpoint:
        for index in [
            (slice(1, 3),),
            (slice(None), slice(2, 5)),
            (slice(0, 1), slice(5, 6), slice(1, 4)),
            (),
        ]:
            found = checkpoint.read("view.transposed", index)
            np.testing.assert_array_equal(found, whole[index], strict=True)
            assert found.flags.c_contiguous


def test_blocks_of_a_large_transposed_tensor_are_put_together_right(tmp_path, op, write_archive, read_all, monkeypatch):
    monkeypatch.setattr("altclip_jax.weights.stored_file._SCRATCH_BYTES", 100)
    base = np.arange(3 * 7 * 11, dtype=np.float32).reshape(3, 7, 11)
    storage = op.storage("Float", "0", base.size)
    views = {order: base.transpose(order) for order in [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2), (2, 0, 1)]}
    items = {
        str(order): op.tensor(storage, 0, view.shape, [stride // 4 for stride in view.strides])
        for order, view in views.items()
    }
    path = write_archive(tmp_path / "model.bin", op.pickle(op.entries(items)), {"0": base.tobytes()})
    assert_same(read_all(path), {str(order): view for order, view in views.items()})


@pytest.mark.parametrize("step", [1, 2])
def test_strides_of_axes_with_one_element_do_not_matter(step, tmp_path, op, write_archive, read_all):
    tensor = op.tensor(op.storage("Float", "0", 6), 0, [1, 3, 1], [2**62, step, 2**62])
    path = write_archive(tmp_path / "model.bin", op.pickle(op.entries({"w": tensor})), {"0": ramp(6).tobytes()})
    assert_same(read_all(path), {"w": ramp(6)[: 3 * step : step].reshape(1, 3, 1)})


def test_transposed_tensors_take_little_more_memory_than_the_result(tmp_path, op, write_archive, monkeypatch):
    monkeypatch.setattr("altclip_jax.weights.stored_file._SCRATCH_BYTES", 10_000)
    tensor = op.tensor(op.storage("Float", "0", 1_000_000), 0, [1000, 1000], [1, 1000])
    path = write_archive(tmp_path / "m.bin", op.pickle(op.entries({"w": tensor})), {"0": bytes(4_000_000)})
    with open_checkpoint(path) as checkpoint:
        tracemalloc.start()
        try:
            checkpoint.read("w")
            assert tracemalloc.get_traced_memory()[1] < 4_100_000
        finally:
            tracemalloc.stop()


def test_storage_may_be_longer_than_its_tensors(tmp_path, op, write_archive, read_all):
    tensor = op.tensor(op.storage("Float", "0", 3), 1, [2], [1])
    path = write_archive(tmp_path / "model.bin", op.pickle(op.entries({"w": tensor})), {"0": ramp(5).tobytes()})
    assert_same(read_all(path), {"w": ramp(3)[1:]})


def test_every_tensor_at_fault_is_named_with_expected_and_found(tmp_path, op, write_archive):
    float32 = op.storage("Float", "0", 6)
    items = {
        "good": op.tensor(float32, 0, [2, 3], [3, 1]),
        "beyond": op.tensor(float32, 1, [2, 3], [3, 1]),
        "far": op.tensor(float32, 0, [2, 2], [2**70, 1]),
        "short": op.tensor(op.storage("Double", "0", 6), 0, [6], [1]),
        "absent": op.tensor(op.storage("Float", "7", 6), 0, [6], [1]),
        "bits": op.tensor(op.number(3), 0, [6], [1]),
        "negative": op.tensor(float32, 0, [2, -3], [3, 1]),
        "flat": op.tensor(float32, 0, [2, 3], [1]),
        "backward": op.tensor(float32, 5, [6], [-1]),
        "before": op.tensor(float32, -1, [6], [1]),
        "long before": op.tensor(float32, -(2**40), [6], [1]),
        "terabytes": op.tensor(float32, 0, [2**20, 2**20], [0, 0]),
        "beyond memory": op.tensor(float32, 0, [2**40, 2**40], [0, 0]),
        "empty beyond memory": op.tensor(float32, 0, [0, 2**70], [0, 0]),
        "epoch": op.number(3),
    }
    path = write_archive(tmp_path / "model.bin", op.pickle(op.entries(items)), {"0": ramp(6).tobytes()})
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    assert len(raised.value.faults) == len(items) - 1
    message = str(raised.value)
    assert "'good'" not in message
    for part in [
        str(path),
        "'beyond': shape (2, 3), strides (3, 1) reach element 6 of a storage that has 6",
        "'short': its storage data/0, 6 elements of float64, should have 48 bytes, found 24",
        "'absent': its storage, member data/7 of the archive, is missing",
        "'terabytes': shape (1048576, 1048576) repeats its elements to 4398046511104 bytes",
        "'epoch': a int; a tensor was expected",
        "'before': its offset is not a whole number",
        "'long before': its offset is not a whole number",
    ]:
        assert part in message
    for name in items.keys() - {"good"}:
        assert f"'{name}'" in message


def test_names_of_tensors_must_be_text_and_stand_once(tmp_path, op, write_archive):
    tensor = op.tensor(op.storage("Float", "0", 1), 0, [1], [1])
    twice = op.pickle(b"}(" + (op.text("w") + tensor) * 2 + b"u")
    with pytest.raises(CheckpointError, match="'w' stands twice"):
        open_checkpoint(write_archive(tmp_path / "twice.bin", twice, {"0": bytes(4)}))
    numbered = op.pickle(b"}(" + op.number(3) + tensor + b"u")
    with pytest.raises(CheckpointError, match="3: the name is a int"):
        open_checkpoint(write_archive(tmp_path / "numbered.bin", numbered, {"0": bytes(4)}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"]", "holds a list"),
        (b"}", "it holds nothing"),
        (b"}(X\x05\x00\x00\x00epochK\x03u", "it holds 'epoch'"),
        (b"N", "holds a NoneType"),
    ],
)
def test_pickles_without_tensors_say_what_they_hold(value, message, tmp_path, op, write_archive):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_archive(tmp_path / "model.bin", op.pickle(value), {}))


def test_kinds_of_storages_that_numpy_lacks_are_refused_by_name(tmp_path, op, write_archive):
    tensor = op.tensor(op.storage("QInt8", "0", 1), 0, [1], [1])
    with pytest.raises(CheckpointError, match=r"torch\.QInt8Storage"):
        open_checkpoint(write_archive(tmp_path / "m.bin", op.pickle(op.entries({"w": tensor})), {"0": bytes(1)}))


def test_compressed_members_are_refused_with_the_way_out(tmp_path, op, write_archive):
    tensor = op.tensor(op.storage("Float", "0", 1000), 0, [1000], [1])
    pickled = op.pickle(op.entries({"w": tensor}))
    path = write_archive(tmp_path / "m.bin", pickled, {"0": bytes(4000)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"3 of its 3 members.*zip -0"):
        open_checkpoint(path)


def test_damaged_pickle_is_told_by_its_checksum(checkpoint_files, tmp_path):
    content = (checkpoint_files / "state.bin").read_bytes()
    path = tmp_path / "model.bin"
    path.write_bytes(content.replace(b"dense.weight", b"dense.weighs", 1))
    with pytest.raises(CheckpointError, match="not what its checksum says"):
        open_checkpoint(path)


def test_big_endian_files_are_refused(tmp_path, op, write_archive):
    path = write_archive(tmp_path / "m.bin", op.pickle(b"}"), {}, byteorder=b"big")
    with pytest.raises(CheckpointError, match="little-endian"):
        open_checkpoint(path)


def test_torchscript_programs_are_told_from_state_dicts(checkpoint_files):
    with pytest.raises(CheckpointError, match=r"TorchScript program.*torch\.jit\.load"):
        open_checkpoint(checkpoint_files / "torchscript.pt")


def test_files_from_before_torch_1_6_say_how_to_convert_them(checkpoint_files):
    with pytest.raises(CheckpointError, match=r"before torch 1\.6.*torch\.save\(torch\.load"):
        open_checkpoint(checkpoint_files / "legacy.bin")


def test_zip_archives_by_others_are_told_apart(tmp_path):
    np.savez(tmp_path / "arrays.npz", w=ramp(3))
    path = (tmp_path / "arrays.npz").rename(tmp_path / "arrays.pt")
    with pytest.raises(CheckpointError, match=r"torch\.save did not write it"):
        open_checkpoint(path)


def test_archive_cut_short_anywhere_is_refused(checkpoint_files, tmp_path):
    content = (checkpoint_files / "wrapped_protocol_5.bin").read_bytes()
    path = tmp_path / "model.bin"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"model\.bin"):
            open_checkpoint(path)


def test_members_that_lie_outside_the_file_or_stand_twice_are_all_named(checkpoint_files, tmp_path):
    content = (checkpoint_files / "wrapped_protocol_5.bin").read_bytes()
    directory = content.index(b"PK\x01\x02")
    entry_0 = content.index(b"PK\x01\x02", directory + 1)
    changed = bytearray(content)
    changed[directory + 20 : directory + 28] = struct.pack("<2I", 2**30, 2**30)  # sizes
    changed[entry_0 + 42 : entry_0 + 46] = struct.pack("<I", 2**31)  # offset of the local header
    last = content.rindex(b"PK\x01\x02")
    changed[last + 8] |= 1  # flag: encrypted
    path = tmp_path / "model.bin"
    path.write_bytes(changed)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    assert len(raised.value.faults) == 3
    assert str(raised.value).count("does not lie in the file") == 2
    assert "encrypted" in str(raised.value)
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):
        for name in ("a/data.pkl", "a/data/0", "a/data/0", "a/data.pkl"):
            archive.writestr(name, b"}.")
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    assert raised.value.faults == ("member 'a/data/0' stands twice", "member 'a/data.pkl' stands twice")


def test_a_directory_of_gigabytes_is_refused_unread(tmp_path):
    path = tmp_path / "model.bin"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(2**31)  # a sparse file
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 2**31 - 100, 50, 0))
    with pytest.raises(CheckpointError, match="a directory of"):
        open_checkpoint(path)


def test_a_pickle_of_gigabytes_is_refused_unread(tmp_path, op, write_archive):
    path = write_archive(tmp_path / "model.bin", op.pickle(b"]") + bytes(9 << 20), {})
    with pytest.raises(CheckpointError, match="at most 8388608 are read"):
        open_checkpoint(path)


def test_reading_does_not_import_torch(checkpoint_files):
    program = f"""
import sys
from altclip_jax.weights.readers import open_checkpoint
with open_checkpoint({str(checkpoint_files / "state.bin")!r}) as checkpoint:
    checkpoint.read("dense.weight")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
