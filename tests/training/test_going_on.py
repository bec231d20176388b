"""Runs that go on from another place, in another release, and after their data were gone."""

import json
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest

from altclip_jax import AltCLIPModel, CLIPModel
from altclip_jax.cli import main
from altclip_jax.data.files import GoneError
from altclip_jax.training.config import RunConfig
from altclip_jax.training.description import BEFORE, describe, files_of, flatten_description, read_description
from altclip_jax.training.log import RunLog
from altclip_jax.training.loop import train
from altclip_jax.weights.convert import flatten

PAST = Path(__file__).parents[1] / "data" / "run_0_1_0" / "runs.tar.xz"
NEW = ["steps=12", "evaluation.every=6", "data.prefetch=1"]  # what happens in a step is met soon after


@pytest.fixture
def past(tmp_path):
    """What release 0.1.0 wrote under /mnt/first: data, models, interrupted runs, and the ends of undisturbed ones."""
    return unpacked(tmp_path)


def unpacked(folder):
    with tarfile.open(PAST) as tar:
        tar.extractall(folder / "first", filter="data")
    return folder / "first"


def read(place, name, *overrides, folder=None):
    folder = place / "runs" / name if folder is None else folder
    return RunConfig.read(place / "runs" / f"{name}.toml", [f"folder={folder}", *overrides])


def log_of(file):
    """What is told of each step but for its speed, under the step and what it is."""
    entries = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    return {
        (entry["step"], name): value
        for entry in entries
        for name, value in {**entry, **entry.get("evaluation", {})}.items()
        if name not in ("evaluation", "samples_per_second", "waiting")
    }


