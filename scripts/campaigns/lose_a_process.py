"""Lose one of two processes of a training run, go on with one process, and compare the end with an undisturbed run's.

    python -m scripts.campaigns.lose_a_process --output docs/lose_a_process.json

`altclip launch` trains the emoji sample in 2 processes of 2 devices; once it has saved, SIGKILL ends one of them, and
the launcher must end the other and say which it was. Then one process of 4 devices goes on to the end. An undisturbed
run in 1 process of 4 devices is what losses and parameters are compared with: the norm of the difference over the norm
of the parameters, and the largest relative difference of a step's loss, must stay below --tolerance. Exit code 1
otherwise.

The same once for each place where one process raises an error that the other does not meet, here without the launcher,
which would end the other, and with the timeouts of jax: both must end within --seconds with the sentence of that error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RECIPE = Path(__file__).parents[2] / "recipes/emoji/contrastive.toml"
ALTCLIP = [sys.executable, "-m", "altclip_jax"]
PROGRAM = """
import errno, pathlib, sys, time
from altclip_jax import cli, sweep
from altclip_jax.training import loop, run, stages
from orbax.checkpoint._src.checkpointers import async_checkpointer

def fail(*arguments, **options):
    pathlib.Path({moment!r}).write_text(str(time.time()))
    raise {error}

{fault}
sys.exit(cli.main(sys.argv[1:]))
"""
# who fails, what it raises, and how it comes to that
FAULTS: dict[str, tuple[int, str, str]] = {
    "building, before the first step": (1, "FileNotFoundError('lost: no such file')", "run.begin = fail"),
    "evaluation, in an exchange": (
        0,
        "MemoryError",
        """
def evaluated(self, step, state):
    sweep.Sweep._in_order = fail
    return plain(self, step, state)
plain, loop._Loop._evaluate = loop._Loop._evaluate, evaluated
""",
    ),
    "evaluation, after its exchanges": (1, "MemoryError", "stages.image_text_metrics = fail"),
    "saving, in the background": (
        1,
        "OSError(errno.ENOSPC, 'No space left on device')",
        """
def commit(directory, *arguments, **options):
    if list(pathlib.Path(directory).parent.glob("[0-9]0")):
        fail()
    return plain(directory, *arguments, **options)
plain, async_checkpointer._background_wait_for_commit_futures = (
    async_checkpointer._background_wait_for_commit_futures, commit)
