"""Whatever a file holds, the readers end in the right arrays or in a CheckpointError, in bounded memory."""

import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from altclip_jax.weights.readers import CheckpointError, open_checkpoint

ROOT = Path(__file__).parents[2]
FILES = settings(max_examples=300)

DTYPES = [
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.int64,
    np.int32,
    np.int16,
    np.int8,
    np.uint8,
    np.bool_,
]
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
ARRAYS = st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), min_size=1, max_size=5).map(
    lambda found: {
        name: (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape).astype(dtype)
        for name, (dtype, shape) in found.items()
    }
)
# Positions are taken modulo the length of the file.
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4)
NUMBERS = st.integers() | st.sampled_from([0, 4, 8, 2**31, 2**63, 2**64])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "I64", "BF16"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a", "weight_map"]), inner, max_size=4)
    ),
    max_leaves=12,
)
ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "I64", "F16", "F4"]) | JSON},
    optional={
        "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 12, 16, 24]), min_size=2, max_size=2) | JSON,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


def raw(arrays: dict[str, np.ndarray]) -> dict[str, tuple]:
    return {name: (array.shape, array.dtype, array.tobytes()) for name, array in arrays.items()}


def read(path: Path) -> dict[str, tuple] | None:
    """Read everything; None where that is refused. Any other end fails the test."""
    with contextlib.suppress(CheckpointError), open_checkpoint(path) as checkpoint:
        arrays = {name: checkpoint.read(name) for name in checkpoint.infos}
        assert sum(array.nbytes for array in arrays.values()) <= len(arrays) * path.stat().st_size
        return raw(arrays)
    return None


def library_reads(path: Path) -> dict[str, tuple] | None:
    with contextlib.suppress(safetensors.SafetensorError):
        return raw(safetensors.numpy.load_file(path))
    return None


def changed(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    result = bytearray(content)
    for position, value in changes:
        result[position % len(content)] = value
    return bytes(result)


@FILES
@given(ARRAYS)
def test_any_arrays_are_read_back_from_both_formats(folder, write_torch, arrays):
    safetensors.numpy.save_file(arrays, folder / "m.safetensors")
    assert read(folder / "m.safetensors") == raw(arrays)
    write_torch(folder / "m.bin", arrays)
    assert read(folder / "m.bin") == raw(arrays)


@FILES
@given(ARRAYS, CHANGES, st.integers(-20, 20))
def test_changed_safetensors_are_refused_or_read_as_the_library_does(folder, arrays, changes, longer):
    content = changed(safetensors.numpy.save(arrays), changes)
    (folder / "m.safetensors").write_bytes(content + bytes(longer) if longer > 0 else content[: len(content) + longer])
    found = read(folder / "m.safetensors")
    assert found is None or found == library_reads(folder / "m.safetensors")


@FILES
@given(st.dictionaries(NAMES, ENTRIES, max_size=3) | JSON, st.integers(0, 32))
def test_any_header_is_refused_or_read_as_the_library_does(folder, header, length):
    text = json.dumps(header).encode()
    (folder / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(length))
    found = read(folder / "m.safetensors")
    assert found is None or found == library_reads(folder / "m.safetensors")


@FILES
@given(CHANGES, st.booleans())
def test_changed_archives_are_refused_or_read(folder, checkpoint_files, changes, cut):
    content = changed((checkpoint_files / "state.bin").read_bytes(), changes)
    (folder / "m.bin").write_bytes(content[: changes[0][0] % len(content)] if cut else content)
    read(folder / "m.bin")


@FILES
@given(CHANGES)
def test_changed_pickles_are_refused_or_read(folder, checkpoint_files, write_archive, changes):
    content = (checkpoint_files / "state.bin").read_bytes()
    begin, end = content.index(b"\x80\x02"), content.index(b"PK\x07\x08")
    storages = {str(key): bytes(480) for key in range(20)}
    pickled = changed(content[begin:end], changes)
    read(write_archive(folder / "m.bin", pickled, storages))


@FILES
@given(st.lists(st.sampled_from([bytes([code]) for code in range(256)]) | st.binary(max_size=6), max_size=40))
def test_any_operations_are_refused(folder, write_archive, operations):
    assert read(write_archive(folder / "m.bin", b"\x80\x02" + b"".join(operations) + b".", {"0": bytes(8)})) is None


@FILES
@given(
    st.dictionaries(
        NAMES | st.just("w"),
        st.sampled_from(["good.safetensors", "lost.safetensors", "../x"]) | JSON,
        max_size=3,
    )
)
def test_any_index_is_refused_or_read(folder, weight_map):
    safetensors.numpy.save_file({"w": np.ones(3, np.float32)}, folder / "good.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = read(folder / "model.safetensors.index.json")
    assert (found is not None) == (weight_map == {"w": "good.safetensors"})


@FILES
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(folder, content):
    for name in ("m.safetensors", "m.bin", "m.safetensors.index.json"):
        (folder / name).write_bytes(content)
        assert read(folder / name) is None


def test_the_campaign_script_finds_nothing():
    command = [sys.executable, "-m", "scripts.campaigns.fuzz_readers", "--count", "500", "--seed", "1000000", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    for target, result in json.loads(run.stdout).items():
        assert result["unclean"] == []
        assert sum(result["outcomes"].values()) == 500, target
        assert result["outcomes"]["read, content as before"] > 0
