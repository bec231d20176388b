"""Joining a run of several processes and leaving it, with jax, two processes and two devices each."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from altclip_jax.distributed import Membership, explained, join, watched

DRIVER = """
import json, sys
from altclip_jax.cli.job import Job
sys.exit(Job([[sys.executable, "-c", program] for program in sys.argv[1:]]).run())
"""
PROGRAM = """
import argparse, os, signal, sys, time
from altclip_jax.cli.processes import add_process_options, join
parser = argparse.ArgumentParser()
add_process_options(parser)
os.environ["SLURM_PROCID"] = os.environ["SLURM_LOCALID"] = "{process}"  # read where the rest of Slurm is there

def total():
    import jax
    import numpy as np
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    part = lambda index: np.arange(4.0, dtype=np.float32)[index]
    values = jax.make_array_from_callback((4,), place, part)
    add = jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=jax.sharding.PartitionSpec("data"),
                        out_specs=jax.sharding.PartitionSpec())
    return jax.device_count(), jax.local_device_count(), float(jax.jit(add)(values)[0])

with join(parser.parse_args({options!r})):
    {body}
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def explicit(processes=2, devices=2):
    """Returns the options of each process."""
    shared = [
        "--coordinator",
        f"127.0.0.1:{free_port()}",
        "--processes",
        str(processes),
        "--local-devices",
        str(devices),
    ]
    return [[*shared, "--process", str(process)] for process in range(processes)]


def job(options, *bodies, **environment):
    """Runs a process with each body, and returns exit code, output and what was said."""
    programs = [
        PROGRAM.format(process=number, options=each, body=body)
        for number, (each, body) in enumerate(zip(options, bodies, strict=True))
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *programs],
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


def test_two_processes_with_two_devices_each_add_up_whatever_proxy_there_is():
    body = "print('sum', *total())"
    code, out, error = job(explicit(), body, body, http_proxy="http://127.0.0.1:1", https_proxy="http://127.0.0.1:1")
    assert code == 0, error
    assert sorted(out.splitlines()) == ["[0] sum 4 2 6.0", "[1] sum 4 2 6.0"]
    assert all("[Gloo] Rank" in line for line in error.splitlines())  # not on standard output, where JSON may be


def test_slurm_is_detected():
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    options, body = ["--distributed", "auto", "--local-devices", "2"], "print('sum', *total())"
    code, out, error = job([options, options], body, body, JAX_COORDINATOR_PORT=str(free_port()), **slurm)
    assert code == 0, error
    assert {"[0] sum 4 2 6.0", "[1] sum 4 2 6.0"} <= set(out.splitlines())


