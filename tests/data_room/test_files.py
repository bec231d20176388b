"""Files that many threads read in pieces."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from altclip_jax.data.files import GoneError, NamedFiles, OpenFiles


@pytest.fixture
def files(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * 1000)
    return sorted(tmp_path.iterdir())


def test_many_threads_read_more_files_than_are_kept_open(files):
    pool, many = OpenFiles(limit=2), [files[index % 6] for index in range(600)]
    with ThreadPoolExecutor(8) as threads:
        pieces = list(threads.map(lambda path: pool.read(path, 990, 20), many))
    assert pieces == [bytes([index % 6]) * 10 for index in range(600)]


def test_no_more_files_stay_open_than_were_asked_for_and_none_after_it(files, monkeypatch):
    names, opened, closed = {}, os.open, os.close

    def noted(path, flags):
        number = opened(path, flags)
        names[number] = path
        return number

    def forgotten(number):
        closed(number)
        del names[number]

    monkeypatch.setattr(os, "open", noted)
    monkeypatch.setattr(os, "close", forgotten)
    pool = OpenFiles(limit=2)
    for path in files:
        pool.read(path, 0, 1)
    assert sorted(names.values()) == files[-2:]
    del pool
    assert not names


def test_a_pickled_pool_opens_its_own_files(files):
    pool = OpenFiles()
    pool.read(files[1], 0, 1)
    assert pickle.loads(pickle.dumps(pool)).read(files[1], 0, 2) == b"\1\1"


def test_an_interpreter_that_ends_with_open_files_says_nothing(files):
    program = (
        "import _weakref, codecs, io, sys; from pathlib import Path; from altclip_jax.data.files import OpenFiles\n"
        "pool = OpenFiles(); pool.read(Path(sys.argv[1]), 0, 1)\n"
        "for module in (_weakref, codecs, io): module.kept = pool\n"  # some of them outlive os
    )
    done = subprocess.run([sys.executable, "-c", program, files[0]], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_file_that_is_gone_before_it_is_opened_again_is_no_bad_sample(files):
    pool = OpenFiles(limit=1)
    pool.read(files[0], 0, 1)
    files[0].unlink()
    assert pool.read(files[0], 0, 1) == b"\0"  # it is still open
    pool.read(files[1], 0, 1)
    with pytest.raises(
        GoneError, match=rf"{files[0]} cannot be read any more \(No such file or directory\)\. Bring it"
    ):
        pool.read(files[0], 0, 1)


def test_a_missing_file_is_told_from_a_missing_disk(files, tmp_path):
    named, listed = NamedFiles(), files[0]
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        named.read(tmp_path / "absent.png", listed)
    assert named.read(files[1], listed) == bytes([1]) * 1000
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        named.read(tmp_path / "absent.png", listed)
    files[1].unlink()  # the list may lie elsewhere
    with pytest.raises(GoneError, match=rf"absent\.png cannot be read \(.*\), and {files[1]}, which was there before"):
        named.read(tmp_path / "absent.png", listed)
    listed.unlink()
    with pytest.raises(GoneError, match=rf"absent\.png cannot be read \(.*\), and {listed}, which was there before"):
        named.read(tmp_path / "absent.png", listed)
