"""A hostile pickle runs nothing, fills no memory and ends in a sentence."""

import os
import pickle
import struct
import subprocess
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import pytest

from altclip_jax.weights.readers import CheckpointError, open_checkpoint


class Reduced:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.made = (function, arguments)

    def __reduce__(self):
        return self.made


@pytest.fixture
def refusal(tmp_path, write_archive):
    """Put a pickle into an archive, open it, and give the message of the CheckpointError that must follow."""

    def refuse(pickled: bytes) -> str:
        path = write_archive(tmp_path / "model.bin", pickled, {"0": bytes(64)})
        with pytest.raises(CheckpointError) as raised:
            open_checkpoint(path)
        assert str(path) in str(raised.value)
        return str(raised.value)

    return refuse


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_calls_are_refused_by_name_and_not_made(protocol, tmp_path, refusal):
    trace = tmp_path / "trace"
    touch = f"touch {trace}"
    calls = {
        "system": Reduced(os.system, touch),
        "eval": Reduced(eval, f"open({str(trace)!r}, 'w')"),
        "exec": Reduced(exec, f"open({str(trace)!r}, 'w')"),
        "getattr": Reduced(getattr, "", "join"),
        "Popen": Reduced(subprocess.Popen, ["touch", str(trace)]),
    }
    for name, call in calls.items():
        # Protocol 2 gives modules the names they had in Python 2.
        assert f".{name}. Weights need nothing of the kind" in refusal(pickle.dumps({"w": call}, protocol))
    assert not trace.exists()


def test_all_refused_globals_are_named_at_once(refusal):
    pickled = pickle.dumps({"a": Reduced(os.system, "true"), "b": {"c": Reduced(eval, "1")}, "d": Path("x")}, 4)
    message = refusal(pickled)
    for name in ("posix.system", "builtins.eval", "pathlib.PosixPath"):
        assert name in message


def test_calls_nested_in_the_arguments_of_allowed_globals_are_refused(op, refusal):
    evil = op.call(op.named("os", "system"), op.text("true"))
    tensor = op.named("torch._utils", "_rebuild_tensor_v2") + b"(" + evil * 6 + b"tR"
    assert "os.system" in refusal(op.pickle(op.entries({"w": tensor})))
    parameter = op.call(op.named("torch._utils", "_rebuild_parameter"), evil, b"\x89", b"}")
    assert "os.system" in refusal(op.pickle(op.entries({"w": parameter})))


def test_ordered_dict_takes_no_arguments(op, refusal):
    made = op.call(op.named("collections", "OrderedDict"), b"]")
    assert "collections.OrderedDict is called with arguments" in refusal(op.pickle(made))


def test_types_of_storages_cannot_be_called(op, refusal):
    assert "torch.FloatStorage is called" in refusal(op.pickle(op.call(op.named("torch", "FloatStorage"), b"K\x08")))


@pytest.mark.parametrize(
    "target",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"]",
        b")",
        b"X\x01\x00\x00\x00a",
    ],
)
@pytest.mark.parametrize("state", [b"}(X\x08\x00\x00\x00__code__Nu", b"(N}(X\x08\x00\x00\x00__code__Nut"])
def test_attributes_are_set_on_nothing(target, state, op, refusal):
    assert "attributes are set on a" in refusal(op.pickle(target + state + b"b"))


def test_attributes_of_an_ordered_dict_are_dropped(tmp_path, op, write_archive, read_all):
    tensor = op.tensor(op.storage("Float", "0", 1), 0, [1], [1])
    made = op.call(op.named("collections", "OrderedDict")) + b"(" + op.text("w") + tensor + b"u"
    path = write_archive(tmp_path / "m.bin", op.pickle(made + b"}(X\x05\x00\x00\x00itemsNub"), {"0": bytes(4)})
    assert list(read_all(path)) == ["w"]