def stopped_after(step, config, monkeypatch, stop=lambda: signal.raise_signal(signal.SIGTERM)):
    tell = RunLog.train

    def then_stop(self, at, metrics, left):
        tell(self, at, metrics, left)
        if at == step:
            stop()

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "train", then_stop)
        return train(config, quiet=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The log and the weights of a new run that nothing happened to."""
    place = unpacked(tmp_path_factory.mktemp("undisturbed"))
    config = read(place, "pictures", *NEW, folder=place / "new")
    train(config, quiet=True)
    return outcome(config)


def outcome(config):
    folder = Path(config.folder)
    return log_of(folder / "metrics.jsonl"), (folder / "export/model.safetensors").read_bytes()


def changed(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("features/*.npy")}


@pytest.mark.parametrize("name", ["pictures", "stored", "teacher"])
def test_a_run_of_0_1_0_goes_on_elsewhere_to_its_own_end(past, name):
    config = read(past, name)
    before = changed(past / "runs" / name)
    assert train(config, quiet=True).step == 6
    assert changed(past / "runs" / name) == before
    log, end = log_of(past / "runs" / name / "metrics.jsonl"), log_of(past / "ends" / f"{name}.jsonl")
    assert log.keys() == end.keys()
    np.testing.assert_allclose(list(log.values()), list(end.values()), rtol=2e-5, atol=1e-12)
    ours, theirs = (
        flatten(AltCLIPModel.from_pretrained(place)[1]) for place in (config.folder + "/export", ended(past, name))
    )
    for path in theirs:
        np.testing.assert_allclose(ours[path], theirs[path], atol=3e-5, rtol=0, err_msg=path)


def ended(past, name):
    """The folder of the model that the undisturbed run ended with."""
    folder = past / "ended" / name
    shutil.copytree(past / "runs" / name / "model", folder)
    return shutil.copy(past / "ends" / f"{name}.safetensors", folder / "model.safetensors") and folder


def test_a_run_of_0_1_0_is_exported(past, tmp_path, capsys):
    assert main(["export", str(past / "runs" / "pictures"), str(tmp_path / "out")]) == 0
    assert "step 3" in capsys.readouterr().out
    exported, source = (
        flatten(AltCLIPModel.from_pretrained(at)[1]) for at in (tmp_path / "out", past / "models/student")
    )
    same = {path.split("/")[0] for path in source if np.array_equal(exported[path], source[path])}
    assert same == {"vision_model", "visual_projection"}


def test_what_a_run_of_0_1_0_did_with_photos_on_their_side_is_not_changed_unasked(past):
    with pytest.raises(ValueError, match=r"its own -> yours\):\n  - data.orientation: 'stored' -> 'exif'\nGo on"):
        train(read(past, "pictures", "data.orientation=exif"), quiet=True)


def test_every_setting_that_0_1_0_did_not_know_has_a_row_with_what_it_did(past):
    """Whoever adds one says in `BEFORE` what runs did until then; a setting of sources or rules needs a place there."""
    for name in ("pictures", "teacher"):
        then = json.loads((past / "runs" / name / "checkpoints/3/config/metadata").read_text())
        config = read(past, name)
        now = describe(config, files_of(config.data.train))
        read_of_then = flatten_description(read_description(then))
        assert flatten_description(now).keys() == read_of_then.keys()
        known = {key for key in flatten_description({**then, "files": []}) if not key.startswith("files")}
        new = {
            key
            for key in flatten_description(now)
            if key not in known and not key.startswith("written_by") and ".files" not in key
        }
        assert new == set(BEFORE)
        assert {key: read_of_then[key] for key in BEFORE} == BEFORE


def test_a_new_run_turns_photos_as_their_exif_says_and_an_old_one_does_not(past):
    rows = {}
    for orientation in ("exif", "stored"):
        config = read(past, "stored", f"data.orientation={orientation}", "steps=1", folder=past / orientation)
        train(config, quiet=True)
        rows[orientation] = np.load(past / orientation / "features/image_train.npy")
    differs = (rows["exif"] != rows["stored"]).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(differs), range(0, 18, 3))
    np.testing.assert_allclose(rows["stored"], np.load(past / "runs/stored/features/image_train.npy"), atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("data.train.0.path", "other.jsonl"), ("model.source", "other")])
def test_another_file_or_model_in_the_same_place_is_refused(past, name, value):
    shutil.copy(past / "data/list.jsonl", past / "data/other.jsonl")
    place = {"data.train.0.path": past / "data", "model.source": past / "models"}[name]
    with pytest.raises(ValueError, match=r"started with other settings.*(?s:.*)other"):
        train(read(past, "pictures", f"{name}={place / value}"), quiet=True)


def test_a_run_that_moves_with_its_data_and_models_ends_bit_for_bit(past, undisturbed, monkeypatch):
    half = read(past, "pictures", *NEW, folder=past / "new")
    assert stopped_after(4, half, monkeypatch).step == 4
    elsewhere = past.rename(past.parent / "second")
    shutil.rmtree(elsewhere / "models")
    moved = read(elsewhere, "pictures", *NEW, folder=elsewhere / "new")
    assert train(moved, quiet=True).step == 12
    assert outcome(moved) == undisturbed


@pytest.mark.parametrize(("step", "saved"), [(1, range(2, 6)), (6, [6])], ids=["in a batch", "in an evaluation"])
def test_a_run_whose_data_go_is_saved_and_ends_bit_for_bit_when_they_are_back(
    past, undisturbed, monkeypatch, step, saved
):
    config, data = read(past, "pictures", *NEW, folder=past / "new"), past / "data"
    with pytest.raises(GoneError, match=rf"{data}/photos/\w+\.jpg cannot be read \(.*\), and {data}/list\.jsonl"):
        stopped_after(step, config, monkeypatch, lambda: data.rename(past / "gone"))
    (last,) = (past / "new" / "checkpoints").iterdir()
    assert int(last.name) in saved
    assert not (past / "new" / "bad_samples.jsonl").exists()
    with pytest.raises(FileNotFoundError, match=r"(?s)no file .*list\.jsonl.*no file .*shards/\*\.tar"):
        train(config, quiet=True)
    (past / "gone").rename(data)
    assert train(config, quiet=True).step == 12
    assert outcome(config) == undisturbed


def test_another_teacher_under_the_same_name_is_refused_and_the_same_one_elsewhere_is_not(past, monkeypatch):
    assert stopped_after(3, read(past, "teacher", folder=past / "new"), monkeypatch).step == 3
    (past / "models" / "clip").rename(past / "clip")
    elsewhere = read(past, "teacher", f"teacher.source={past / 'clip'}", folder=past / "new")
    assert stopped_after(4, elsewhere, monkeypatch).step == 4
    model, params = CLIPModel.from_pretrained(past / "clip")
    params["text_model"]["token_embedding"]["embedding"] *= 2
    model.save_pretrained(past / "clip", params)
    with pytest.raises(
        ValueError, match=rf"teacher in {past}/clip is not the one that the run in {past}/new began with"
    ):
        train(elsewhere, quiet=True)