def test_the_death_of_one_ends_a_job_that_waits_for_it():
    waiting = "while True: total()"
    code, _, error = job(explicit(), waiting, "total(); print('so far'); os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 128 + signal.SIGKILL
    head = "altclip: process 1 of 2 ended by SIGKILL (by someone, or by the system when memory ran out). It last said:"
    lines = error.splitlines()
    said = lines[lines.index(head) + 1 :]
    assert "  [1] so far" in said
    assert said[-1].startswith("altclip: process 0 ended ")


def test_an_error_in_one_ends_all_with_its_sentence():
    failing = "total(); raise ValueError('The sky has fallen.')"
    code, _, error = job(explicit(), "while True: total()", failing)
    assert code == 1
    assert "[1] altclip: The sky has fallen." in error.splitlines()
    assert "altclip: process 1 of 2 ended with exit code 1. It last said:" in error.splitlines()


ALONE = "[{}] altclip: Process {} of this run could not go on, and this one has ended with it. It said: {}"


def test_an_error_of_the_coordinator_reaches_one_that_waits_elsewhere_before_it_ends():
    """Without it jax would abort the other, with a page of stack."""
    waiting = "from altclip_jax import distributed; distributed._MOMENT = 1; total(); time.sleep(100)"
    code, _, error = job(explicit(), "total(); raise MemoryError", waiting)
    assert code == 1
    lines = error.splitlines()
    assert "[0] MemoryError" in lines
    assert ALONE.format(1, 0, "MemoryError") in lines
    assert "altclip: process 0 of 2 ended with exit code 1. It last said:" in lines
    assert lines[-1] == "altclip: process 1 ended with exit code 76, because another one failed"


def test_what_all_meet_is_agreed_on_and_each_raises_its_own():
    meeting = """
    from altclip_jax import distributed
    with distributed.watched() as watch:
        assert watch.meet() is None
        end = watch.meet({})
        print("end", repr(end))
        raise end
"""
    code, out, error = job(explicit(), meeting.format("None"), meeting.format("KeyError('lost')"))
    assert code == 1
    assert sorted(out.splitlines())[1] == "[1] end KeyError('lost')"
    assert ALONE.format(0, 1, "KeyError: 'lost'") in error.splitlines()


def test_sigterm_ends_one_that_waits_for_another_that_hangs():
    waiting = """
    import threading
    from altclip_jax import distributed
    from altclip_jax.training.interrupt import StopRequest
    distributed._PATIENCE = 1
    total()
    with StopRequest():
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        total()
"""
    hanging = "from altclip_jax import distributed; distributed._MOMENT = 1; total(); time.sleep(100)"
    code, _, error = job(explicit(), waiting, hanging)
    assert code == 128 + signal.SIGTERM
    sentence = (
        "It was asked to stop by a signal and waited 1 s in vain for another process, or for its own devices: nothing"
        " was saved since the last checkpoint."
    )
    assert f"[0] altclip: {sentence}" in error.splitlines()
    assert ALONE.format(1, 0, sentence) in error.splitlines()


def test_a_watch_leaves_nothing_behind():
    body = """
    import threading
    from altclip_jax import distributed
    distributed._open = None  # as in a program of its own
    names = lambda: [thread.name for thread in threading.enumerate() if thread.name.startswith("altclip")]
    total()  # opens the connections of the exchange
    before, descriptors = names(), os.listdir("/proc/self/fd")
    with distributed.watched() as watch:
        total()
        assert names() == [*before, "altclip-watch"]
        with distributed.watched() as inner:
            assert inner is watch
    assert names() == before
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
"""
    code, _, error = job(explicit(), body, body)
    assert code == 0, error


def test_one_process_is_not_watched_and_its_errors_are_its_own():
    threads, wakeup = threading.enumerate(), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with pytest.raises(KeyError, match="lost"), watched() as watch:  # noqa: PT012
        assert threading.enumerate() == threads
        assert signal.set_wakeup_fd(wakeup) == wakeup
        error = KeyError("lost")
        assert watch.meet(error) is error
        raise error
    assert threading.enumerate() == threads


def test_processes_that_were_not_started_alike_are_told_in_what():
    recipe = Path(__file__).parents[2] / "recipes" / "emoji" / "contrastive.toml"
    body = """
    from altclip_jax.training.config import RunConfig
    from altclip_jax.training.description import describe
    from altclip_jax.training.processes import require_same
    require_same(describe(RunConfig.read({recipe!r}, ["batch_size=64", "data.threads={threads}"]), []))
    print("alike so far")
    require_same(describe(RunConfig.read({recipe!r}, ["optimizer.learning_rate={rate}", *{more}]), []))
"""
    bodies = [
        body.format(recipe=str(recipe), threads=1, rate=1e-3, more=[]),
        body.format(recipe=str(recipe), threads=2, rate=2e-3, more=["mesh.fsdp=2"]),
    ]
    code, out, error = job(explicit(), *bodies)
    assert code == 1
    assert {"[0] alike so far", "[1] alike so far"} <= set(out.splitlines())
    assert "[0] altclip: The processes of this run were not started alike:" in error
    assert "[0]   - mesh.fsdp: 1 in process 0, 2 in process 1\n" in error
    assert "[0]   - optimizer.learning_rate: 0.001 in process 0, 0.002 in process 1\n" in error


def test_uneven_numbers_of_devices_are_told():
    one, other = explicit()
    other[other.index("--local-devices") + 1] = "3"
    body = "from altclip_jax.training.processes import require_same; require_same(None)"
    code, _, error = job([one, other], body, body)
    assert code == 1
    assert "same number of devices, but here: devices: 2 in process 0, 3 in process 1." in error


def test_who_is_done_waits_for_the_others_beyond_the_timeout_of_jax():
    options = [[*each, "--shutdown-timeout", "1"] for each in explicit()]
    code, out, error = job(options, "total(); time.sleep(4); print('written')", "total()")
    assert code == 0, error
    assert "[0] written" in out.splitlines()


def test_sigterm_reaches_python_and_without_a_handler_ends_the_process():
    noting = """
    from altclip_jax.training.interrupt import StopRequest
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        print("asked by", stop.name)
    total()
    time.sleep(100)
"""
    code, out, _ = job(explicit(), noting, "total(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)")
    assert code == 128 + signal.SIGTERM
    assert "[0] asked by SIGTERM" in out.splitlines()


def test_a_process_that_waits_in_vain_for_the_others_says_so():
    options = [*explicit()[0], "--initialization-timeout", "1"]
    code, _, error = job([options], "pass")
    assert code == 1
    assert f"[0] altclip: Process 0 of 2 waited 1 s for the run to come together at {options[1]}, and not" in error


def test_without_a_cluster_nothing_is_detected():
    code, _, error = job([["--distributed", "auto"]], "pass")
    assert code == 1
    assert "[0] altclip: jax finds no cluster in the environment of this process" in error


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_a_coordinator_that_cannot_be_reached_is_named(host, monkeypatch):
    monkeypatch.delenv("http_proxy", raising=False)
    address = f"{host}:{free_port()}"
    with pytest.raises(OSError, match=f"^Process 1 of 2 could not reach the coordinator {address} within 1 s \\("):
        join(Membership(coordinator=address, processes=2, process=1, initialization_timeout=1))


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match=f"^Process 0 cannot listen at port .* for the coordinator {address}"):
            join(Membership(coordinator=address, processes=2, process=0))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"detected": True, "processes": 2}, "processes is given as well: choose one of the two"),
        ({"coordinator": "a:1"}, "coordinator is given and processes and process are not"),
        ({"processes": 2, "process": 1}, "processes and process are given and coordinator is not"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "no process 2 of 2: they are numbered from 0 to 1"),
        ({"coordinator": "a:1", "processes": 0, "process": 0}, "at least one process, not 0"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "'a' is not HOST:PORT"),
        ({"coordinator": "a:70000", "processes": 2, "process": 0}, "'a:70000' is not HOST:PORT"),
        ({"local_devices": 0}, "at least one device, not 0"),
        ({"heartbeat_timeout": 0}, "heartbeat_timeout is 0; at least one second"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Membership(**settings)


def test_an_exchange_that_broke_off_is_a_sentence_and_other_errors_stay():
    broken = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    assert str(explained(broken)).startswith("The exchange with the other processes broke off (UNKNOWN: Gloo all-red")
    assert isinstance(explained(broken), OSError)
    assert explained(full) is full


def test_an_address_may_be_of_ipv6():
    assert Membership(coordinator="[::1]:4000", processes=1, process=0).address() == ("::1", 4000)
