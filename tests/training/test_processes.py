"""A run of several processes: it ends where a run of one ends, and what happens to one happens to all."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from altclip_jax.training.loop import train

STEPS = 40
LOSSES = 1e-5  # relative
# Norm of the difference over norm. 3.5e-5 was measured: where the true gradient is zero, as that of the keys' biases,
# Adam makes steps of full size out of rounding.
PARAMETERS = 2e-4


def launched(config, path):
    """Starts a run in 2 processes of 2 devices."""
    values = config.to_dict()
    lines = [f"stage = {json.dumps(values.pop('stage'))}"]  # what follows are overrides, which need some file
    path.write_text("\n".join(lines), encoding="utf-8")
    settings = [f"{name}={toml(value)}" for name, value in values.items() if value is not None]
    command = ["launch", "-n", "2", "--local-devices", "2", "--", "train", str(path), *settings]
    return subprocess.Popen(
        [sys.executable, "-m", "altclip_jax", *command],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


def toml(value):
    """Returns a value as TOML writes it in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(own)}" for name, own in value.items() if own is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def log_of(config):
    path = Path(config.folder) / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def losses(config):
    return [entry["loss"] for entry in log_of(config) if "loss" in entry]


def processes(launcher):
    return sorted(map(int, Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()))


def test_sigterm_to_one_of_two_processes_saves_both_and_one_process_goes_on_to_the_same_end(
    settings, workshop, tmp_path
):
    def config(folder):
        evaluated = {"data__evaluate": [{"path": str(workshop / "pictures.jsonl")}], "evaluation__every": STEPS}
        mesh = {"fsdp": 2, "tensor": 2}  # "tensor" within a process, "fsdp" across both
        return settings(folder=str(tmp_path / folder), steps=STEPS, checkpoints__every=20, mesh=mesh, **evaluated)

    parts, whole = config("parts"), config("whole")
    launcher = launched(parts, tmp_path / "run.toml")
    while launcher.poll() is None and len(losses(parts)) < 3:
        time.sleep(0.02)
    assert launcher.returncode is None, launcher.stderr.read()
    os.kill(processes(launcher)[1], signal.SIGTERM)
    _, told = launcher.communicate(timeout=120)
    assert launcher.returncode == 75, told
    done = losses(parts)
    assert 3 <= len(done) < STEPS
    assert train(parts, quiet=True).step == STEPS  # here, on eight devices
    train(whole, quiet=True)
    assert [entry["step"] for entry in log_of(parts) if "loss" in entry] == list(range(1, STEPS + 1))
    assert losses(parts)[: len(done)] == done
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=LOSSES)
    ends = [load_file(tmp_path / name / "export/model.safetensors") for name in ("parts", "whole")]
    squares = [
        [np.square(end[name]).sum() for name in end] for end in ({n: ends[0][n] - ends[1][n] for n in ends[0]}, ends[1])
    ]
    assert np.sqrt(np.sum(squares[0]) / np.sum(squares[1])) < PARAMETERS
    evaluations = [[e["evaluation"]["mean_recall"] for e in log_of(c) if "evaluation" in e] for c in (parts, whole)]
    assert evaluations[0] == pytest.approx(evaluations[1])


