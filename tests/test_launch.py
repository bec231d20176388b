"""`altclip launch` with small programs in the place of training: however one of them ends, all end, and it is said."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DRIVER = """
import json, sys
from altclip_jax.cli.job import Job
sys.exit(Job([[sys.executable, "-c", program] for program in sys.argv[2:]], **json.loads(sys.argv[1])).run())
"""
HANG = "import os, time; print('there', os.getpid(), flush=True); time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + HANG
COUNTING = """
import os, signal, sys, time
told = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: told.append(signal.Signals(number).name))
print("there", os.getpid(), flush=True)
while {condition}:
    time.sleep(0.01)
time.sleep(0.2)  # for what is told twice
print("told", *told, flush=True)
sys.exit({code})
"""
STOPPED = COUNTING.format(condition="not told", code=75)


def command(*programs, **options):
    return [sys.executable, "-c", DRIVER, json.dumps({"grace": 1, "patience": 1, "settling": 0, **options}), *programs]


def run(*programs, **options):
    """Returns exit code, the lines on standard output, and standard error."""
    done = subprocess.run(command(*programs, **options), check=False, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines(), done.stderr


def start(*programs):
    """Returns the job and the process ids, once each process has said that it is there."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen(command(*programs), start_new_session=True, **pipes)
    there = dict(job.stdout.readline().split(" there ") for _ in programs)
    return job, [int(there[f"[{number}]"]) for number in range(len(programs))]


def end_of(job):
    out, error = job.communicate(timeout=60)
    return job.returncode, sorted(out.splitlines()), error


def is_gone(pid):
    """Waits for the end of a process; dead is gone, though whoever inherited it has not looked yet."""
    for _ in range(600):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_every_line_begins_with_its_process_and_a_job_that_is_done_says_no_more():
    code, out, error = run("import sys; print('a\\n\\nb'); print('c', file=sys.stderr)", "print('d\\r\\ne', end='')")
    assert (code, error) == (0, "[0] c\n")
    assert [line for line in out if line.startswith("[0]")] == ["[0] a", "[0] ", "[0] b"]
    assert [line for line in out if line.startswith("[1]")] == ["[1] d", "[1] e"]


def test_json_is_passed_on_as_it_is():
    code, out, error = run("import sys; print('{}'); print('a', file=sys.stderr)", "pass", numbered_output=False)
    assert (code, out, error) == (0, ["{}"], "[0] a\n")


def test_a_failure_ends_all_and_its_last_lines_are_repeated_without_stack_frames():
    failing = "for k in range(9): print('line', k)\nprint('    @     0x7fc71f240634  frame')\nraise SystemExit(3)"
    code, _, error = run(HANG, failing, HANG)
    assert code == 3
    assert error.splitlines() == [
        "altclip: process 1 of 3 ended with exit code 3. It last said:",
        *[f"  [1] line {k}" for k in range(4, 9)],
        "altclip: process 0 ended by SIGTERM from this command",
        "altclip: process 2 ended by SIGTERM from this command",
    ]


def test_a_process_that_is_killed_is_named_and_the_deaf_are_killed_after_it():
    job, pids = start(DEAF, HANG)
    os.kill(pids[1], signal.SIGKILL)
    code, _, error = end_of(job)
    assert code == 128 + signal.SIGKILL
    assert error.splitlines() == [
        "altclip: process 1 of 2 ended by SIGKILL (by someone, or by the system when memory ran out). It last said:",
        f"  [1] there {pids[1]}",
        "altclip: process 0 ended by SIGKILL from this command",
    ]


def test_of_two_that_fail_the_first_is_blamed_and_the_other_may_speak():
    later = "import time; time.sleep(0.3); print('me too'); raise SystemExit(4)"
    code, out, error = run(later, "raise SystemExit(3)", settling=60)
    assert (code, out) == (3, ["[0] me too"])
    assert error.splitlines() == [
        "altclip: process 1 of 2 ended with exit code 3",
        "altclip: process 0 ended with exit code 4",
    ]


