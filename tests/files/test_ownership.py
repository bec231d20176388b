"""Only a folder of ours, or an empty one, is written into; and what is read is never written over."""

import json
import os

import pytest

from altclip_jax import checkpoints
from altclip_jax.assets import default_checkpoint
from altclip_jax.files.ownership import MARKER, claim, containing, keep_apart, kind_of


def content(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def write(path, text="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_an_empty_folder_becomes_ours_and_stays_so(tmp_path):
    for folder in (tmp_path / "a" / "new", tmp_path):
        claim(folder / "own", "store")
        write(folder / "own" / "more.txt")
        claim(folder / "own", "store")
        assert kind_of(folder / "own") == "store"


def test_what_counts_as_nothing(tmp_path):
    """A fresh file system, a run of 0.1.0 that died at once, and files that never had their names."""
    (tmp_path / "lost+found").mkdir()
    for name in (".lock", ".DS_Store", f".{MARKER}.0123abcd.tmp", ".a.0123abcd.old"):
        write(tmp_path / name, "")
    claim(tmp_path, "run")
    assert kind_of(tmp_path) == "run"


@pytest.mark.parametrize("kind", ["store", "run", "index", "programs"])
@pytest.mark.parametrize("name", ["notes.txt", "features/mine.npy", "part-00000.images.npy", ".hidden", "store.json"])
def test_a_folder_of_others_is_refused_and_left_as_it_is(tmp_path, kind, name):
    write(tmp_path / name)
    before = content(tmp_path)
    there = name.split("/")[0]
    with pytest.raises(FileExistsError, match=rf"is not empty, and `altclip .*\({there}\), so it changes nothing"):
        claim(tmp_path, kind)
    assert content(tmp_path) == before


WITHOUT_MARKER = {
    "store": {"store.json": {"fingerprint": "0", "part_items": 4}},
    "run": {"config.json": {"stage": "teacher", "steps": 3}, "locked/vision_model/_METADATA": {}},
    "index": {"texts.index.json": {"fingerprint": "0", "rows": 2}},
    "programs": {"manifest.json": {"format": "altclip_jax.programs"}},
}


@pytest.mark.parametrize("kind", WITHOUT_MARKER)
def test_what_0_1_0_wrote_is_known_and_gets_the_marker(tmp_path, kind):
    for name, values in WITHOUT_MARKER[kind].items():
        write(tmp_path / name, json.dumps(values))
    with pytest.raises(FileExistsError, match=r"was written by `altclip .* name another folder"):
        claim(tmp_path, "index" if kind == "store" else "store")
    assert not (tmp_path / MARKER).exists()
    claim(tmp_path, kind)
    assert json.loads((tmp_path / MARKER).read_text()) == {"kind": kind, "version": 1}


@pytest.mark.parametrize("form", ["safetensors", "orbax"])
@pytest.mark.parametrize("kind", WITHOUT_MARKER)
def test_a_model_does_not_take_the_place_of_a_run(tmp_path, kind, form):
    for name, values in WITHOUT_MARKER[kind].items():
        write(tmp_path / name, json.dumps(values))
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=r"was written by `altclip .*a model would take the place of its files"):
        checkpoints.convert(default_checkpoint(), tmp_path, form=form)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "names",
    [("config.json",), ("checkpoints/1/x",), ("config.json", "features/x"), ("config.json", "checkpoints")],
)
def test_half_of_a_run_is_none(tmp_path, names):
    for name in names:
        write(tmp_path / name, json.dumps({"stage": "teacher", "steps": 3}))
    with pytest.raises(FileExistsError, match="is not empty"):
        claim(tmp_path, "run")


def test_a_marker_of_a_later_version_is_not_guessed(tmp_path):
    write(tmp_path / MARKER, json.dumps({"kind": "store", "version": 2}))
    with pytest.raises(ValueError, match="another version of altclip_jax"):
        claim(tmp_path, "store")


def test_what_is_read_is_found_under_all_its_names(tmp_path, monkeypatch):
    output, data = tmp_path / "output", tmp_path / "output" / "deep" / "data.jsonl"
    write(data)
    write(tmp_path / "beside.jsonl")
    (tmp_path / "link").symlink_to(output)
    (tmp_path / "linked.jsonl").symlink_to(data)
    monkeypatch.chdir(output / "deep")
    same = [data, tmp_path / "link/deep/data.jsonl", tmp_path / "linked.jsonl", "data.jsonl", "../deep", str(output)]
    for path in same:
        with pytest.raises(ValueError, match="name another output"):
            keep_apart([tmp_path / "beside.jsonl", path], tmp_path / "link")
    with pytest.raises(ValueError, match="is read, and is to be written"):
        keep_apart([tmp_path / "linked.jsonl"], data)
    keep_apart([tmp_path / "beside.jsonl", tmp_path, "../../absent"], output, tmp_path / "absent")


def test_names_in_another_case_are_the_same_where_the_file_system_says_so(tmp_path, monkeypatch):
    write(tmp_path / "Lake" / "data.jsonl")
    plain = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, *args, **kwargs: plain(str(path).replace("lake", "Lake"), *args, **kwargs)
    )
    assert containing(tmp_path / "lake")(tmp_path / "Lake" / "data.jsonl") == tmp_path / "lake"
    assert containing(tmp_path / "Lake")(tmp_path / "lake" / "data.jsonl") == tmp_path / "Lake"
