"""Lose one of two processes of a training run, go on with one process, and compare the end with an undisturbed run's.

    python scripts/lose_a_process.py --output docs/lose_a_process.json

`altclip launch` trains the emoji sample in 2 processes of 2 devices; once it has saved, SIGKILL ends one of them, and
the launcher must end the other and say which it was. Then one process of 4 devices goes on to the end. An undisturbed
run in 1 process of 4 devices is what losses and parameters are compared with: the norm of the difference over the norm
of the parameters, and the largest relative difference of a step's loss, must stay below --tolerance. Exit code 1
otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RECIPE = Path(__file__).parents[1] / "recipes/emoji/contrastive.toml"
ALTCLIP = [sys.executable, "-m", "altclip_jax"]


def main() -> int:
    """Run the three runs and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of which process is killed, and when")
    parser.add_argument("--tolerance", type=float, default=2e-5)
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    options = parser.parse_args()
    settings = [
        f"steps={options.steps}",
        f"batch_size={options.batch}",
        "optimizer.warmup_steps=5",
        "logging.every=1",
        f"checkpoints.every={max(options.steps // 6, 1)}",
        "checkpoints.keep_best=0",
        f"evaluation.every={options.steps}",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        result = experiment(Path(scratch), settings, np.random.default_rng(options.seed), options.steps)
    result["holds"] = max(result["parameters"], result["losses"]) <= options.tolerance and result["launcher"] != 0
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
