"""The pickle inside a torch checkpoint, interpreted without pickle: a small stack machine over plain values.

Nothing is imported, looked up or called, so a hostile pickle has nothing to run. A global is only a name; the
few that describe tensors have their meaning written here, any other is refused by its name.

Source: CPython's pickletools (the operations), torch 2.13's torch.save (which it writes, protocols 2 to 5).
"""

import dataclasses
import pickle
import struct
from collections.abc import Callable, Collection
from typing import Any, Final

from altclip_jax.files.checkpoint_folder import CheckpointError

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


def read_pickle(data: bytes, subject: str, values: Collection[str]) -> Any:
    """Interpret a pickle made of dicts, lists, tuples, plain values and tensors.

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
        """Interpret up to the STOP operation and return the value on top."""
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
        """Read a number in the form that `struct` calls so."""
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def text(self, length: int) -> str:
        """Read text of so many bytes."""
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damage("a text is not UTF-8") from None

    def line(self) -> str:
        """Read text up to a line feed."""
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise self._damage("a line of text does not end")
        return self.text(end + 1 - self._at)[:-1]

    def integer(self, length: int) -> int:
        """Read an integer of so many bytes."""
        if not 0 <= length <= _LONGEST_INTEGER:
            raise self._damage(f"an integer has {length} bytes")
        return int.from_bytes(self._take(length), "little", signed=True)

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Take the last value, which must have been pushed since the last mark."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self._damage("a value is missing")
        return self._stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        """Take the last values, in the order in which they were pushed."""
        return [self.pop() for _ in range(count)][::-1]

    def mark(self) -> None:
        """Mark the present height of the stack."""
        self._marks.append(len(self._stack))

    def pop_to_mark(self) -> list[Any]:
        """Take all values since the last mark, and the mark."""
        if not self._marks:
            raise self._damage("a mark is missing")
        height = self._marks.pop()
        values = self._stack[height:]
        del self._stack[height:]
        return values

    def memoize(self, key: int | None = None) -> None:
        """Remember the last value under a key, or under the next number."""
        value = self.pop()
        self._memo[len(self._memo) if key is None else key] = value
        self.push(value)

    def recall(self, key: int) -> None:
        """Push what was remembered under a key."""
        if key not in self._memo:
            raise self._damage(f"value {key} was never remembered")
        self.push(self._memo[key])

    def push_global(self, module: Any, attribute: Any) -> None:
        """Push a global by its name, noting it where it is not allowed."""
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
        """Append values to the list on top."""
        target = self.pop()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, _Foreign):
            raise self._damage(f"values are appended to a {type(target).__name__}")
        self.push(target)

    def set_items(self, pairs: list[Any]) -> None:
        """Set alternating keys and values in the dict on top."""
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
        """Drop what would be set as attributes of the object below it."""
        target, _ = self.pop_many(2)
        if not isinstance(target, (dict, _Foreign)):
            raise self._damage(f"attributes are set on a {type(target).__name__}")
        self.push(target)

    def call(self) -> None:
        """Push what an allowed global means by its arguments."""
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
