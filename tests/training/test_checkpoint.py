"""The store of checkpoints: what it refuses, and how it says so."""

import json
import math
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from altclip_jax.parallel import make_mesh, placed, state_shardings
from altclip_jax.training import run_folder
from altclip_jax.training.checkpoint import CheckpointStore, load_tree, save_tree
from altclip_jax.training.description import describe, files_of
from altclip_jax.training.loop import train
from altclip_jax.training.run_folder import export
from altclip_jax.training.state import initial_state


def state(**shapes):
    params = {name: jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) for name, shape in shapes.items()}
    return initial_state(params, optax.sgd(0.1, momentum=0.9), averaged=False)


def places(tree):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


@pytest.fixture
def saved(settings, tmp_path):
    """The configuration of a run whose store has one checkpoint, of step 3."""
    config = settings()
    with CheckpointStore(tmp_path, config.checkpoints) as store:
        store.save(3, state(table=(4, 2), bias=(2,)), describe(config, []))
    return config


def test_a_state_comes_back_as_it_was(saved, tmp_path):
    before = state(table=(4, 2), bias=(2,))
    with CheckpointStore(tmp_path, saved.checkpoints) as store:
        assert store.latest() == 3
        after = store.restore(3, places(before))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1}], ids=str)
def test_a_state_comes_back_bit_for_bit_on_other_devices(model, params, settings, tmp_path, axes):
    def on(mesh, state):
        return jax.device_put(state, state_shardings(mesh, state))

    config = settings()
    before = initial_state(params, optax.adam(1e-3), averaged=True)
    before = before.replace(opt_state=jax.tree.map(lambda leaf: leaf + 1, before.opt_state))
    with CheckpointStore(tmp_path, config.checkpoints) as store:
        store.save(3, on(make_mesh(fsdp=2), before), describe(config, []))
    mesh = make_mesh(**axes, devices=jax.devices()[: math.prod(axes.values())])
    shapes = jax.eval_shape(lambda: before)
    with CheckpointStore(tmp_path, config.checkpoints) as store:
        after = store.restore(3, placed(shapes, state_shardings(mesh, shapes)))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    kernel = after.params["text_model"]["layer_0"]["mlp"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == mesh.size
    assert kernel.addressable_shards[0].data.size == kernel.size // (mesh.shape["fsdp"] * mesh.shape["tensor"])


def test_other_shapes_are_refused_with_all_differences(saved, tmp_path):
    wider = places(state(table=(4, 3), scale=(2,)))
    with CheckpointStore(tmp_path, saved.checkpoints) as store, pytest.raises(ValueError, match="step 3") as caught:
        store.restore(3, wider)
    _, *differences = str(caught.value).splitlines()
    assert [line for line in differences if line.startswith("  - params/")] == [
        "  - params/bias: float32[2] -> absent",
        "  - params/scale: absent -> float32[2]",
        "  - params/table: float32[4, 2] -> float32[4, 3]",
    ]
    assert len(differences) == 6  # and the same of the momentum


def test_of_many_differences_twenty_are_shown(settings, tmp_path):
    config = settings()
    with CheckpointStore(tmp_path, config.checkpoints) as store:
        store.save(1, state(**{f"layer_{number}": (2,) for number in range(30)}), describe(config, []))
        store.wait()
        with pytest.raises(ValueError, match=r"and 40 more$") as caught:
            store.restore(1, places(state(**{f"layer_{number}": (3,) for number in range(30)})))
    assert len(str(caught.value).splitlines()) == 1 + 20 + 1


def test_a_step_that_is_there_is_not_written_again(saved, tmp_path):
    with CheckpointStore(tmp_path, saved.checkpoints) as store:
        store.save(3, state(other=(1,)), describe(saved, []))
        store.restore(3, places(state(table=(4, 2), bias=(2,))))


def test_a_store_that_only_reads_leaves_alone_what_another_process_writes(saved, tmp_path):
    begun = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
    begun.mkdir()
    with CheckpointStore(tmp_path, saved.checkpoints, read_only=True) as store:
        assert store.steps() == [3]
    with CheckpointStore(tmp_path / "nothing", saved.checkpoints, read_only=True) as store:
        assert store.latest() is None
    assert begun.exists()
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence_with_its_name(settings, tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match=f"{re.escape(str(tmp_path / 'checkpoints'))} could not be written"):
        CheckpointStore(tmp_path, settings().checkpoints)


@pytest.mark.parametrize(("item", "read"), [("config", "check"), ("state", "restore")])
def test_a_damaged_checkpoint_is_named_with_what_can_be_done(saved, tmp_path, item, read):
    shutil.rmtree(tmp_path / "checkpoints" / "3" / item)
    arguments = (saved, []) if read == "check" else (places(state(table=(4, 2), bias=(2,))),)
    with (
        CheckpointStore(tmp_path, saved.checkpoints) as store,
        pytest.raises(OSError, match=r"checkpoints/3 could not be read .*move this one out of the way"),
    ):
        getattr(store, read)(3, *arguments)


def test_a_metric_that_is_not_evaluated_is_refused_with_those_that_are(settings, tmp_path):
    """A language that the data do not have is known when they are measured, not before."""
    kept = {"every": 2, "keep_best": 1, "metric": "xx/loss"}
    config = settings(checkpoints=kept, data__evaluate=[{"path": "pictures.jsonl"}])
    with (
        CheckpointStore(tmp_path, config.checkpoints) as store,
        pytest.raises(ValueError, match=r"'xx/loss', which is not evaluated; there are loss, mean_recall\."),
    ):
        store.save(2, state(bias=(2,)), describe(config, []), {"loss": 1.0, "mean_recall": 0.5})


def test_a_checkpoint_without_metrics_stands_beside_the_best(settings, tmp_path):
    """As a run leaves it that is asked to stop between evaluations."""
    kept = {"every": 1, "keep_last": 1, "keep_best": 1}
    config = settings(checkpoints=kept, data__evaluate=[{"path": "pictures.jsonl"}])
    with CheckpointStore(tmp_path, config.checkpoints) as store:
        for step, value in ((1, 0.5), (2, 0.9), (3, 0.7)):
            store.save(step, state(bias=(2,)), describe(config, []), {"mean_recall": value})
        store.save(4, state(bias=(2,)), describe(config, []))
        store.wait()
        assert store.steps() == [2, 4]
    with CheckpointStore(tmp_path, config.checkpoints) as store:
        store.save(5, state(bias=(2,)), describe(config, []), {"mean_recall": 0.1})
        store.wait()
        assert store.steps() == [2, 5]


def test_a_tree_by_itself_is_replaced_and_a_missing_one_is_a_sentence(tmp_path):
    for rows in (2, 3):
        save_tree(tmp_path / "part", {"part": {"table": jnp.ones((rows, 2))}})
    shapes = places({"part": {"table": jnp.ones((3, 2))}})
    np.testing.assert_array_equal(load_tree(tmp_path / "part", shapes)["part"]["table"], np.ones((3, 2)))
    with pytest.raises(OSError, match=r"absent could not be read"):
        load_tree(tmp_path / "absent", shapes)


def test_export_names_the_checkpoints_that_there_are(settings, tmp_path, monkeypatch):
    config = settings(steps=4, checkpoints={"every": 2, "keep_last": 2})
    train(config, quiet=True)
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint of step 3; it has 2, 4\."):
        export(config.folder, tmp_path / "out", step=3)
    with pytest.raises(ValueError, match=r"does not keep its best checkpoint: checkpoints\.keep_best is 0"):
        export(config.folder, tmp_path / "out", best=True)
    gathered, third = [], jax.devices()[3]
    monkeypatch.setattr(run_folder, "whole", lambda tree: gathered.append(tree) or tree)
    with jax.default_device(third):
        assert export(config.folder, tmp_path / "out", step=2) == 2
    assert {device for leaf in jax.tree.leaves(gathered) for device in leaf.devices()} == {third}
    shutil.rmtree(Path(config.folder) / "checkpoints")
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint; it has none\."):
        export(config.folder, tmp_path / "again")
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a training run"):
        export(tmp_path, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_features_are_kept_for_the_same_run_and_not_for_another(settings, tmp_path):
    """A run that is killed before its first checkpoint begins again, and may then be another one."""

    def begun(config):
        run_folder.begin(config, Path(config.folder), describe(config, files_of(config.data.train)), make_mesh())

    features = tmp_path / "run" / "features" / "image_train.npy"
    config = settings()
    begun(config)
    features.parent.mkdir()
    features.write_bytes(b"")
    features.with_suffix(".json").write_text('{"of": {}, "rows": 0, "width": 0}')
    begun(settings(logging__every=3))
    assert features.exists()
    begun(settings(seed=1))
    assert not features.exists()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 1