@pytest.mark.parametrize(
    "operations",
    [
        b"X\xff\xff\xff\xffa",  # text of 4 GB
        b"\x8d" + struct.pack("<Q", 2**62) + b"a",  # text of 4 EB
        b"B\xff\xff\xff\xff",  # bytes of 4 GB
        b"\x8e" + struct.pack("<Q", 2**62),  # bytes of 4 EB
        b"\x96" + struct.pack("<Q", 2**62),  # bytearray of 4 EB
        b"\x8b\xff\xff\xff\x7f",  # integer of 2 GB
        b"\x8b\xff\xff\xff\xff",  # integer of -1 bytes
        b"\x8a\xff" + bytes(255),  # integer of 255 bytes
        b"\x95" + struct.pack("<Q", 2**62),  # frame of 4 EB
    ],
)
def test_giant_lengths_allocate_nothing(operations, op, refusal):
    tracemalloc.start()
    try:
        refusal(op.pickle(operations))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_giant_numbers_in_the_memo_allocate_nothing(tmp_path, op, write_archive, read_all):
    tensor = op.tensor(op.storage("Float", "0", 1), 0, [1], [1])
    made = op.entries({"w": tensor + b"r\xff\xff\xff\xff", "tied": b"j\xff\xff\xff\xff"})
    path = write_archive(tmp_path / "m.bin", op.pickle(made), {"0": bytes(4)})
    tracemalloc.start()
    try:
        assert list(read_all(path)) == ["w", "tied"]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (b"h\x07", "value 7 was never remembered"),
        (b"j\xff\xff\xff\xff", "value 4294967295 was never remembered"),
        (b"q\x00", "a value is missing"),
        (b"\x94", "a value is missing"),
        (b"0", "operation b'0'"),
        (b"t", "a mark is missing"),
        (b"(\x85", "a value is missing"),
        (b"K\x01(\x85", "a value is missing"),
        (b"\x8a\xff" + bytes(255), "an integer has 255 bytes"),
        (b"}K\x01s", "a value is missing"),
        (b"}(K\x01u", "items are set"),
        (b"](K\x01K\x02u", "items are set in a list"),
        (b"}(K\x01e", "values are appended to a dict"),
        (b"})K\x01s", "a tuple is used as a key"),
        (b"}]K\x01s", "a list is used as a key"),
        (b"K\x01)R", "what is called has no name"),
        (b"ccollections\nOrderedDict\nNR", "what is called has no name"),
        (b"cos\nsystem", "a line of text does not end"),
        (b"c\xff\nx\n", "a text is not UTF-8"),
        (b"X\x01\x00\x00\x00\xff", "a text is not UTF-8"),
        (b"K\x01K\x02\x93", "a global has no name"),
        (b"S'os'\n", "operation b'S'"),
        (b"(ios\nsystem\n", "operation b'i'"),
        (b"P0\n", "operation b'P'"),
        (b"\x82\x01", "operation"),
        (b"", "a value is missing"),
    ],
)
def test_operations_that_break_the_rules_are_damage(operations, message, op, refusal):
    assert message in refusal(op.pickle(operations))


def test_pickle_that_does_not_stop_is_damage(refusal):
    assert "ends where 1 bytes more are expected" in refusal(b"\x80\x02}")
    assert "ends where" in refusal(b"")


@pytest.mark.parametrize("deeper", [b"\x85", b"Q", b"l"])
def test_nesting_200_000_deep_ends_in_a_sentence(deeper, op, refusal):
    refusal(op.pickle(b")" + deeper * 200_000))
    refusal(op.pickle(b"}" + b")" + deeper * 200_000 + b"K\x01s"))
    refusal(op.pickle(b"]" * 200_000 + b"a" * 199_999))


def test_dicts_that_hold_themselves_are_no_trap(op, refusal):
    assert "it holds 'state_dict'" in refusal(op.pickle(b"}q\x00" + op.text("state_dict") + b"h\x00s"))


def test_very_many_empty_dicts_stay_within_a_bound(op, refusal):
    tracemalloc.start()
    try:
        refusal(op.pickle(b"](" + b"}" * (1 << 17) + b"e"))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_long_texts_cannot_be_multiplied_into_memory(op, refusal):
    def peak(pickled: bytes) -> int:
        tracemalloc.start()
        try:
            refusal(pickled)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    remembered = op.text("a" * 100_000) + b"q\x00"
    globals_ = b"".join(b"h\x00" + op.text(str(number)) + b"\x93" for number in range(1000))
    assert peak(op.pickle(remembered + globals_)) < 4 << 20
    many = op.pickle(b"".join(op.named("os", str(number)) for number in range(20_000)))
    assert peak(many) < 4 << 20
    storage = b"(" + op.text("storage") + op.named("torch", "FloatStorage") + b"h\x00" + op.text("cpu") + b"K\x01tQ"
    tensors = {str(number): op.tensor(storage, 0, [1], [1]) for number in range(1000)}
    assert peak(op.pickle(remembered + op.entries(tensors))) < 4 << 20


def test_names_of_storages_cannot_leave_the_archive(op, refusal):
    for key in ("../data.pkl", "archive/data.pkl", "/etc/passwd"):
        tensor = op.tensor(op.storage("Byte", key, 1), 0, [1], [1])
        message = refusal(op.pickle(op.entries({"w": tensor})))
        assert f"member data/{key} of the archive, is missing" in message


def test_ordinary_pickles_are_refused_unread(tmp_path):
    path = tmp_path / "model.bin"
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps(OrderedDict(w=Reduced(os.system, f"touch {tmp_path / 'trace'}")), protocol))
        with pytest.raises(CheckpointError, match=r"is a pickle, which could run any code"):
            open_checkpoint(path)
    assert not (tmp_path / "trace").exists()
