"""CIFAR-10 in its "python version": pickles, which are read without running anything that is in them."""

from __future__ import annotations

import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from altclip_jax.data.samples import Picture
from altclip_jax.evaluation.classes import Classes
from altclip_jax.evaluation.labelled import Labelled

_SIDE = 32
_ROW = 3 * _SIDE * _SIDE
_TUPLES = (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
_DEEPEST = 4  # levels of tuples; those of an array have two


def cifar10(folder: Path) -> tuple[list[Labelled], Classes]:
    """Reads the test pictures and the English names of the classes from cifar-10-batches-py.

    Raises:
        OSError: test_batch or batches.meta cannot be read.
        ValueError: they hold something else.
    """
    batch, meta = read_pickle(folder / "test_batch"), read_pickle(folder / "batches.meta")
    names = [_text(name) for name in _field(folder / "batches.meta", meta, "label_names", list)]
    path = folder / "test_batch"
    labels, rows = _field(path, batch, "labels", list), _field(path, batch, "data", np.ndarray)
    if rows.shape != (len(labels), _ROW) or not all(
        isinstance(label, int) and 0 <= label < len(names) for label in labels
    ):
        raise ValueError(
            f"{path} holds {len(labels)} labels and an array of {rows.shape}: expected a row of {_ROW} bytes for each"
            f" label, and labels from 0 to {len(names) - 1}."
        )
    pictures = (Picture(f"{path}:{place}", partial(_png, row)) for place, row in enumerate(rows))
    labelled = [Labelled(picture, names[label]) for picture, label in zip(pictures, labels, strict=True)]
    return labelled, Classes(tuple(names), {"en": tuple((name,) for name in names)})


def read_pickle(path: Path) -> dict[str, Any]:
    """Returns the object in a pickle of plain values and arrays of bytes; byte strings of Python 2 stay bytes.

    No global is looked up: what stands in place of numpy's functions only takes notes, and any other name is refused.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or asks for anything else.
    """
    data = path.read_bytes()
    try:
        values = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _RefusedError as error:
        raise ValueError(
            f"{path} asks for {error}, which pictures and labels have no use for; nothing of it was run."
        ) from None
    except Exception as error:  # whatever damaged data lead to
        raise ValueError(f"{path} is no pickle as CIFAR-10 has them ({type(error).__name__}: {error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a dict.")  # noqa: TRY004
    return {_text(key): value.values if isinstance(value, _Array) else value for key, value in values.items()}


class _RefusedError(Exception):
    """The name of a global."""


def _checked(load: Any) -> Any:
    """Returns an operation that makes a tuple, and refuses one deeper than those of arrays.

    The hash of a tuple is computed by going down into it: a key of a million levels would end the process.
    """

    def checked(unpickler: Any) -> None:
        load(unpickler)
        level = unpickler.stack[-1:]
        for _ in range(_DEEPEST):
            level = [item for value in level for item in value if isinstance(item, tuple)]
        if level:
            raise ValueError(f"tuples nest more than {_DEEPEST} levels deep")

    return checked


class _Unpickler(pickle._Unpickler):  # the one in Python: that in C can be made to fill memory with a few bytes
    dispatch: ClassVar[dict[int, Any]] = {
        code: _checked(load) if code in b"".join(_TUPLES) else load for code, load in pickle._Unpickler.dispatch.items()
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _KNOWN:
            raise _RefusedError(f"{module}.{name}")
        return _Name(name)


_KNOWN = {
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
}


class _Name:
    """Stands in place of a global: calling it has the one meaning that arrays of bytes need."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        match self.name, arguments:
            case "encode", (str(text), "latin1" | b"latin1"):
                return text.encode("latin1")
            case "dtype", ("u1" | b"u1", *_):
                return _Uint8()
            case "_reconstruct", (_Name(name="ndarray"), *_):
                return _Array()
        raise ValueError(f"{self.name} is called with {arguments!r:.200}")

    def __setstate__(self, state: object) -> None:
        raise ValueError(f"attributes are set on {self.name}")


class _Uint8:
    """Stands in place of numpy's type of bytes."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignores byte order and alignment, which single bytes do not have."""


class _Array:
    """Stands in place of an array, until its values come."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: np.ndarray = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), tuple(shape), _Uint8(), False | 0, bytes(data)):
                self.values = np.frombuffer(data, np.uint8).reshape(shape)
            case _:
                raise ValueError("an array is not of bytes")


def _field(path: Path, values: dict[str, Any], name: str, kind: type[Any]) -> Any:
    if not isinstance(values.get(name), kind):
        found = ", ".join(values)
        raise ValueError(f"{path} has no {name} that is a {kind.__name__}, among {found}.")  # noqa: TRY004
    return values[name]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _png(row: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(row.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)).save(file, "png")
    return file.getvalue()