def test_one_that_ended_because_another_failed_is_not_blamed_though_it_was_the_first():
    later = "import time; time.sleep(0.5); print('why'); raise SystemExit(3)"
    code, _, error = run("raise SystemExit(76)", later, patience=60)
    assert code == 3
    assert error.splitlines() == [
        "altclip: process 1 of 2 ended with exit code 3. It last said:",
        "  [1] why",
        "altclip: process 0 ended with exit code 76, because another one failed",
    ]


def test_who_goes_on_alone_is_ended():
    code, _, error = run("print('done')", HANG)
    assert code == 1
    assert error.splitlines() == [
        "altclip: process 0 of 2 ended with exit code 0, and not all others within 1 s after it. It last said:",
        "  [0] done",
        "altclip: process 1 ended by SIGTERM from this command",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_all_stopped_is_75(number):
    job, pids = start(STOPPED, STOPPED)
    assert [
        os.getsid(pid) for pid in pids
    ] == pids  # so that what a terminal sends to the job's group is not told twice
    os.killpg(job.pid, number)
    assert end_of(job) == (75, [f"[{process}] told {number.name}" for process in range(2)], "")


def test_a_second_ctrl_c_leaves_the_grace_period():
    job, _ = start(*[COUNTING.format(condition="True", code=0)] * 2)
    job.send_signal(signal.SIGINT)
    time.sleep(0.2)  # or the system makes one signal of two
    job.send_signal(signal.SIGINT)
    code, _, error = end_of(job)
    assert code == 130
    assert error.splitlines() == [
        "altclip: interrupted twice",
        "altclip: process 0 ended by SIGKILL from this command",
        "altclip: process 1 ended by SIGKILL from this command",
    ]


def test_a_signal_to_one_process_is_its_own_matter():
    waiting = "import time; end = time.monotonic() + 1\n" + COUNTING.format(condition="time.monotonic() < end", code=75)
    job, pids = start(waiting, STOPPED)
    os.kill(pids[1], signal.SIGTERM)
    assert end_of(job) == (75, ["[0] told", "[1] told SIGTERM"], "")


def test_nothing_outlives_a_launcher_that_is_killed():
    job, pids = start(HANG, HANG)
    job.kill()
    job.communicate()
    assert all(is_gone(pid) for pid in pids)


def test_nothing_that_a_process_started_outlives_it():
    starting = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
sys.exit(5)
"""
    code, out, _ = run(starting)
    assert code == 5
    assert is_gone(int(out[0].split()[1]))


def test_a_progress_bar_is_shown_of_process_0_on_a_terminal():
    bar = r"""
import time
for part in ("1%", "2%", "3%"):
    print("\r" + part, end="", flush=True)
    time.sleep(0.05)
print("\rdone")
"""
    code, out, _ = run(bar, bar)
    assert (code, sorted(out)) == (0, ["[0] done", "[1] done"])
    ours, theirs = pty.openpty()
    done = subprocess.run(command(bar, bar), check=False, stdout=theirs, stderr=theirs, timeout=60)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 1 << 16):
            shown += piece
    except OSError:  # so a terminal ends whose other side is closed
        pass
    os.close(ours)
    assert done.returncode == 0
    assert b"[0] 1%\x1b[K\r" in shown
    assert b"[0] done\x1b[K\r\n" in shown
    assert b"[1] done\x1b[K\r\n" in shown
    assert b"[1] 1%" not in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-n", "2", "--", "python", "-c", "pass"], "'python' does not run in several processes"),
        (["-n", "0", "--", "train", "x.toml"], "At least one process is needed, not 0."),
        (["-n", "2", "--", "train", "x.toml", "--process=1"], "--process=1: what each process is told"),
    ],
)
def test_what_cannot_be_launched_is_refused_before_anything_starts(arguments, sentence):
    program = f"""
import sys
from altclip_jax import cli
code = cli.main(["launch", *{arguments!r}])
assert "jax" not in sys.modules
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_what_is_wrong_with_a_configuration_is_said_by_its_process():
    launch = [sys.executable, "-m", "altclip_jax", "launch", "-n", "2", "--", "train", "nowhere.toml", "steps=3"]
    done = subprocess.run(launch, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    said = re.search(r"process ([01]) of 2 ended with exit code 1\. It last said:\n  \[\1\] altclip: (.*)", done.stderr)
    assert "nowhere.toml" in said[2]
