"""`altclip embed` into a folder: what it says, and that neither a kill nor many processes change what is there."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from altclip_jax import cli

SMALL = ("--part-items", "2", "--batch-size", "2", "--tokens", "64")


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_corpus_becomes_a_folder(capsys, mixed, tmp_path):
    inputs = [mixed / name for name in ("pictures", "list.jsonl", "*.tar", "captions.txt")]
    code, out, _ = run(capsys, "embed", *inputs, "--output", tmp_path / "store", "--json")
    assert code == 0
    assert json.loads(out) == {
        "output": str(tmp_path / "store"),
        "images": 10,
        "texts": 12,
        "unreadable": 7,
        "width": 128,
        "missing_parts": 0,
        "unreadable_list": str(tmp_path / "store" / "unreadable.jsonl"),
    }
    code, _, err = run(capsys, "embed", *inputs, "--output", tmp_path / "store")
    assert (code, "--resume" in err) == (1, True)
    code, out, _ = run(capsys, "embed", *inputs, "--output", tmp_path / "store", "--resume")
    assert code == 0
    assert out.splitlines()[0].endswith("10 pictures and 12 texts, 128 numbers each")
    assert "7 could not be read" in out
    code, out, _ = run(capsys, "embed", *inputs, "--output", f"{tmp_path}/v1.0/", "--only", "images", "--json")
    assert (code, json.loads(out)["texts"]) == (0, 0)


def test_captions_on_standard_input_are_read_once(capsys, monkeypatch, tmp_path):
    store = tmp_path / "store"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("猫\ncat\n".encode())))
    assert run(capsys, "embed", "-", "--output", store)[0] == 0
    before = snapshot(store)
    (store / "part-00000.json").unlink()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    assert run(capsys, "embed", "-", "--output", store, "--resume")[0] == 0
    assert snapshot(store) == before
    # a run that ended before it began a store has left what it read; another one does not take it for its own
    (store / "store.json").unlink()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"dog\n")))
    assert run(capsys, "embed", "-", "--output", store)[0] == 0
    assert (store / "standard_input.txt").read_bytes() == b"dog\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--output", "store"), "nothing to embed"),
        (("--texts", "a", "--output", "store"), "from standard input"),
        (("a.zip", "--output", "store"), "no file a.zip"),
        (("-", "--output", "store", "--processes", "2", "--process", "0"), "cannot share standard input"),
        (("-", "--output", "store", "--processes", "2", "--process", "2"), "from 0 to 1"),
        (("--texts", "a", "--output", "x.npz", "--resume"), "--resume is for a folder"),
    ],
)
def test_mistakes_are_sentences(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "embed", *arguments)
    assert (code, out) == (1, "")
    assert words in err


def test_processes_that_do_not_know_each_other_make_one_store(capsys, mixed, tmp_path):
    inputs = (mixed / "pictures", mixed / "captions.txt")
    run(capsys, "embed", *inputs, "--output", tmp_path / "one", *SMALL)
    _, out, _ = run(capsys, "embed", *inputs, "--output", tmp_path / "two", *SMALL, "--processes", 2, "--process", 1)
    assert "parts are still to come" in out
    run(capsys, "embed", *inputs, "--output", tmp_path / "two", *SMALL, "--processes", 2, "--process", 0)
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("compiled"))
    return {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(*arguments):
    return [sys.executable, "-m", "altclip_jax", *map(str, arguments)]


def test_a_launch_makes_one_store(environment, mixed, tmp_path):
    inputs = (mixed / "pictures", mixed / "captions.txt")
    for name, before in (("one", ()), ("two", ("launch", "-n", "2", "--"))):
        done = subprocess.run(
            command(*before, "embed", *inputs, "--output", tmp_path / name, *SMALL, "--json"),
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert json.loads(done.stdout)["missing_parts"] == 0
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")


def test_no_kill_changes_what_is_there(environment, pictures, tmp_path):
    # scripts/kill_embedding.py does the same many times
    records = [{"image": str(pictures[number % 36]), "caption": f"number {number}"} for number in range(1200)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    embed = ("embed", tmp_path / "list.jsonl", "--part-items", 12, "--batch-size", 4, "--tokens", 64, "--output")
    subprocess.run(command(*embed, tmp_path / "whole"), env=environment, check=True, capture_output=True)
    moments, killed = random.Random(0), []
    for parts in (1, 40, 80):
        process = subprocess.Popen(command(*embed, tmp_path / "killed", "--resume"), env=environment)
        while len(list(tmp_path.glob("killed/part-*.json"))) < parts:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed.append(len(list(tmp_path.glob("killed/part-*.json"))))
    assert killed == sorted(set(killed))
    assert killed[-1] < 100
    subprocess.run(command(*embed, tmp_path / "killed", "--resume"), env=environment, check=True, capture_output=True)
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "whole")
    lists = [path.read_text().splitlines() for path in sorted(tmp_path.glob("killed/*.images.jsonl"))]
    rows = [json.loads(line) for lines in lists for line in lines]
    assert [row["item"] for row in rows] == list(range(1200))
    assert sum(len(np.load(path)) for path in tmp_path.glob("killed/*.images.npy")) == 1200
