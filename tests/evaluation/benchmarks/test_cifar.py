"""CIFAR-10's pickles, and what else a pickle may ask for."""

import os
import pickle
import pickletools

import numpy as np
import pytest

from altclip_jax.evaluation.benchmarks.cifar import cifar10, read_pickle

# As Python 2 and its numpy wrote them: byte strings (U, T), and numpy.core.multiarray.
_PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
    b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
    b"tb\x89T\x06\x00\x00\x00\x00\x01\x02\xfd\xfe\xfftbU\x06labelsq\x08]q\x09(K\x07K\x01eu."
)


def test_pictures_are_those_in_the_rows(data, decoded):
    labelled, classes = cifar10(data / "cifar-10-batches-py")
    assert classes.keys[:3] == ("airplane", "automobile", "bird")
    assert [label for _, label in labelled][:12] == [*classes.keys, "airplane", "automobile"]
    rows = np.random.default_rng(0).integers(0, 256, (20, 3072), np.uint8)
    # the row has the red plane first, then green and blue
    np.testing.assert_array_equal(decoded(labelled[7].picture), rows[7].reshape(3, 32, 32).transpose(1, 2, 0))


def test_pickles_of_python_2_are_read(tmp_path):
    (tmp_path / "a").write_bytes(_PYTHON_2)
    values = read_pickle(tmp_path / "a")
    np.testing.assert_array_equal(values["data"], [[0, 1, 2], [253, 254, 255]])
    assert values["labels"] == [7, 1]
    expected = pickle.loads(_PYTHON_2, encoding="bytes")
    np.testing.assert_array_equal(values["data"], expected[b"data"])


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_that_were_written_again_are_read(tmp_path, protocol):
    rows = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "a").write_bytes(pickle.dumps({"data": rows}, protocol=protocol))
    np.testing.assert_array_equal(read_pickle(tmp_path / "a")["data"], rows)


class Runs:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize(
    "hostile",
    [
        Runs(os.system, "touch {path}"),
        Runs(eval, "open('{path}', 'w')"),
        Runs(np.fromfile, "{path}"),
        {"data": Runs(getattr, "a", "upper")},
    ],
)
def test_nothing_in_a_pickle_is_run(tmp_path, hostile):
    path = tmp_path / "ran"
    data = pickle.dumps(hostile, protocol=2).replace(b"{path}", str(path).encode())
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=r"no pickle|asks for .*nothing of it was run"):
        read_pickle(tmp_path / "a")
    assert not path.exists()


def test_what_stands_for_numpy_cannot_be_misused(tmp_path):
    """Calls with other arguments, attributes set on a function, and arrays of objects or of the wrong size."""
    reconstruct, dtype = b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\ndtype\n"
    array = reconstruct + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    for body in (
        dtype + b"U\x01O\x85R",
        reconstruct + b"cnumpy\ndtype\nK\x00\x85U\x01b\x87R",
        reconstruct + b"}U\x01aK\x01sb",
        array + b"(K\x01K\x02K\x03\x86NU\x01b\x89U\x06abcdeftb",
        array + b"(K\x01K\x02K\x04\x86" + dtype + b"U\x02u1K\x00K\x01\x87R\x89U\x06abcdeftb",
        dtype + b"\x81",
    ):
        data = b"\x80\x02" + body + b"."
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(ValueError, match="no pickle as CIFAR-10 has them"):
            read_pickle(tmp_path / "a")


def test_a_few_bytes_do_not_fill_memory(tmp_path):
    """A value remembered under a number of four bytes, or of eight bytes' length."""
    (tmp_path / "a").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    assert read_pickle(tmp_path / "a") == {}
    for code in (b"\x8e", b"\x8d", b"\x95"):
        (tmp_path / "a").write_bytes(b"\x80\x04" + code + b"\xff\xff\xff\xff\xff\xff\xff\x00abc.")
        with pytest.raises(ValueError, match="no pickle as CIFAR-10 has them"):
            read_pickle(tmp_path / "a")


def test_damaged_pickles_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    cut = [_PYTHON_2[:length] for length in range(0, len(_PYTHON_2), 7)]
    for data in (*cut, *(bytes(_changed(rng)) for _ in range(300))):
        (tmp_path / "a").write_bytes(data)
        try:
            read_pickle(tmp_path / "a")
        except ValueError as error:
            assert str(tmp_path / "a") in str(error)  # noqa: PT017
    assert "REDUCE" in {operation.name for operation, *_ in pickletools.genops(_PYTHON_2)}


def _changed(rng):
    data = bytearray(_PYTHON_2)
    data[rng.integers(2, len(data))] = rng.integers(0, 256)
    return data


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"labels": [1]}, "no data that is a ndarray, among labels"),
        ({"labels": [10] * 2, "data": np.zeros((2, 3072), np.uint8)}, "labels from 0 to 9"),
        ({"labels": [1], "data": np.zeros((2, 3072), np.uint8)}, "1 labels and an array"),
        ([1], "holds a list"),
    ],
)
def test_other_contents_are_refused(data, tmp_path, fields, words):
    (tmp_path / "batches.meta").write_bytes((data / "cifar-10-batches-py" / "batches.meta").read_bytes())
    (tmp_path / "test_batch").write_bytes(pickle.dumps(fields, protocol=2))
    with pytest.raises(ValueError, match=words):
        cifar10(tmp_path)


@pytest.mark.parametrize("depth", [10, 1_000_000])
def test_a_pickle_that_nests_too_deep_is_refused(tmp_path, depth):
    """Python computes the hash of a key by going down into it, to the end of the process' stack."""
    (tmp_path / "test_batch").write_bytes(b"\x80\x02})" + b"\x85" * depth + b"K\x01s.")
    with pytest.raises(ValueError, match="is no pickle as CIFAR-10 has them"):
        read_pickle(tmp_path / "test_batch")
