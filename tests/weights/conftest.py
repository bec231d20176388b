"""Torch checkpoints put together by hand: what torch would write, and what it never would."""

import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

CHECKPOINT_FILES = Path(__file__).parents[1] / "data" / "checkpoint_files"
STORAGE_TYPES = {"float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16"}
STORAGE_TYPES |= {
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
}


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    length = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


def _named(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def _numbers(values) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def _storage(kind: str, key: str, elements: int) -> bytes:
    parts = [_text("storage"), _named("torch", f"{kind}Storage"), _text(key), _text("cpu"), _number(elements)]
    return b"(" + b"".join(parts) + b"tQ"


def _tensor(storage: bytes, offset: int, shape, strides) -> bytes:
    hooks = _named("collections", "OrderedDict") + b")R"
    parts = [storage, _number(offset), _numbers(shape), _numbers(strides), b"\x89", hooks]
    return _named("torch._utils", "_rebuild_tensor_v2") + b"(" + b"".join(parts) + b"tR"


def _entries(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(_text(name) + value for name, value in items.items()) + b"u"


def _pickle(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


@pytest.fixture(scope="session")
def op() -> SimpleNamespace:
    """Builders of pickle operations: each gives the bytes that push one value."""
    return SimpleNamespace(
        text=_text,
        number=_number,
        named=_named,
        numbers=_numbers,
        storage=_storage,
        tensor=_tensor,
        entries=_entries,
        pickle=_pickle,
        call=lambda function, *arguments: function + b"(" + b"".join(arguments) + b"tR",
    )


@pytest.fixture(scope="session")
def write_archive():
    """Write a zip archive like torch.save's around any pickle."""

    def write(path: Path, pickled: bytes, storages, compression=zipfile.ZIP_STORED, **extra):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/byteorder", extra.pop("byteorder", b"little"))
            for key, content in storages.items():
                archive.writestr(f"archive/data/{key}", content)
            for name, content in extra.items():
                archive.writestr(f"archive/{name}", content)
        return path

    return write


@pytest.fixture(scope="session")
def write_torch(write_archive):
    """Write arrays as torch.save would write a state dict."""

    def write(path: Path, arrays: dict[str, np.ndarray]):
        items, storages = {}, {}
        for key, (name, array) in enumerate(arrays.items()):
            storage = _storage(STORAGE_TYPES[array.dtype.name], str(key), array.size)
            strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
            items[name] = _tensor(storage, 0, array.shape, strides)
            storages[str(key)] = array.tobytes()
        return write_archive(path, _pickle(_entries(items)), storages)

    return write


@pytest.fixture(scope="session")
def checkpoint_files() -> Path:
    """Small files written by torch 2.13; tests/parity compares them with what torch reads from them."""
    return CHECKPOINT_FILES


@pytest.fixture(scope="session")
def read_all():
    """Open a checkpoint and read every tensor of it."""

    def read(path: Path) -> dict[str, np.ndarray]:
        from altclip_jax.weights.readers import open_checkpoint

        with open_checkpoint(path) as checkpoint:
            return {name: checkpoint.read(name) for name in checkpoint.infos}

    return read
