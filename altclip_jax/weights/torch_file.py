"""A file written by torch.save, read without torch and without pickle: which tensors it holds, and where.

A zip archive of stored (not compressed) members under one folder: data.pkl, a pickle in which each storage is
("storage", type, key, device, elements); data/<key>, its bytes; byteorder, "little" or "big", absent in old files.

The pickle is interpreted by a small stack machine over plain values. Nothing is imported, looked up or called, so a
hostile one has nothing to run. A global is only a name; the few that describe tensors have their meaning written here,
any other is refused by its name.

Source: torch 2.13, torch/serialization.py (the archive, and the operations that it writes, protocols 2 to 5); CPython's
pickletools (what these mean).
"""

import dataclasses
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.weights.stored_file import (
    MAX_CATALOGUE_BYTES,
    ZIP,
    StoredFile,
    StoredTensor,
    TensorInfo,
    require_kind,
    shape_fault,
)

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "torch.DoubleStorage": np.float64,
        "torch.FloatStorage": np.float32,
        "torch.HalfStorage": np.float16,
        "torch.BFloat16Storage": ml_dtypes.bfloat16,
        "torch.LongStorage": np.int64,
        "torch.IntStorage": np.int32,
        "torch.ShortStorage": np.int16,
        "torch.CharStorage": np.int8,
        "torch.ByteStorage": np.uint8,
        "torch.BoolStorage": np.bool_,
        "torch.storage.UntypedStorage": np.uint8,
    }.items()
}
# Settings that are saved beside the weights name these.
_SCALAR_TYPES = {f"torch.{dtype}" for dtype in _DTYPES.values()}
# Under which key training programs (Lightning, FlagAI, DeepSpeed) keep the weights beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "module", "model")
_MAKERS: Final = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
}
_LONGEST_INTEGER: Final = 16  # bytes; the seed of a random generator takes 9
# A few bytes can ask for a global by remembered texts, so both could be used to fill memory with names.
_LONGEST_NAME: Final = 200
_MOST_REFUSED: Final = 100


def read_torch(file: StoredFile) -> dict[str, StoredTensor]:
    """Reads the tensors that a file by torch.save declares; no tensor data is read and no code of it is run.

    A dict without tensors of its own whose entry "state_dict", "model_state_dict", "module" or "model" is a
    dict with tensors is unwrapped: {"state_dict": {...}, "epoch": 3}. Tensors may share a storage and have
    any strides; one that repeats elements (torch's `expand`) must not be larger than the file. Checksums of
    tensor data are not compared (torch does not either).

    Raises:
        CheckpointError: the file is damaged, of another kind, or asks for more than tensors.
    """
    require_kind(file, ZIP)
    entries = _zip_entries(file)
    folder = _archive_folder(file, [entry.filename for entry in entries])
    members = _members(file, entries)
    byte_order = members.get(f"{folder}/byteorder")
    if byte_order is not None and file.read_bytes(byte_order.begin, min(byte_order.size, 16)) != b"little":
        raise CheckpointError(
            f"{file.path} is not marked as little-endian: save it again with torch on a little-endian machine"
        )
    pickled = members[f"{folder}/data.pkl"]
    if pickled.size > MAX_CATALOGUE_BYTES:
        raise CheckpointError(
            f"The pickle of {file.path} has {pickled.size} bytes; at most {MAX_CATALOGUE_BYTES} are read"
        )
    data = file.read_bytes(pickled.begin, pickled.size)
    if pickled.checksum and zlib.crc32(data) != pickled.checksum:
        raise CheckpointError(f"The pickle of {file.path} is not what its checksum says: it is damaged")
    allowed = _DTYPES.keys() | _SCALAR_TYPES
    state = _unwrap(file, _read_pickle(data, f"The pickle of {file.path}", allowed))
    prefix = f"{folder}/data/"
    storages = {name.removeprefix(prefix): m for name, m in members.items() if name.startswith(prefix)}
    tensors, faults = {}, []
    for name, value in state.items():
        found = _stored_tensor(file, name, value, storages)
        if isinstance(found, StoredTensor):
            tensors[found.info.name] = found
        else:
            faults.append(f"{name!r}: {found}")
    if faults:
        raise CheckpointError(str(file.path), faults)
    return tensors


class _Member(NamedTuple):
    """Where the bytes of a member of the archive lie."""

    begin: int
    size: int
    checksum: int  # CRC-32, or 0: torch has an option to leave it out


