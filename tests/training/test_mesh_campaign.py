"""Both stages on meshes that cross two processes, on data of which one process has all the bad samples.

The script that runs every mesh, for its ways to measure and compare: scripts/campaigns/meshes.py.
"""

import functools
import json

import jax
import pytest

from altclip_jax import parallel

SAMPLES, BAD, STEPS = 120, 0.05, 2


@pytest.fixture(scope="module")
def campaign(program):
    return program("campaigns.meshes")


@pytest.fixture(scope="module")
def meshes(campaign):
    """Of 2 processes with 3 devices each."""
    return (
        campaign.Mesh({"data": 3, "tensor": 2}, across=True, stages=("contrastive",)),  # every row is in both processes
        campaign.Mesh({"data": 3, "tensor": 2}, stages=("teacher",)),  # the rows in the middle are
        campaign.Mesh({"fsdp": 6}, stages=("contrastive",)),  # none is
    )


@pytest.fixture(scope="module")
def results(campaign, meshes, workshop, tmp_path_factory):
    """Folders of what was found: alone, on one device of this process; and on each mesh."""
    folder = tmp_path_factory.mktemp("campaign")
    (folder / "student").symlink_to(workshop / "student")
    (folder / "teacher").symlink_to(workshop / "clip")
    lost = campaign.write_data(folder, SAMPLES, BAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "make_mesh", functools.partial(parallel.make_mesh, devices=jax.devices()[:1]))
        for stage in campaign.STAGES:
            campaign.measure(folder, folder / "alone" / stage, stage, {"data": 1}, STEPS)
    layout = campaign.Layout(2, 3, meshes)
    return lost, folder / "alone", campaign.run_layout(folder, layout, STEPS)


@pytest.mark.parametrize(("number", "stage"), [(0, "contrastive"), (1, "teacher"), (2, "contrastive")])
def test_two_processes_find_what_one_does_on_a_mesh_across_them(campaign, meshes, results, number, stage):
    lost, alone, found = results
    compared = campaign.compare(alone / stage, found[number] / stage)
    assert compared["features found"] == SAMPLES - lost
    assert compared["holds"], (str(meshes[number]), compared)
    log = (found[number] / stage / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
    named = {sample for line in log if "held_out" not in (sample := json.loads(line)["sample"])}
    assert len(named) == lost
