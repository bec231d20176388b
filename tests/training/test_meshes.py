"""The same run on one device and on meshes of eight: the same losses and the same parameters.

In two processes of two devices: test_processes.py. The gradient alone: test_steps.py. Under pmap: test_pmapped.py.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from altclip_jax import parallel
from altclip_jax.training.loop import train

STEPS = 12
LOSSES = 2e-6  # relative; 5.5e-7 was measured
PARAMETERS = 3e-5  # norm of the difference over norm; 7.6e-6 was measured


def losses(config):
    lines = (Path(config.folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.fixture(scope="module")
def alone(workshop):
    """What a run on one device ended with, by stage; made when it is first asked for."""
    return {}


@pytest.mark.parametrize("stage", ["contrastive", "teacher"])
@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_run_ends_on_any_mesh_where_it_ends_on_one_device(settings, tmp_path, monkeypatch, alone, stage, mesh):
    def end(config):
        outcome = train(config, quiet=True)
        return losses(config), load_file(outcome.exported / "model.safetensors")

    changes = {"steps": STEPS, "checkpoints__every": STEPS}
    if stage not in alone:
        one = functools.partial(parallel.make_mesh, devices=jax.devices()[:1])
        with monkeypatch.context() as patch:
            patch.setattr(parallel, "make_mesh", one)
            alone[stage] = end(settings(stage, folder=str(tmp_path / "alone"), **changes))
    expected_losses, expected = alone[stage]
    found_losses, found = end(settings(stage, folder=str(tmp_path / "mesh"), mesh=mesh, **changes))
    np.testing.assert_allclose(found_losses, expected_losses, rtol=LOSSES)
    squares = [(np.square(found[name] - expected[name]).sum(), np.square(expected[name]).sum()) for name in expected]
    difference, norm = np.sqrt(np.sum(squares, axis=0))
    assert difference / norm < PARAMETERS