class _DirectoryFile(io.FileIO):
    """The archive as zipfile sees it, which reads as many bytes of directory as the file claims to have."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads like FileIO, but no more than a catalogue may have."""
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > MAX_CATALOGUE_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes; {MAX_CATALOGUE_BYTES} are the most that is read")
        return super().read(size) or b""


def _zip_entries(file: StoredFile) -> list[zipfile.ZipInfo]:
    try:
        with _DirectoryFile(os.dup(file.fileno())) as directory, zipfile.ZipFile(directory) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, ValueError) as error:
        raise CheckpointError(f"{file.path} is a damaged zip archive, perhaps cut short: {error}") from error


def _archive_folder(file: StoredFile, names: list[str]) -> str:
    pickles = [name.split("/") for name in names if name.endswith("/data.pkl")]
    folders = {parts[0] for parts in pickles if len(parts) == 2}
    if len(folders) != 1:
        raise CheckpointError(
            f"{file.path} is a zip archive, but torch.save did not write it: one member <folder>/data.pkl "
            f"was expected, found {len(folders)} among {len(names)} members"
        )
    folder = folders.pop()
    if f"{folder}/constants.pkl" in names:
        raise CheckpointError(
            f"{file.path} is a TorchScript program, which holds code. Where you trust it, take its weights: "
            "torch.save(torch.jit.load(old).state_dict(), new)"
        )
    return folder


def _members(file: StoredFile, entries: list[zipfile.ZipInfo]) -> dict[str, _Member]:
    faults = []
    if packed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        faults.append(
            f"{len(packed)} of its {len(entries)} members, {packed[0]!r} the first, are compressed, which "
            "torch never does: unpack the archive and pack it again without compression (zip -0)"
        )
    members: dict[str, _Member] = {}
    for entry in entries:
        # 30 bytes, of which the last four are the lengths of the name and of the extra field that follow.
        local = entry.header_offset
        header = file.read_bytes(local, 30) if 0 <= local <= file.size - 30 else b""
        begin = local + 30 + sum(struct.unpack("<2H", header[26:])) if header else 0
        if not header.startswith(b"PK\x03\x04") or begin + entry.file_size > file.size:
            faults.append(f"member {entry.filename!r} of {entry.file_size} bytes does not lie in the file")
        if entry.flag_bits & 1:
            faults.append(f"member {entry.filename!r} is encrypted")
        if entry.filename in members:
            faults.append(f"member {entry.filename!r} stands twice")
        members[entry.filename] = _Member(begin, entry.file_size, entry.CRC)
    if faults:
        raise CheckpointError(str(file.path), faults)
    return members


def _unwrap(file: StoredFile, state: object) -> dict[Any, Any]:
    if _has_tensors(state):
        return state
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise CheckpointError(f"{file.path} holds a {kind}; a dict from names to tensors was expected")
    found = [key for key in _WRAPPERS if _has_tensors(state.get(key))]
    if len(found) == 1:
        return dict(state[found[0]])
    keys = ", ".join(repr(key) for key in found or state) or "nothing"
    raise CheckpointError(
        f"{file.path} should hold tensors by name, or one dict of them under one of {', '.join(_WRAPPERS)}; "
        f"it holds {'several: ' if found else ''}{keys}"
    )


def _has_tensors(value: object) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict) and any(isinstance(entry, TensorView) for entry in value.values())


def _stored_tensor(file: StoredFile, name: Any, value: Any, storages: dict[str, _Member]) -> StoredTensor | str:
    if not isinstance(name, str):
        return f"the name is a {type(name).__name__}; text was expected"
    if not isinstance(value, TensorView):
        return f"a {type(value).__name__}; a tensor was expected"
    storage = _storage(value.storage, storages)
    if isinstance(storage, str):
        return storage
    member, dtype, elements = storage
    if fault := shape_fault(value.shape):
        return fault
    strides = value.strides
    if not isinstance(strides, tuple) or len(strides) != len(value.shape) or not all(map(_is_count, strides)):
        return f"its strides are not {len(value.shape)} whole numbers"
    if not _is_count(value.offset):
        return "its offset is not a whole number"
    info = TensorInfo(name, tuple(value.shape), dtype, file.path)
    last = value.offset + sum((n - 1) * stride for n, stride in zip(info.shape, strides, strict=True))
    if info.nbytes and last >= elements:
        return f"shape {info.shape}, strides {strides} reach element {last} of a storage that has {elements}"
    if info.nbytes > file.size:
        return f"shape {info.shape} repeats its elements to {info.nbytes} bytes, more than the whole file has"
    # Where an axis has one element, torch leaves any number as its stride.
    strides = tuple(stride if n > 1 else 0 for n, stride in zip(info.shape, strides, strict=True))
    return StoredTensor(info, member.begin + value.offset * dtype.itemsize, strides)


