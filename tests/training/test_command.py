"""`altclip train` as a person sees it: processes that are stopped, killed and moved, and a disk that is full."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from altclip_jax import cli

STEPS = 240
SETTINGS = """
stage = "contrastive"
folder = "run"
steps = {steps}
batch_size = 16
[model]
source = {student}
[data]
max_length = 12
train = [{{path = {pictures}}}]
[optimizer]
learning_rate = 1e-3
warmup_steps = 10
[checkpoints]
every = 40
[logging]
every = 1
"""
FULL = 200_000  # bytes of a file at most: less than the largest of a checkpoint, more than any other


@pytest.fixture(scope="module")
def campaign(program):
    """The script that kills runs twenty times, for its ways to look at them."""
    return program("campaigns.kill_training")


class Home:
    """A folder in which someone works: a configuration, the command, and the folders of runs."""

    def __init__(self, folder, workshop):
        self.folder = folder
        paths = {
            name: json.dumps(str(workshop / file))
            for name, file in (("student", "student"), ("pictures", "pictures.jsonl"))
        }
        (folder / "my run.toml").write_text(SETTINGS.format(steps=STEPS, **paths))
        command = folder / "bin" / "altclip"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m altclip_jax "$@"\n')
        command.chmod(0o755)
        (folder / "temporary").mkdir()

    def options(self, devices=1):
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(self.folder / "temporary"),
            "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}"),
        }
        return {"cwd": self.folder, "env": environment, "text": True}

    def train(self, *arguments, program=("-m", "altclip_jax"), **options):
        command = [sys.executable, *program, "train", "my run.toml", *arguments]
        return subprocess.run(command, check=False, capture_output=True, **self.options(**options))

    def begin(self, run):
        """Starts a run, and returns the process once it has saved a checkpoint and gone on from there."""
        process = subprocess.Popen(
            [sys.executable, "-m", "altclip_jax", "train", "my run.toml", f"folder={run}"],
            stderr=subprocess.PIPE,
            **self.options(),
        )
        while process.poll() is None and not (self.checkpoints(run) and self.log(run)[-1]["step"] > 50):
            time.sleep(0.01)
        assert process.returncode is None, process.stderr.read()
        return process

    def stop(self, run, number):
        """Starts a run, sends it a signal, and returns the exit code and standard error."""
        process = self.begin(run)
        process.send_signal(number)
        _, told = process.communicate()
        return process.returncode, told

    def checkpoints(self, run):
        found = (self.folder / run / "checkpoints").glob("[0-9]*")
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def log(self, run):
        lines = (self.folder / run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def losses(self, run):
        return [entry["loss"] for entry in self.log(run)]


@pytest.fixture(scope="module")
def home(workshop, tmp_path_factory):
    return Home(tmp_path_factory.mktemp("home"), workshop)


@pytest.fixture(scope="module")
def undisturbed(home):
    extras = ("logging.profile_steps=[2,3]", "logging.tensorboard=true")
    done = home.train("folder=undisturbed", *extras, "--json")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def stopped(home):
    """The exit code and the words of a run that SIGTERM ended, in the folder "stopped", of which "kept" is a copy."""
    outcome = home.stop("stopped", signal.SIGTERM)
    shutil.copytree(home.folder / "stopped", home.folder / "kept")
    return outcome


@pytest.fixture
def assert_same_end(home, undisturbed, campaign):
    def check(run):
        found, expected = (home.folder / name for name in (run, "undisturbed"))
        for name in ("model.safetensors", "config.json"):
            assert (found / "export" / name).read_bytes() == (expected / "export" / name).read_bytes()
        states = [campaign.final_state(folder, STEPS) for folder in (found, expected)]
        assert states[0].keys() == states[1].keys()
        for path, values in states[0].items():
            np.testing.assert_array_equal(values, states[1][path], err_msg=path)
        assert campaign.read_log(found) == campaign.read_log(expected)

    return check


def test_json_is_one_object_on_standard_output(home, undisturbed):
    outcome = json.loads(undisturbed.stdout)
    assert (outcome["step"], outcome["steps"], outcome["stopped_by"]) == (STEPS, STEPS, None)
    assert outcome["metrics"]["samples_per_second"] > 0
    assert (home.folder / outcome["exported"] / "model.safetensors").is_file()


def test_standard_error_has_the_words_of_the_run_and_no_others(undisturbed):
    lines = undisturbed.stderr.splitlines()
    assert lines[0] == "computing image_train features of 36 samples, once"
    assert lines[1].startswith(f"step 1/{STEPS}  loss ")
    assert lines[4] == "profile of steps 2 to 3 in undisturbed/profile"
    assert [line.split()[1] for line in lines[1:4] + lines[5:]] == [f"{step}/{STEPS}" for step in range(1, STEPS + 1)]


def test_a_profiler_trace_is_written_on_request(home, undisturbed):
    (trace,) = (home.folder / "undisturbed" / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_tensorboard_shows_what_the_log_has(home, undisturbed):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (home.folder / "undisturbed" / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:  # length and checksum, event, checksum
        size = struct.unpack("<Q", data[:8])[0]
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    shown = {
        event.step: value.simple_value for event in events for value in event.summary.value if value.tag == "train/loss"
    }
    assert list(shown) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(shown.values()), home.losses("undisturbed"), rtol=1e-6)


@pytest.fixture
def assert_goes_on_to_the_same_end(home, assert_same_end):
    """Checks what a stopped run says, and where its own words lead when they are typed in."""

    def check(run, number, code, told):
        step = home.log(run)[-1]["step"]
        assert code == 75
        assert f"altclip: stopped by {number.name} after step {step} of {STEPS}, everything is saved" in told
        assert home.checkpoints(run)[-1] == step < STEPS
        command = told.splitlines()[-1].strip()
        again = subprocess.run(command, shell=True, check=False, capture_output=True, **home.options())
        assert again.returncode == 0, again.stderr
        assert again.stderr.startswith(f"going on from step {step} of {STEPS} in {run}\nstep {step + 1}/{STEPS}  loss")
        assert_same_end(run)

    return check


def test_after_sigterm_the_printed_command_leads_to_the_same_end(stopped, assert_goes_on_to_the_same_end):
    assert_goes_on_to_the_same_end("stopped", signal.SIGTERM, *stopped)


def test_after_ctrl_c_the_printed_command_leads_to_the_same_end(home, assert_goes_on_to_the_same_end):
    outcome = home.stop("with a space", signal.SIGINT)
    assert_goes_on_to_the_same_end("with a space", signal.SIGINT, *outcome)


def test_after_kill_9_the_same_command_leads_to_the_same_end(home, assert_same_end):
    process = home.begin("killed")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = home.train("folder=killed")
    assert again.returncode == 0, again.stderr
    assert re.match(r"going on from step [1-9]\d* of ", again.stderr)
    assert_same_end("killed")


def test_a_stopped_run_goes_on_with_another_number_of_devices(home, undisturbed, stopped):
    shutil.copytree(home.folder / "kept", home.folder / "moved")
    done = home.train("folder=moved", devices=4)
    assert done.returncode == 0, done.stderr
    assert [entry["step"] for entry in home.log("moved")] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(home.losses("moved"), home.losses("undisturbed"), rtol=1e-4)


def test_a_full_disk_is_a_sentence_and_leaves_the_last_checkpoint(home, stopped, assert_same_end):
    shutil.copytree(home.folder / "kept", home.folder / "full")
    before = home.checkpoints("full")
    limit = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({FULL}, {FULL}));"
    done = home.train("folder=full", program=("-c", limit + "from altclip_jax.cli import main; sys.exit(main())"))
    assert (done.returncode, done.stdout) == (1, "")
    (words,) = [line for line in done.stderr.splitlines() if not line.startswith(("step", "going on"))]
    assert words.startswith(f"altclip: A checkpoint in {home.folder / 'full' / 'checkpoints'} could not be written")
    assert "File too large" in words
    assert words.endswith(f"the last whole one is of step {before[-1]}.")
    assert home.checkpoints("full") == before
    again = home.train("folder=full")
    assert again.returncode == 0, again.stderr
    assert_same_end("full")


def test_a_dry_run_leaves_nothing(home):
    before = set(home.folder.rglob("*"))
    done = home.train("--dry-run", "folder=dry")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("one step on 16 samples: loss ")
    assert len(done.stderr.splitlines()) == 1
    assert set(home.folder.rglob("*")) == before


def test_a_wrong_configuration_is_one_list_of_all_that_is_wrong(home, capsys):
    settings = ("steps=0", "nonsense=1", "optimizer.learning_rate=fast", "data.train=[]")
    assert cli.main(["train", str(home.folder / "my run.toml"), *settings]) == 1
    out, told = capsys.readouterr()
    first, *faults = told.splitlines()
    assert out == ""
    assert first == f"altclip: {home.folder / 'my run.toml'} is not the configuration of a run:"
    assert sorted(fault.split(":")[0] for fault in faults) == [
        "  - data.train",
        "  - nonsense",
        "  - optimizer.learning_rate",
        "  - steps",
    ]


def test_tensorboard_without_its_extra_is_a_sentence(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # the command changes it until its process ends
    settings = (f"folder={tmp_path / 'run'}", "logging.tensorboard=true")
    for options in ([], ["--dry-run"]):
        assert cli.main(["train", str(home.folder / "my run.toml"), *settings, *options]) == 1
        assert "pip install 'altclip-jax[tensorboard]'" in capsys.readouterr().err
