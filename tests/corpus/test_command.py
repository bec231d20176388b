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


def test_what_is_read_and_what_others_wrote_stay(capsys, monkeypatch, pictures, tmp_path):
    monkeypatch.chdir(tmp_path)
    lake, elsewhere = tmp_path / "lake", tmp_path / "lists"
    for folder in (lake, elsewhere):
        folder.mkdir()
    for path in (lake / "part-00000.jsonl", elsewhere / "list.jsonl"):
        path.write_text(json.dumps({"image": str(lake / "a.png"), "caption": "a"}), encoding="utf-8")
    (lake / "a.png").write_bytes(pictures[0].read_bytes())
    (lake / "part-00000.backup.csv").write_text("precious")
    (lake / "standard_input.txt").write_text("of the user")
    before = snapshot(lake)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"dog\n")))
    for given, words in (
        ("lake/part-00000.jsonl", "lake/part-00000.jsonl is read, and is in lake"),
        ("lake", "lake is read, and is to be written"),
        ("lists/list.jsonl", "is not empty, and `altclip embed` has not written what is there (a.png, "),
        ("-", "is not empty, and `altclip embed` has not written"),
    ):
        code, _, err = run(capsys, "embed", given, "--output", "lake")
        assert (code, words in err) == (1, True), err
        assert snapshot(lake) == before


def test_what_lies_in_a_store_is_not_embedded_into_it(capsys, pictures, tmp_path):
    store, listed = tmp_path / "store", tmp_path / "list.jsonl"
    store.mkdir()
    listed.write_text(json.dumps({"image": "link/a.png"}), encoding="utf-8")
    (tmp_path / "link").symlink_to(store)
    code, _, err = run(capsys, "embed", listed, "--output", store)
    assert (code, f"{tmp_path / 'link/a.png'} is read, and is in {store}" in err) == (1, True), err
    # what version 0.1.0 made of a folder of data: a store without a marker
    (store / ".altclip_jax.json").unlink()
    data = store / "part-00000.jsonl"
    data.write_bytes(pictures[0].read_bytes())
    code, _, err = run(capsys, "embed", data, "--output", store, "--resume")
    assert (code, f"{data} is read, and is in {store}" in err) == (1, True), err
    assert data.read_bytes() == pictures[0].read_bytes()


def test_a_file_of_embeddings_does_not_replace_a_picture(capsys, pictures, tmp_path):
    picture = tmp_path / "picture.npz"
    picture.write_bytes(pictures[0].read_bytes())
    code, _, err = run(capsys, "embed", picture, "--output", picture)
    assert (code, "is read, and is to be written" in err) == (1, True)
    assert picture.read_bytes() == pictures[0].read_bytes()


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
    # scripts/campaigns/kill_embedding.py does the same many times
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