def _storage(found: Any, storages: dict[str, _Member]) -> tuple[_Member, np.dtype[Any], int] | str:
    match found:
        case PersistentId(("storage", Global(kind), str(key), str(), int(elements))) if elements >= 0:
            pass
        case _:
            return "its storage is not described as torch does it"
    if kind not in _DTYPES:
        return f"its storage is a {kind}, which is not one of {', '.join(_DTYPES)}"
    if key not in storages:  # which may be very long, and the same for all tensors
        return f"its storage, member data/{key[:100]} of the archive, is missing"
    dtype = _DTYPES[kind]
    if storages[key].size < elements * dtype.itemsize:
        return (
            f"its storage data/{key}, {elements} elements of {dtype}, should have "
            f"{elements * dtype.itemsize} bytes, found {storages[key].size}"
        )
    return storages[key], dtype, elements


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, never the thing itself."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class PersistentId:
    """What torch writes in place of a storage; unchecked."""

    value: Any


@dataclasses.dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor as the pickle describes it, elements of a storage; unchecked."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


@dataclasses.dataclass(frozen=True, slots=True)
class _Foreign:
    """Stands where a refused global would have made something."""


class _DamagedError(Exception):
    """The pickle breaks the rules of the machine."""


def _read_pickle(data: bytes, subject: str, values: Collection[str]) -> Any:
    """Interprets a pickle made of dicts, lists, tuples, plain values and tensors.

    An OrderedDict becomes a dict, a Parameter its tensor; attributes set on an OrderedDict are dropped (torch
    keeps the versions of modules there).

    Args:
        data: the pickle.
        subject: what it is, for errors.
        values: globals that may stand for themselves, such as types of storages; calling them is damage.

    Raises:
        CheckpointError: it is damaged, sets a key twice, or asks for globals that tensors do not need.
    """
    machine = _Machine(data, _MAKERS.union(values))
    result, damage = None, ""
    try:
        result = machine.run()
    except _DamagedError as error:
        damage = str(error)
    if machine.refused:
        named = ", ".join(sorted(machine.refused)) + (" and perhaps more" if damage else "")
        raise CheckpointError(
            f"{subject} asks for {named}. Weights need nothing of the kind, and nothing of it was run, for a "
            "pickle can run any code. Where you trust the file, load it with torch and save the state dict"
        )
    if damage:
        raise CheckpointError(f"{subject} is damaged or not by torch: {damage}")
    if machine.repeated:
        raise CheckpointError(subject, [f"{key!r} stands twice" for key in sorted(machine.repeated)])
    return result


