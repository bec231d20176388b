"""Whole runs, small ones: what they learn, keep, say and refuse."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIP, AltCLIPImageProcessor, AltCLIPModel, CLIPModel, sweep
from altclip_jax.assets import default_checkpoint
from altclip_jax.data.bad_samples import TooManyBadSamples
from altclip_jax.data.records import ImageTextRecords
from altclip_jax.parallel import make_mesh, param_shardings, placed
from altclip_jax.training.checkpoint import CheckpointStore
from altclip_jax.training.config import RunConfig
from altclip_jax.training.log import RunLog
from altclip_jax.training.loop import NotFinite, train
from altclip_jax.training.run_folder import begin, export, hold
from altclip_jax.training.streams import Lookup
from altclip_jax.weights.convert import flatten


def log_of(config):
    return [json.loads(line) for line in (Path(config.folder) / "metrics.jsonl").read_text().splitlines()]


def losses(config):
    return [entry["loss"] for entry in log_of(config) if "loss" in entry]


def weights(config, name):
    return (Path(config.folder) / name / "model.safetensors").read_bytes()


def steps_kept(config):
    with CheckpointStore(Path(config.folder), config.checkpoints) as store:
        return store.steps()


def test_a_contrastive_run_learns_evaluates_and_exports(settings, workshop):
    source = [{"path": str(workshop / "pictures.jsonl")}]
    config = settings(
        steps=40,
        model__source=str(default_checkpoint()),
        data__evaluate=source,
        evaluation__every=20,
        checkpoints__every=20,
        optimizer__learning_rate=3e-4,  # at 1e-3 the embedded model, which knows these pictures, forgets some
    )
    outcome = train(config, quiet=True)
    assert (outcome.step, outcome.stopped_by) == (40, None)
    assert np.mean(losses(config)[-10:]) < np.mean(losses(config)[:10]) - 0.03
    assert [entry["step"] for entry in log_of(config) if "evaluation" in entry] == [20, 40]
    assert outcome.metrics["chance@1"] == pytest.approx(1 / 18)
    assert outcome.metrics["mean_recall"] > 0.9
    assert outcome.metrics["samples_per_second"] > 0
    assert 0 < outcome.metrics["share_of_peak"] < 2
    clip = AltCLIP.from_pretrained(outcome.exported)
    text = clip.encode_text(["rocket"])
    assert text.shape == (1, 128)


def test_a_text_tower_of_random_values_learns(settings):
    fresh = {"model__source": str(default_checkpoint()), "model__fresh": ["text_model"]}
    config = settings(steps=40, **fresh, optimizer__learning_rate=1e-3, checkpoints__every=40)
    train(config, quiet=True)
    assert np.mean(losses(config)[-10:]) < np.mean(losses(config)[:10]) - 1.5


def test_the_exported_model_is_the_last_state_with_the_locked_parts_of_the_source(settings, workshop):
    config = settings(steps=4)
    outcome = train(config, quiet=True)
    before = flatten(AltCLIPModel.from_pretrained(workshop / "student")[1])
    model, params = AltCLIPModel.from_pretrained(outcome.exported)
    after = flatten(params)
    for path in before:
        same = np.array_equal(before[path], after[path])
        assert same == path.startswith(("vision_model", "visual_projection")), path
    with CheckpointStore(Path(config.folder), config.checkpoints) as store:
        trained = {name: model.param_shapes()[name] for name in ("text_model", "text_projection", "logit_scale")}
        here = make_mesh(devices=jax.devices()[:1])
        stored = flatten(store.params(4, placed(trained, param_shardings(here, trained))))
    for path, leaf in stored.items():
        np.testing.assert_array_equal(leaf, after[path])


@pytest.mark.parametrize("changes", [{}, {"teacher__store": False}, {"teacher__target": "projected"}])
def test_teacher_learning_lowers_the_error(settings, workshop, changes):
    source = [{"path": str(workshop / "parallel.tsv")}]
    config = settings("teacher", steps=30, data__evaluate=source, checkpoints__every=30, **changes)
    outcome = train(config, quiet=True)
    assert losses(config)[-1] < 0.7 * losses(config)[0]
    assert outcome.metrics["loss"] < 0.7 * losses(config)[0]
    assert {"zh/loss", "fr/text_to_teacher@1", "chance@1"} <= outcome.metrics.keys()


def test_stored_teacher_features_give_the_losses_of_those_computed_in_the_step(settings, tmp_path):
    stored = settings("teacher", folder=str(tmp_path / "stored"))
    computed = settings("teacher", folder=str(tmp_path / "computed"), teacher__store=False)
    train(stored, quiet=True)
    train(computed, quiet=True)
    np.testing.assert_allclose(losses(stored), losses(computed), rtol=1e-5)
    assert not (tmp_path / "computed" / "features").exists()


def test_stored_image_features_give_the_losses_of_those_computed_in_the_step(settings, tmp_path):
    stored = settings(folder=str(tmp_path / "stored"))
    computed = settings(folder=str(tmp_path / "computed"), data__store_image_features=False)
    train(stored, quiet=True)
    train(computed, quiet=True)
    np.testing.assert_allclose(losses(stored), losses(computed), rtol=1e-5)


def test_a_clip_is_trained_from_scratch_with_augmentation_average_and_muon(settings, workshop):
    config = settings(
        steps=12,
        model__source=str(workshop / "clip"),
        model__train=["text_model", "vision_model", "text_projection", "visual_projection", "logit_scale"],
        data__augmentation={"shift": 0.1, "scale": [0.9, 1.1], "background": 0.5},
        optimizer__name="muon",
        optimizer__ema_decay=0.5,
        model__remat="full",
    )
    outcome = train(config, quiet=True)
    assert losses(config)[-1] < losses(config)[0]
    model, averaged = CLIPModel.from_pretrained(outcome.exported)
    clip = AltCLIP.from_pretrained(outcome.exported)
    assert isinstance(clip.model, CLIPModel)
    batch = clip.processor(text=["rocket", "red apple"], padding=True)
    states = model.apply({"params": averaged}, **batch, method="get_text_features")
    expected = states / np.linalg.norm(states, axis=1, keepdims=True)
    np.testing.assert_allclose(clip.encode_text(["rocket", "red apple"]), expected, atol=1e-5)
    export(config.folder, Path(config.folder) / "last", average=False)
    _, last = CLIPModel.from_pretrained(Path(config.folder) / "last")
    assert np.abs(averaged["text_projection"]["kernel"] - last["text_projection"]["kernel"]).max() > 1e-5


def test_a_run_goes_on_from_its_last_checkpoint_to_the_same_end(settings, workshop, tmp_path, monkeypatch):
    """The second half knows nothing of the first but the folder; the source of the model is gone."""
    changes = {"model__source": str(workshop / "forgetful"), "loss__micro_batches": 2}
    whole, half = (settings(folder=str(tmp_path / name), **changes) for name in ("whole", "half"))
    train(whole, quiet=True)
    stopped = interrupted_after(3, half, monkeypatch)
    assert (stopped.step, stopped.stopped_by, stopped.exported) == (3, "SIGTERM", None)
    monkeypatch.setattr("altclip_jax.training.run.begin", None)
    assert train(half, quiet=True).step == 6
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "half/export" / name).read_bytes() == (tmp_path / "whole/export" / name).read_bytes()
    assert losses(half) == losses(whole)


def interrupted_after(step, config, monkeypatch):
    tell = RunLog.train

    def then_stop(self, at, metrics, left):
        tell(self, at, metrics, left)
        if at == step:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "train", then_stop)
        return train(config, quiet=True)


def test_a_checkpoint_is_restored_onto_another_arrangement_of_devices(settings, tmp_path, monkeypatch):
    whole = settings(folder=str(tmp_path / "whole"))
    train(whole, quiet=True)
    half = settings(folder=str(tmp_path / "half"))
    interrupted_after(4, half, monkeypatch)
    again = settings(folder=str(tmp_path / "half"), mesh={"data": 2, "fsdp": 2, "tensor": 2})
    train(again, quiet=True)
    np.testing.assert_allclose(losses(again), losses(whole), rtol=2e-5)


def test_other_settings_than_those_of_the_checkpoint_are_refused_with_a_diff(settings):
    train(settings(), quiet=True)
    with pytest.raises(ValueError, match=r"(?s)other settings.*learning_rate: 0\.01 -> 0\.02.*seed: 0 -> 1"):
        train(settings(seed=1, optimizer__learning_rate=0.02), quiet=True)
    assert train(settings(logging__every=3), quiet=True).step == 6


def test_the_last_and_the_best_checkpoints_are_kept(settings, workshop):
    source = [{"path": str(workshop / "pictures.jsonl")}]
    config = settings(
        steps=10,
        data__evaluate=source,
        checkpoints={"every": 2, "keep_last": 1, "keep_best": 1, "metric": "loss", "mode": "max"},
    )
    train(config, quiet=True)
    evaluations = {entry["step"]: entry["evaluation"]["loss"] for entry in log_of(config) if "evaluation" in entry}
    worst = max(evaluations, key=evaluations.get)
    assert worst != 10
    assert steps_kept(config) == sorted({worst, 10})
    export(config.folder, Path(config.folder) / "of_worst", step=worst)
    assert weights(config, "export") == weights(config, "of_worst")


def test_an_update_that_is_not_finite_stops_the_run_and_names_its_samples(settings):
    """The gradient is finite here; what overflows is the update, in the second step."""
    rates = {"optimizer__learning_rate": 2e38, "optimizer__warmup_steps": 6, "optimizer__name": "sgd"}
    config = settings(**rates, optimizer__rules=[{"match": ".*", "factor": 1e3}], checkpoints__every=1)
    with pytest.raises(NotFinite, match=r"(?s)The update of step 1 is not finite .*pictures.jsonl:\d+.*model\.source="):
        train(config, quiet=True)
    assert steps_kept(config) == []
    with pytest.raises(NotFinite, match=r"The first update is not finite .*pictures.jsonl:\d+"):
        train(config, dry_run=True, quiet=True)


def test_what_is_not_finite_later_leaves_the_last_checkpoint(settings, monkeypatch):
    config = settings(checkpoints__every=2)
    stopped = interrupted_after(3, config, monkeypatch)
    assert stopped.step == 3
    plain = Lookup.add

    def broken(self, arrays):
        added = plain(self, arrays)
        return {**added, "image_features": np.full_like(added["image_features"], np.nan)}

    monkeypatch.setattr(Lookup, "add", broken)
    with pytest.raises(NotFinite, match=r"The update of step 4 is not finite .* the checkpoint of step 3 is as it was"):
        train(config, quiet=True)
    assert steps_kept(config) == [2, 3]


def test_an_error_in_evaluation_does_not_lose_the_state(settings, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("".join(json.dumps({"image": f"{i}.png", "caption": "x"}) + "\n" for i in range(30)))
    config = settings(data__evaluate=[{"path": str(broken)}], data__store_image_features=False, checkpoints__every=100)
    with pytest.raises(TooManyBadSamples):
        train(config, quiet=True)
    assert steps_kept(config) == [6]


def test_a_run_that_is_asked_to_stop_while_features_are_computed_goes_on_with_them(settings, tmp_path, monkeypatch):
    whole, half = (settings(folder=str(tmp_path / name), evaluation__batch_size=8) for name in ("whole", "half"))
    train(whole, quiet=True)
    read = []

    def stop_at_ten(self, index):
        read.append(index)
        if len(read) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, index)

    plain = ImageTextRecords.read
    with monkeypatch.context() as patch:
        patch.setattr(ImageTextRecords, "read", stop_at_ten)
        outcome = train(half, quiet=True)
    assert (outcome.step, outcome.stopped_by, outcome.exported) == (0, "SIGTERM", None)
    there = np.load(tmp_path / "half/features/image_train.there.npy")
    assert 0 < there.sum() < len(there)
    assert train(half, quiet=True).step == 6
    assert weights(half, "export") == weights(whole, "export")


def stopped_in_evaluation(step, config, monkeypatch):
    """Trains until a signal comes while a step is measured."""
    plain = sweep.join

    def stop(pieces, ids):
        if len(losses(config)) == step:
            signal.raise_signal(signal.SIGTERM)
        return plain(pieces, ids)

    with monkeypatch.context() as patch:
        patch.setattr("altclip_jax.training.stages.join", stop)
        return train(config, quiet=True)


def best_is_kept(settings, workshop, **changes):
    """A run of which the last step is not the best: that has the greatest loss."""
    kept = {"every": 2, "keep_last": 1, "keep_best": 1, "metric": "loss", "mode": "max"}
    return settings(data__evaluate=[{"path": str(workshop / "pictures.jsonl")}], checkpoints=kept, **changes)


def evaluations(config):
    return {entry["step"]: entry["evaluation"] for entry in log_of(config) if "evaluation" in entry}


def test_a_checkpoint_whose_evaluation_was_interrupted_can_be_the_best(settings, workshop, tmp_path, monkeypatch):
    whole, half = (best_is_kept(settings, workshop, folder=str(tmp_path / name)) for name in ("whole", "half"))
    train(whole, quiet=True)
    best = max(evaluations(whole), key=lambda step: evaluations(whole)[step]["loss"])
    assert best < 6
    outcome = stopped_in_evaluation(best, half, monkeypatch)
    assert (outcome.step, outcome.stopped_by) == (best, "SIGTERM")
    assert steps_kept(half)[-1] == best
    assert best not in evaluations(half)
    train(half, quiet=True)
    assert evaluations(half) == evaluations(whole)
    assert steps_kept(half) == steps_kept(whole) == [best, 6]
    with CheckpointStore(Path(half.folder), half.checkpoints, read_only=True) as store:
        assert store.best() == best
    assert weights(half, "export") == weights(whole, "export")
    measured = [Path(config.folder) / f"checkpoints/{best}/metrics" for config in (half, whole)]
    assert len({(path / "metrics").read_text() for path in measured}) == 1


def test_a_run_that_is_asked_to_stop_in_its_last_evaluation_is_not_done(settings, workshop, monkeypatch):
    config = best_is_kept(settings, workshop)
    outcome = stopped_in_evaluation(6, config, monkeypatch)
    assert (outcome.step, outcome.stopped_by, outcome.exported) == (6, "SIGTERM", None)
    assert steps_kept(config)[-1] == 6
    assert 6 not in evaluations(config)
    outcome = train(config, quiet=True)
    assert (outcome.stopped_by, outcome.exported) == (None, Path(config.folder) / "export")
    assert sorted(evaluations(config)) == [2, 4, 6]


def test_metrics_that_a_run_of_before_only_told_are_given_to_its_checkpoints(settings, workshop, monkeypatch):
    """0.1.0 evaluated when it went on, and wrote it in the log alone."""
    config = best_is_kept(settings, workshop)
    interrupted_after(5, config, monkeypatch)
    best = steps_kept(config)[0]
    measured = Path(config.folder) / f"checkpoints/{best}/metrics"
    before = json.loads((measured / "metrics").read_text())
    shutil.rmtree(measured)
    train(config, quiet=True)
    assert json.loads((measured / "metrics").read_text()) == before
    assert steps_kept(config) == [best, 6]


def test_two_runs_do_not_work_in_one_folder(settings, monkeypatch, capsys):
    config = settings()
    folder = Path(config.folder)
    folder.mkdir()
    with hold(folder), pytest.raises(OSError, match=r"Another run is at work in .*: wait for it"):
        train(config, quiet=True)

    def none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(OSError, match=r"(?s)no file locks, .* another `altclip train` .* ALTCLIP_ALLOW_UNLOCKED=1"):
        train(config, quiet=True)
    monkeypatch.setenv("ALTCLIP_ALLOW_UNLOCKED", "1")
    assert train(config).step == 6
    assert "nothing keeps another run out" in capsys.readouterr().err


def everything_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_takes_no_place_of_others(settings, workshop, tmp_path):
    """Neither a folder that is no run, nor in one what the run reads."""
    others, config = tmp_path / "others", settings(folder=str(tmp_path / "others"))
    for name in ("features/mine.npy", "model/config.json", "config.json"):
        (others / name).parent.mkdir(parents=True, exist_ok=True)
        (others / name).write_text('{"stage": "of a play", "steps": 7}')
    before = everything_in(others)
    with pytest.raises(FileExistsError, match=r"is not empty, and `altclip train` .* \(config.json, features, model\)"):
        train(config, quiet=True)
    assert everything_in(others) == before

    whole = settings()
    train(whole, quiet=True)
    folder = Path(whole.folder)
    before = everything_in(folder)
    data = folder / "features" / "pictures.jsonl"
    data.write_bytes((workshop / "pictures.jsonl").read_bytes())
    for changes in (
        {"data__train": [{"path": str(data)}]},
        {"data__evaluate": [{"path": str(data)}]},
        {"model__source": str(folder / "export")},
    ):
        with pytest.raises(ValueError, match="is read, and is"):
            train(settings(**changes), quiet=True)
    data.unlink()
    for target in (folder, folder / "model", folder / "checkpoints" / "1", tmp_path):
        with pytest.raises(ValueError, match=r"is read, and is|is a part of the run"):
            export(folder, target)
    assert everything_in(folder) == before
    for name in ("data.jsonl", "features/mine.npy", "features/mine.json"):  # what a run has not written stays
        (folder / name).write_bytes((workshop / "pictures.jsonl").read_bytes())
    for name in ("checkpoints", "locked"):
        shutil.rmtree(folder / name)
    (folder / ".altclip_jax.json").unlink(missing_ok=True)
    with pytest.raises(FileExistsError, match="is not empty"):
        train(whole, quiet=True)
    (folder / "locked").mkdir()
    train(settings(seed=1, data__train=[{"path": str(folder / "data.jsonl")}]), quiet=True)
    assert (folder / "features/mine.npy").read_bytes() == (workshop / "pictures.jsonl").read_bytes()


def test_other_data_under_the_same_name_are_refused(settings, workshop, tmp_path):
    data = tmp_path / "data.jsonl"
    lines = (workshop / "pictures.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join(lines), encoding="utf-8")
    config = settings(data__train=[{"path": str(data)}])
    train(config, quiet=True)
    data.write_text("".join(lines[1:]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"other settings.*(?s:.*)data\.train\.0\.files\.data\.jsonl: \d+ -> \d+"):
        train(config, quiet=True)


def test_bad_samples_are_replaced_counted_and_named(settings, workshop, tmp_path):
    lines = (workshop / "pictures.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    broken = tmp_path / "broken.jsonl"
    broken.write_text("".join(lines) + '{"image": "/absent.png", "caption": "nothing"}\n', encoding="utf-8")
    config = settings(data__train=[{"path": str(broken)}], steps=4)
    train(config, quiet=True)
    logged = [json.loads(line) for line in (Path(config.folder) / "bad_samples.jsonl").read_text().splitlines()]
    assert [entry["sample"] for entry in logged] == [f"{broken}:{len(lines) + 1}"]


def test_too_many_bad_samples_stop_the_run_after_saving_it(settings, tmp_path, workshop):
    lines = (workshop / "pictures.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    broken = tmp_path / "broken.jsonl"
    broken.write_text("".join(lines) + '{"image": "/absent.png", "caption": "nothing"}\n', encoding="utf-8")
    config = settings(
        data__train=[{"path": str(broken)}],
        data__max_bad_share=0.0,
        data__store_image_features=False,
        checkpoints__every=100,
        batch_size=8,
    )
    with pytest.raises(TooManyBadSamples, match=r"absent\.png"):
        train(config, quiet=True)
    told = [entry["step"] for entry in log_of(config)]
    assert steps_kept(config) == ([told[-1]] if told else [])


def test_a_dry_run_does_one_step_and_leaves_nothing_behind(settings, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    outcome = train(settings(), dry_run=True, quiet=True)
    assert outcome.step == 1
    assert np.isfinite(outcome.metrics["loss"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_made_is_a_sentence(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be written"):
        train(settings(folder=str(tmp_path / "file" / "run")), quiet=True)


def test_what_does_not_fit_the_stage_is_refused(settings, workshop):
    with pytest.raises(ValueError, match="is a CLIP: the student"):
        train(settings("teacher", model__source=str(workshop / "clip")), quiet=True)
    with pytest.raises(ValueError, match="cannot be dealt evenly over data x fsdp = 8 devices"):
        train(settings(batch_size=12), quiet=True)
    with pytest.raises(ValueError, match="'vision' is no part"):
        train(settings(model__train=["vision"]), quiet=True)


def test_a_processor_of_another_model_is_refused_before_the_folder_is_filled(settings, workshop, tmp_path):
    for source, words in (
        ("student", "pads with 1 and text_config.pad_token_id=3"),
        ("clip", "ends texts with id 2047"),
    ):
        shutil.copytree(workshop / source, tmp_path / source)
        values = json.loads((workshop / source / "config.json").read_text(encoding="utf-8"))
        values["text_config"] |= {"pad_token_id": 3, "eos_token_id": 5}
        (tmp_path / source / "config.json").write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(ValueError, match=f"The processor of .*{source} does not fit the model:\n(.*\n)?.*{words}"):
            train(settings(model__source=str(tmp_path / source)), quiet=True)
        assert not {"model", "locked", "config.json"} & {path.name for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match=r"The tokenizer of .*clip does not fit the model:\n  - .*eos_token_id=5"):
        train(settings("teacher", teacher__source=str(tmp_path / "clip")), quiet=True)


def test_a_run_does_not_go_on_with_the_processor_of_another_model(settings):
    config = settings(steps=2)
    train(config, quiet=True)
    file = Path(config.folder) / "model" / "preprocessor_config.json"
    file.write_text(file.read_text(encoding="utf-8").replace("32", "48"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"The processor of .*model does not fit the model:\n  - .*48\*48 pixels"):
        train(settings(steps=2), quiet=True)


def test_the_recipes_are_read():
    recipes = sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml"))
    assert recipes
    for recipe in recipes:
        RunConfig.read(recipe)


def test_a_run_that_turns_pictures_otherwise_than_its_model_says_is_refused(settings, workshop, tmp_path):
    source = shutil.copytree(workshop / "student", tmp_path / "student")
    AltCLIPImageProcessor.from_pretrained(source, apply_exif_orientation=False).save_pretrained(source)
    mesh, folder = make_mesh(devices=jax.devices()[:1]), tmp_path / "run"
    with pytest.raises(ValueError, match=r"data\.orientation='exif', and .* apply_exif_orientation=false: leave one"):
        begin(settings(model__source=str(source), data__orientation="exif"), folder, {}, mesh)
    begin(settings(model__source=str(source)), folder, {}, mesh)
    assert AltCLIPImageProcessor.from_pretrained(tmp_path / "run" / "model").apply_exif_orientation is False