""",
    ),
    "telling, in process 0": (0, "OSError(errno.ENOSPC, 'No space left on device')", "loop._Loop._tell = fail"),
}


def main() -> int:
    """Run the three runs and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of which process is killed, and when")
    parser.add_argument("--tolerance", type=float, default=2e-5)
    parser.add_argument("--seconds", type=float, default=60, help="until both have ended when one raises an error")
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    options = parser.parse_args()
    settings = [
        f"steps={options.steps}",
        f"batch_size={options.batch}",
        "optimizer.warmup_steps=5",
        "logging.every=1",
        f"checkpoints.every={max(options.steps // 6, 1)}",
        "checkpoints.keep_best=0",
        f"evaluation.every={options.steps // 2}",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        result = experiment(Path(scratch), settings, np.random.default_rng(options.seed), options.steps)
        result["errors"] = [fail_alone(Path(scratch), settings, where, options.steps) for where in FAULTS]
    ends = [result, *result["errors"]]
    result["holds"] = (
        result["launcher"] != 0
        and max(end[name] for end in ends for name in ("parameters", "losses")) <= options.tolerance
        and all(error["seconds_until_both_ended"] <= options.seconds for error in result["errors"])
        and all(0 not in error["exit_codes"] for error in result["errors"])
    )
    print(json.dumps(result, indent=2, ensure_ascii=False))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if result["holds"] else 1


def experiment(folder: Path, settings: list[str], moments: np.random.Generator, steps: int) -> dict[str, Any]:
    """Return what happened and how far the ends are apart."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    train = ["train", str(RECIPE), *settings]
    print("undisturbed, 1 process of 4 devices", flush=True)
    subprocess.run(
        [*ALTCLIP, *train, f"folder={folder / 'whole'}", "--local-devices", "4"], check=True, env=environment
    )
    print("2 processes of 2 devices, one of which is lost", flush=True)
    launcher = subprocess.Popen(
        [*ALTCLIP, "launch", "-n", "2", "--local-devices", "2", "--", *train, f"folder={folder / 'lost'}"],
        env=environment,
        stderr=(folder / "words").open("w", encoding="utf-8"),
    )
    first = moments.integers(steps // 4, steps // 2)
    while launcher.poll() is None and steps_told(folder / "lost") < first:
        time.sleep(0.1)
    if launcher.poll() is not None:
        raise SystemExit(f"the run failed by itself: {(folder / 'words').read_text()}")
    victim = int(moments.integers(2))
    killed_at = steps_told(folder / "lost")
    os.kill(processes_of(launcher.pid)[victim], signal.SIGKILL)
    begun = time.perf_counter()
    code = launcher.wait()
    ended_after = time.perf_counter() - begun
    words = (folder / "words").read_text(encoding="utf-8")
    said = words[words.index("altclip: ") :] if "altclip: " in words else words
    print(said, flush=True)
    print("the rest, 1 process of 4 devices", flush=True)
    subprocess.run([*ALTCLIP, *train, f"folder={folder / 'lost'}", "--local-devices", "4"], check=True, env=environment)
    return {
        "steps": steps,
        "killed": f"process {victim} when step {killed_at} was told",
        "launcher": code,
        "seconds_until_it_ended": round(ended_after, 1),
        "launcher_said": said.splitlines(),
        "losses": furthest_loss(folder / "whole", folder / "lost", steps),
        "parameters": distance(folder / "whole", folder / "lost"),
    }


def fail_alone(folder: Path, settings: list[str], where: str, steps: int) -> dict[str, Any]:
    """Return how two processes end of which one raises an error, and how far the end of the run is apart then."""
    failing, error, fault = FAULTS[where]
    name = where.replace(" ", "_")
    moment = folder / f"{name}.moment"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    train = ["train", str(RECIPE), *settings, f"folder={folder / name}"]
    print(f"2 processes, one of which raises an error: {where}", flush=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    timeouts = ["--heartbeat-timeout", "100", "--shutdown-timeout", "300"]
    shared = ["--coordinator", address, "--processes", "2", "--local-devices", "2", *timeouts]
    both = [
        subprocess.Popen(
            [
                *(sys.executable, "-c"),
                PROGRAM.format(moment=str(moment), error=error, fault=fault if process == failing else ""),
                *(*train, *shared, "--process", str(process)),
            ],
            env=environment,
            stderr=(folder / f"{name}.{process}").open("w", encoding="utf-8"),
        )
        for process in range(2)
    ]
    codes = [process.wait() for process in both]
    ended_after = time.time() - float(moment.read_text())
    words = [(folder / f"{name}.{process}").read_text(encoding="utf-8").splitlines()[-1] for process in range(2)]
    whole = sorted(int(path.name) for path in (folder / name / "checkpoints").glob("[0-9]*") if path.name.isdecimal())
    print(*words, sep="\n", flush=True)
    subprocess.run([*ALTCLIP, *train, "--local-devices", "4"], check=True, env=environment)
    return {
        "where": f"{where}, process {failing}",
        "exit_codes": codes,
        "seconds_until_both_ended": round(ended_after, 1),
        "last_words": [text.replace(str(folder), "...") for text in words],
        "last_checkpoint": whole[-1] if whole else None,
        "losses": furthest_loss(folder / "whole", folder / name, steps),
        "parameters": distance(folder / "whole", folder / name),
    }


def steps_told(run: Path) -> int:
    """Return the last step in a run's log."""
    log = run / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith(b"\n")), default=0)


def processes_of(launcher: int) -> list[int]:
    """Return the processes that a launcher has started, in the order of their numbers."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(map(int, children))


def furthest_loss(left: Path, right: Path, steps: int) -> float:
    """Return the largest relative difference of a step's loss; each step must be told once."""
    losses = []
    for run in (left, right):
        entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        told = {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
        if sorted(told) != list(range(1, steps + 1)) or len(told) != sum("loss" in entry for entry in entries):
            raise SystemExit(f"{run} does not tell each step once")
        losses.append(np.array([told[step] for step in sorted(told)]))
    return float(np.max(np.abs(losses[1] / losses[0] - 1)))


def distance(left: Path, right: Path) -> float:
    """Return the norm of the difference of two exported models' parameters over the norm of the first's."""
    from safetensors.numpy import load_file

    mine, other = (load_file(run / "export/model.safetensors") for run in (left, right))
    squares = [(np.square(mine[name] - other[name]).sum(dtype=np.float64)) for name in mine]
    return float(np.sqrt(sum(squares) / sum(np.square(leaf).sum(dtype=np.float64) for leaf in mine.values())))


if __name__ == "__main__":
    sys.exit(main())
