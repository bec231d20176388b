"""Checkpoints are opened, checked and read from safetensors files and folders."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from altclip_jax.weights.readers import CheckpointError, open_checkpoint

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "cube": np.arange(60, dtype=np.float32).reshape(3, 4, 5),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "重み": np.ones(2, np.float32),
}
ARRAYS |= {
    f"dtype.{dtype.__name__}": np.array([0, 1, 1, 0, 1]).astype(dtype)
    for dtype in [
        *(np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
        *(
            np.complex64,
            np.int64,
            np.int32,
            np.int16,
            np.int8,
            np.uint64,
            np.uint32,
            np.uint16,
            np.uint8,
            np.bool_,
        ),
    ]
}


def write_raw(path, header: dict | bytes, data: bytes = b"", length: int | None = None):
    """Write a safetensors file of any header, whether it makes sense or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape, begin, end, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path) -> CheckpointError:
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    assert str(path) in str(raised.value)
    return raised.value


def test_every_dtype_and_rank_of_safetensors_is_read_equal(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors", {"format": "pt", "by": "a test"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.infos.keys() == ARRAYS.keys()
        assert checkpoint.metadata == {"format": "pt", "by": "a test"}
        assert checkpoint.files == (tmp_path / "model.safetensors",)
        for name, array in ARRAYS.items():
            info, found = checkpoint.infos[name], checkpoint.read(name)
            assert (info.name, info.shape, info.dtype, info.nbytes) == (
                name,
                array.shape,
                array.dtype,
                array.nbytes,
            )
            assert info.file == tmp_path / "model.safetensors"
            assert (found.shape, found.dtype, found.tobytes()) == (array.shape, array.dtype, array.tobytes())


def test_arrays_are_fresh_writable_contiguous_and_aligned_for_jax(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        first, second = checkpoint.read("cube"), checkpoint.read("cube")
        part = checkpoint.read("cube", (slice(None), slice(1, 3)))
    first[:] = 0
    np.testing.assert_array_equal(second, ARRAYS["cube"])
    for array in (first, second, part):
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0


@pytest.mark.parametrize(
    "index",
    [
        (),
        (slice(1, 3),),
        (slice(-2, None), slice(None), slice(2, 4)),
        (slice(0, 2), slice(3, 1)),
        (slice(None), slice(1, 2), slice(None)),
        (slice(2, 100), slice(0, 4, 1), slice(4, 5)),
        (slice(5, 9),),
    ],
)
@pytest.mark.parametrize("shortest", [1, 64])
def test_slices_equal_slices_of_the_whole(index, shortest, tmp_path, monkeypatch):
    monkeypatch.setattr("altclip_jax.weights.stored_file._SHORTEST_RUN", shortest)
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("cube", index), ARRAYS["cube"][index], strict=True)


def test_slices_read_only_what_they_need(tmp_path, monkeypatch):
    safetensors.numpy.save_file({"w": np.zeros((100, 50), np.float32)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        counts = []
        read_into = checkpoint._parts[0].file._read_into
        monkeypatch.setattr(
            checkpoint._parts[0].file,
            "_read_into",
            lambda buffer, begin: counts.append(len(buffer)) or read_into(buffer, begin),
        )
        checkpoint.read("w", (slice(20, 30),))
        checkpoint.read("w", (slice(20, 30), slice(0, 16)))
        checkpoint.read("w", (slice(20, 30), slice(0, 15)))
    assert counts == [10 * 50 * 4, *[16 * 4] * 10, (9 * 50 + 15) * 4]


def test_slices_that_cannot_be_are_refused(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        with pytest.raises(ValueError, match="'matrix' has 2 axes, but 3 slices"):
            checkpoint.read("matrix", (slice(None),) * 3)
        with pytest.raises(ValueError, match="'matrix' must have step 1"):
            checkpoint.read("matrix", (slice(None, None, 2),))
        with pytest.raises(CheckpointError, match="'matrx' is not among the 20 tensors"):
            checkpoint.read("matrx")


def test_threads_read_without_disturbing_each_other(tmp_path, monkeypatch):
    arrays = {str(i): np.full((64, 1024), i, np.int32) for i in range(16)}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    wrong = []
    seek = io.FileIO.seek

    class SlowFile(io.FileIO):
        def seek(self, *arguments):
            result = seek(self, *arguments)
            time.sleep(0)  # lets another thread in between seeking and reading
            return result

    monkeypatch.setattr(Path, "open", lambda self, *_, **__: SlowFile(self))
    with open_checkpoint(tmp_path) as checkpoint:

        def read_all_often():
            for _ in range(5):
                wrong.extend(name for name in arrays if (checkpoint.read(name) != int(name)).any())

        threads = [threading.Thread(target=read_all_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_closed_checkpoint_refuses_to_read(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        pass
    with pytest.raises(ValueError, match="closed"):
        checkpoint.read("matrix")


def test_memory_grows_by_the_size_of_the_tensors_and_little_more(tmp_path, write_torch):
    arrays = {str(i): np.full((8, 1 << 20), i, np.float32) for i in range(5)}  # 168 MB
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    write_torch(tmp_path / "model.bin", arrays)
    program = """
import sys
from altclip_jax.weights.readers import open_checkpoint
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
before = peak()
with open_checkpoint(sys.argv[1]) as checkpoint:
    kept = {name: checkpoint.read(name) for name in checkpoint.infos}
print(peak() - before)
"""
    size = sum(array.nbytes for array in arrays.values())
    for name in ("model.safetensors", "model.bin"):
        run = subprocess.run([sys.executable, "-c", program, tmp_path / name], capture_output=True, check=True)
        assert 0.9 * size < int(run.stdout) < 1.05 * size, name


def test_forms_are_looked_for_in_order(tmp_path, write_torch):
    def kind() -> str:
        with open_checkpoint(tmp_path) as checkpoint:
            (name,) = checkpoint.infos
            return name

    def write_shards(stem: str, suffix: str) -> None:
        index = {"weight_map": {f"{stem} shard": f"shard{suffix}"}}
        (tmp_path / f"{stem}{suffix}.index.json").write_text(json.dumps(index))

    one = np.ones(1, np.float32)
    write_torch(tmp_path / "shard.bin", {"pytorch_model shard": one})
    write_shards("pytorch_model", ".bin")
    assert kind() == "pytorch_model shard"
    write_torch(tmp_path / "pytorch_model.bin", {"bin": one})
    assert kind() == "bin"
    safetensors.numpy.save_file({"model shard": one}, tmp_path / "shard.safetensors")
    write_shards("model", ".safetensors")
    assert kind() == "model shard"
    safetensors.numpy.save_file({"safetensors": one}, tmp_path / "model.safetensors")
    assert kind() == "safetensors"


@pytest.mark.parametrize("name", ["any.safetensors", "any.bin", "any.pt", "any.pth"])
def test_single_files_are_opened_by_their_suffix(name, tmp_path, write_torch):
    write = (
        write_torch
        if not name.endswith("safetensors")
        else lambda path, arrays: safetensors.numpy.save_file(arrays, path)
    )
    write(tmp_path / name, {"w": ARRAYS["matrix"]})
    with open_checkpoint(str(tmp_path / name)) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("w"), ARRAYS["matrix"])


def test_links_to_weights_are_followed_and_dangling_ones_named(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    safetensors.numpy.save_file(ARRAYS, tmp_path / "blobs" / "0123abcd")
    link = tmp_path / "snapshot" / "model.safetensors"
    link.symlink_to("../blobs/0123abcd")
    with open_checkpoint(tmp_path / "snapshot") as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("cube"), ARRAYS["cube"])
    (tmp_path / "blobs" / "0123abcd").unlink()
    for path in (link, tmp_path / "snapshot"):
        with pytest.raises(FileNotFoundError, match=r"is a link to .*0123abcd, which is not there"):
            open_checkpoint(path)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("flax_model.msgpack", "Flax weights"),
        ("tf_model.h5", "TensorFlow weights"),
        ("altclip-q4.gguf", "GGUF weights"),
        ("model.onnx", "an ONNX graph"),
        ("altclip.safetensors", "pass the path of that file"),
        ("model-00001-of-00002.safetensors", r"is a shard: the \.index\.json that belongs to it is missing"),
    ],
)
def test_folder_without_weights_says_what_was_looked_for_and_what_is_there(name, hint, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=hint) as raised:
        open_checkpoint(tmp_path)
    for part in ("model.safetensors", "pytorch_model.bin.index.json", "config.json", name, str(tmp_path)):
        assert part in str(raised.value)


def test_empty_folder_says_that_it_holds_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds nothing"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3460000000\n",
            "Git LFS pointer.*git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"\n <html lang=en>", "a web page"),
        (b'{"error": "Repository not found"}', "JSON text, perhaps the error message"),
        (b"\x80\x04\x95", "a pickle, which could run any code"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"a" * 257 + b"ustar" + bytes(250), "a tar archive"),
        (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
        (b"\x00\x01\x02", "of an unknown kind .it begins with 00 01 02."),
    ],
)
def test_files_of_other_kinds_say_what_they_are(name, content, kind, tmp_path):
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert re.search(kind, str(error))
    assert "was expected" in str(error)


def test_formats_under_each_others_suffix_are_told(tmp_path, write_torch):
    write_torch(tmp_path / "model.safetensors", {"w": ARRAYS["matrix"]})
    assert "name it .bin" in str(refusal(tmp_path / "model.safetensors"))
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.bin")
    assert "name it .safetensors" in str(refusal(tmp_path / "model.bin"))


def test_paths_that_are_no_files_are_told(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a folder"):
        open_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe.bin")
    assert "is a device or pipe" in str(refusal(tmp_path / "pipe.bin"))
    (tmp_path / "weights.txt").write_text("3")
    assert "is none of *.safetensors" in str(refusal(tmp_path / "weights.txt"))


def test_every_entry_at_fault_is_named_with_expected_and_found(tmp_path):
    header = {
        "good": entry([3], 0, 12),
        "size": entry([3], 12, 20),
        "dtype": entry([3], 20, 32, dtype="F31"),
        "number": entry([3], 20, 32, dtype=7),
        "negative": entry([-3], 20, 32),
        "real": entry([3.0], 20, 32),
        "true": entry([True], 20, 24),
        "huge": entry([2**40, 2**40], 20, 32),
        "backward": entry([3], 32, 20),
        "below": entry([3], -4, 8),
        "flag": entry([3], True, 13),
        "beyond": entry([3], 10**4299, 10**4299 + 12),
        "one": {"dtype": "F32", "shape": [3], "data_offsets": [0]},
        "bare": {"dtype": "F32"},
        "list": [],
        "__metadata__": {"format": 3},
    }
    error = refusal(write_raw(tmp_path / "model.safetensors", header, bytes(32)))
    assert len(error.faults) == len(header) - 1
    assert "'good'" not in str(error)
    for name in header.keys() - {"good", "__metadata__"}:
        assert f"'{name}'" in str(error)
    for part in [
        "F32 of shape (3,) takes 12 bytes, but its data_offsets [12, 20] span 8",
        "its dtype 'F31' is not one of U64, I64",
        "its __metadata__ is not a map from text to text",
    ]:
        assert part in str(error)


@pytest.mark.parametrize(
    ("offsets", "size", "messages"),
    [
        ([(0, 12), (8, 20)], 20, ["'1' begins at byte", "overlaps '0'"]),
        ([(0, 12), (0, 12)], 12, ["overlaps '0'"]),
        ([(0, 12), (16, 28)], 28, ["leaves a gap after '0'"]),
        ([(4, 16)], 16, ["leaves a gap after the header"]),
        ([(0, 12), (12, 24)], 20, ["'1' ends at byte", "cut short after"]),
        ([(0, 12)], 15, ["3 bytes follow '0'"]),
        ([], 3, ["3 bytes follow the header"]),
        ([(0, 12), (8, 20), (24, 36)], 30, ["overlaps '0'", "leaves a gap after '1'", "cut short"]),
    ],
)
def test_overlaps_gaps_and_truncation_are_all_told(offsets, size, messages, tmp_path):
    header = {str(number): entry([3], *pair) for number, pair in enumerate(offsets)}
    error = refusal(write_raw(tmp_path / "model.safetensors", header, bytes(size)))
    for message in messages:
        assert message in str(error)


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        (b"{}", 3, "of an unknown kind"),
        (b"{" + b" " * 40, None, "is not JSON"),
        (b'{"a":' + b"[" * 100_000, None, "is not JSON"),
        (
            b'{"w": ' + json.dumps(entry([3], 0, 12)).encode()[:-1] + b', "x": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
            None,
            "JSON",
        ),
        (b'{"a": ' + b"9" * 5000 + b"}", None, "is not JSON"),
        (b'{"\xff": 3}', None, "is not JSON"),
        (
            b'{"w": 1, "w": 2, "v": {"dtype": 1, "dtype": 2}}',
            None,
            "2 faults\n  - 'dtype' stands twice\n  - 'w' stands twice",
        ),
        (b'{"\\ud800": 3}', None, r"'\ud800': a dtype"),
    ],
)
def test_headers_that_are_no_sound_json_are_refused(header, length, message, tmp_path):
    assert message in str(refusal(write_raw(tmp_path / "model.safetensors", header, length=length)))


def test_giant_header_is_refused_unread(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000) + b"{")
        file.truncate(100_000_000)
    assert "declares a header of 90000000 bytes; at most 8388608 are read" in str(refusal(path))


def test_what_the_safetensors_library_refuses_is_refused(tmp_path, monkeypatch):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    monkeypatch.setattr("altclip_jax.weights.safetensors_file.load_object", lambda data, subject: {})
    monkeypatch.setattr("altclip_jax.weights.safetensors_file._layout_faults", lambda *_: [])
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-1])
    assert "is refused by the safetensors library" in str(refusal(tmp_path / "model.safetensors"))


def test_file_that_shrinks_while_open_is_told(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        os.truncate(tmp_path / "model.safetensors", 100)
        with pytest.raises(CheckpointError, match="it was changed while it was open"):
            checkpoint.read("cube")