class _Machine:
    """One run over one pickle; every length is checked against what is left before anything is allocated."""

    def __init__(self, data: bytes, allowed: Collection[str]):
        self._data = data
        self._allowed = allowed
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, Any] = {}
        self.refused: set[str] = set()  # globals
        self.repeated: set[str] = set()  # keys

    def run(self) -> Any:
        """Interprets up to the STOP operation and returns the value on top."""
        while (code := self._take(1)) != pickle.STOP:
            if code not in _OPERATIONS:
                raise self._damage(f"operation {code!r} is none that torch writes for weights")
            _OPERATIONS[code](self)
        return self.pop()

    def _damage(self, what: str) -> _DamagedError:
        return _DamagedError(f"{what} (before byte {self._at} of {len(self._data)})")

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise self._damage(f"it ends where {count} bytes more are expected")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, form: str) -> Any:
        """Reads a number in the form that `struct` calls so."""
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def text(self, length: int) -> str:
        """Reads text of so many bytes."""
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damage("a text is not UTF-8") from None

    def line(self) -> str:
        """Reads text up to a line feed."""
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise self._damage("a line of text does not end")
        return self.text(end + 1 - self._at)[:-1]

    def integer(self, length: int) -> int:
        """Reads an integer of so many bytes."""
        if not 0 <= length <= _LONGEST_INTEGER:
            raise self._damage(f"an integer has {length} bytes")
        return int.from_bytes(self._take(length), "little", signed=True)

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Takes the last value, which must have been pushed since the last mark."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self._damage("a value is missing")
        return self._stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        """Takes the last values, in the order in which they were pushed."""
        return [self.pop() for _ in range(count)][::-1]

    def mark(self) -> None:
        """Marks the present height of the stack."""
        self._marks.append(len(self._stack))

    def pop_to_mark(self) -> list[Any]:
        """Takes all values since the last mark, and the mark."""
        if not self._marks:
            raise self._damage("a mark is missing")
        height = self._marks.pop()
        values = self._stack[height:]
        del self._stack[height:]
        return values

    def memoize(self, key: int | None = None) -> None:
        """Remembers the last value under a key, or under the next number."""
        value = self.pop()
        self._memo[len(self._memo) if key is None else key] = value
        self.push(value)

    def recall(self, key: int) -> None:
        """Pushes what was remembered under a key."""
        if key not in self._memo:
            raise self._damage(f"value {key} was never remembered")
        self.push(self._memo[key])

    def push_global(self, module: Any, attribute: Any) -> None:
        """Pushes a global by its name, noting it where it is not allowed."""
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise self._damage("a global has no name")
        if len(module) + len(attribute) > _LONGEST_NAME:
            raise self._damage("a global has a very long name")
        name = f"{module}.{attribute}"
        if name not in self._allowed:
            self.refused.add(name)
            if len(self.refused) == _MOST_REFUSED:
                raise self._damage("it asks for very many globals")
        self.push(Global(name))

    def extend(self, values: list[Any]) -> None:
        """Appends values to the list on top."""
        target = self.pop()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, _Foreign):
            raise self._damage(f"values are appended to a {type(target).__name__}")
        self.push(target)

    def set_items(self, pairs: list[Any]) -> None:
        """Sets alternating keys and values in the dict on top."""
        target = self.pop()
        if len(pairs) % 2 or not isinstance(target, (dict, _Foreign)):
            raise self._damage(f"items are set in a {type(target).__name__}")
        if isinstance(target, dict):
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                if not isinstance(key, (str, int, float, type(None))):
                    raise self._damage(f"a {type(key).__name__} is used as a key")
                if key in target:
                    self.repeated.add(str(key))
                target[key] = value
        self.push(target)

    def build(self) -> None:
        """Drops what would be set as attributes of the object below it."""
        target, _ = self.pop_many(2)
        if not isinstance(target, (dict, _Foreign)):
            raise self._damage(f"attributes are set on a {type(target).__name__}")
        self.push(target)

    def call(self) -> None:
        """Pushes what an allowed global means by its arguments."""
        function, arguments = self.pop_many(2)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise self._damage("what is called has no name")
        match function.name, arguments:
            case (name, _) if name not in self._allowed:
                self.push(_Foreign())
            case ("collections.OrderedDict", ()):
                self.push({})
            case ("torch.Size", (tuple(shape),)):
                self.push(shape)
            case ("torch._utils._rebuild_parameter", ((TensorView() | _Foreign()) as tensor, _, _)):
                self.push(tensor)
            case ("torch._utils._rebuild_tensor_v2", (storage, offset, shape, strides, _, _, *_)):
                self.push(TensorView(storage, offset, shape, strides))
            case _:
                raise self._damage(f"{function.name} is called with arguments that torch does not write")


_OPERATIONS: Final[dict[bytes, Callable[[_Machine], object]]] = {
    pickle.PROTO: lambda m: m.number("<B"),
    pickle.FRAME: lambda m: m.number("<Q"),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.push(m.integer(m.number("<B"))),
    pickle.LONG4: lambda m: m.push(m.integer(m.number("<i"))),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.text(m.number("<B"))),
    pickle.BINUNICODE: lambda m: m.push(m.text(m.number("<I"))),
    pickle.BINUNICODE8: lambda m: m.push(m.text(m.number("<Q"))),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push(tuple(m.pop_many(1))),
    pickle.TUPLE2: lambda m: m.push(tuple(m.pop_many(2))),
    pickle.TUPLE3: lambda m: m.push(tuple(m.pop_many(3))),
    pickle.MARK: lambda m: m.mark(),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_to_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.extend(m.pop_many(1)),
    pickle.APPENDS: lambda m: m.extend(m.pop_to_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: lambda m: m.set_items(m.pop_many(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_to_mark()),
    pickle.BINPUT: lambda m: m.memoize(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.memoize(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.memoize(),
    pickle.BINGET: lambda m: m.recall(m.number("<B")),
    pickle.LONG_BINGET: lambda m: m.recall(m.number("<I")),
    pickle.GLOBAL: lambda m: m.push_global(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.push_global(*m.pop_many(2)),
    pickle.BINPERSID: lambda m: m.push(PersistentId(m.pop())),
    pickle.REDUCE: lambda m: m.call(),
    pickle.NEWOBJ: lambda m: m.call(),
    pickle.BUILD: lambda m: m.build(),
}