def test_what_one_process_cannot_read_stops_both_with_everything_saved(settings, workshop, tmp_path):
    """Each process reads every second half of the rows: the bad ones are met by one or the other."""
    lines = (workshop / "pictures.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    broken = tmp_path / "broken.jsonl"
    broken.write_text("".join(lines) + '{"image": "/absent.png", "caption": "nothing"}\n', encoding="utf-8")
    config = settings(
        data__train=[{"path": str(broken)}],
        data__max_bad_share=0.0,
        data__store_image_features=False,
        checkpoints__every=100,
        mesh={"fsdp": 4},
        batch_size=4,
        steps=STEPS,
    )
    launcher = launched(config, tmp_path / "run.toml")
    _, told = launcher.communicate(timeout=180)
    assert launcher.returncode == 1, told
    assert "absent.png" in told
    saved = sorted(int(path.name) for path in (Path(config.folder) / "checkpoints").glob("[0-9]*"))
    assert saved == [entry["step"] for entry in log_of(config)][-1:]


# A program of one's own in place of the command, with jax's timeouts: 100 s without a heartbeat, 300 s at the end.
MEMBER = """
import errno, json, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
process = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], 2, process)
from altclip_jax.training import config, loop, stages
from altclip_jax import sweep
{fault}
loop.train(config.RunConfig.from_values(json.loads(sys.argv[3])), quiet=True)
"""
AFTER_THE_PASS = """
def fail(*arguments):
    raise MemoryError
if process == 1:
    stages.image_text_metrics = fail
"""
IN_THE_PASS = """
def fail(*arguments):
    raise MemoryError
def fail_from_now_on(self, step, state):
    sweep.Sweep._in_order = fail
    return plain(self, step, state)
plain = loop._Loop._evaluate
if process == 0:
    loop._Loop._evaluate = fail_from_now_on
"""
IN_A_SAVE = """
from orbax.checkpoint._src.checkpointers import async_checkpointer
def fail(directory, *arguments, **options):
    if directory.name == "4":
        raise OSError(errno.ENOSPC, "No space left on device")
    return plain(directory, *arguments, **options)
plain = async_checkpointer._background_wait_for_commit_futures
if process == 1:
    async_checkpointer._background_wait_for_commit_futures = fail
"""
UNREADABLE_HERE = """
from altclip_jax.data import records, samples
def read(self, index):
    if index == 5:
        raise samples.SampleError("sample 5", "it cannot be read here")
    return plain(self, index)
plain = records.ImageTextRecords.read
if process == 1:
    records.ImageTextRecords.read = read
"""
STOPPED_IN_AN_EVALUATION = """
import signal, threading
def stop(pieces, ids):
    if process == 1:
        signal.raise_signal(signal.SIGTERM)
    return plain(pieces, ids)
plain, stages.join = stages.join, stop
outcome = loop.train(config.RunConfig.from_values(json.loads(sys.argv[3])), quiet=True)
assert outcome.step == 2 and outcome.stopped_by is not None
assert not [thread for thread in threading.enumerate() if thread.name.startswith("altclip")]
stages.join = plain
"""
SENTENCE = r"Process {} of this run could not go on, and this one has ended with it\. It said: "


def in_two_processes(config, fault, other=None):
    """Returns exit codes and what was said of two processes; `other` is the configuration of the second."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER.format(fault=fault), address, str(number), json.dumps(each.to_dict())],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, each in enumerate((config, other or config))
    ]
    try:
        # a busy machine takes long to compile; less than the 300 s after which jax would end them by itself
        told = [process.communicate(timeout=280)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    return [process.returncode for process in both], told


def steps_kept(config):
    return sorted(
        int(path.name) for path in (Path(config.folder) / "checkpoints").glob("[0-9]*") if path.name.isdigit()
    )


@pytest.fixture
def evaluated(settings, workshop):
    return settings(data__evaluate=[{"path": str(workshop / "pictures.jsonl")}], evaluation__every=3, steps=4)


def test_an_error_of_one_process_after_a_pass_ends_both_with_the_state_saved(evaluated):
    codes, told = in_two_processes(evaluated, AFTER_THE_PASS)
    assert codes == [1, 1], told
    assert re.search(SENTENCE.format(1) + "MemoryError", told[0])
    assert told[1].splitlines()[-1] == "MemoryError"
    assert steps_kept(evaluated) == [2, 3]


def test_an_error_of_one_process_in_a_pass_ends_both_with_the_last_checkpoint_as_it_was(evaluated):
    """Here in process 0, which has the coordinator; the other waits in an exchange that nothing interrupts."""
    codes, told = in_two_processes(evaluated, IN_THE_PASS)
    assert codes[0] == 1, told
    assert codes[1] in (1, 76), told
    assert "MemoryError" in told[0]
    assert re.search(SENTENCE.format(0) + "MemoryError", told[1])
    assert steps_kept(evaluated) == [2]
    assert train(evaluated, quiet=True).step == 4


def test_a_checkpoint_that_one_process_cannot_write_ends_both(settings):
    config = settings(steps=200, checkpoints__every=4)
    codes, told = in_two_processes(config, IN_A_SAVE)
    assert codes[1] == 1, told
    assert codes[0] in (1, 76), told
    assert re.search(SENTENCE.format(1) + "A checkpoint in .* could not be written .*No space left", told[0])
    assert steps_kept(config) == []
    assert max(entry["step"] for entry in log_of(config)) < 200


def test_data_that_one_process_does_not_find_end_both(settings, tmp_path):
    """Before the first exchange, in which the other waits for it."""
    lost = settings(data__train=[{"path": str(tmp_path / "lost.jsonl")}])
    codes, told = in_two_processes(settings(), "", lost)
    assert codes[1] == 1, told
    assert codes[0] in (1, 76), told
    assert re.search(SENTENCE.format(1) + r".*lost\.jsonl", told[0])


@pytest.mark.parametrize("stored", [True, False], ids=["features", "steps"])
def test_processes_that_hold_the_same_rows_end_where_one_cannot_read_what_another_can(settings, stored):
    """Else each would compute its part of a layer for pictures of its own."""
    config = settings(mesh={"tensor": 4}, data__store_image_features=stored, batch_size=4, steps=40)
    codes, told = in_two_processes(config, UNREADABLE_HERE)
    assert codes == [1, 1], told
    for words in told:
        assert re.search("Two processes hold the same rows of a batch and have read different samples for them", words)
    assert steps_kept(config)[-1:] == ([] if stored else [entry["step"] for entry in log_of(config)][-1:])


def test_a_program_that_was_stopped_in_an_evaluation_trains_on_and_has_its_metrics(settings, workshop):
    """Twice in one program: what watches the first run ends with it."""
    kept = {"every": 2, "keep_last": 1, "keep_best": 2}
    config = settings(data__evaluate=[{"path": str(workshop / "pictures.jsonl")}], checkpoints=kept, steps=4)
    codes, told = in_two_processes(config, STOPPED_IN_AN_EVALUATION)
    assert codes == [0, 0], told
    evaluations = {entry["step"]: entry["evaluation"] for entry in log_of(config) if "evaluation" in entry}
    assert list(evaluations) == steps_kept(config) == [2, 4]
    for step, metrics in evaluations.items():
        written = Path(config.folder) / f"checkpoints/{step}/metrics/metrics"
        assert json.loads(written.read_text()) == metrics
