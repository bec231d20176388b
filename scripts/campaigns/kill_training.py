"""Kill a training run at random moments, go on, and compare the end with that of a run that nobody touched.

    python -m scripts.campaigns.kill_training --kills 20 --output docs/kill_training.json

Each run is a process of `altclip train` on the pictures that come with the package, with dropout, a moving average
and checkpoints every few steps; it is ended by SIGKILL after a random time, and started again until it is done. Then
the last checkpoint (parameters, moments of the optimizer, average, step) must equal the undisturbed one's bit for
bit, and the log must tell each step once, with the same loss. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from altclip_jax.assets import PICTURES, default_checkpoint

STEPS = 150
SETTINGS = """
stage = "contrastive"
folder = "undisturbed"
steps = {steps}
batch_size = 16
[model]
source = "student"
[data]
max_length = 16
store_image_features = false
train = [{{path = "pictures.jsonl"}}]
evaluate = [{{path = "pictures.jsonl"}}]
[optimizer]
learning_rate = 1e-4
warmup_steps = 10
ema_decay = 0.9
[loss]
micro_batches = 2
[checkpoints]
every = 7
[evaluation]
every = 60
[logging]
every = 1
"""


def main() -> int:
    """Run the campaign and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run")
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = campaign(Path(scratch), options.kills, options.seed, options.steps)
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if result["differences"] else 0


def campaign(folder: Path, kills: int, seed: int, steps: int) -> dict[str, Any]:
    """Return how often a run was killed, where, and what differed."""
    prepare(folder, steps)
    start = time.perf_counter()
    finish(folder, "undisturbed")
    seconds = time.perf_counter() - start
    expected, lines = final_state(folder / "undisturbed", steps), read_log(folder / "undisturbed")
    moments, killed_at, differences, runs = random.Random(seed), [], [], 0
    while len(killed_at) < kills:
        runs += 1
        name = f"killed_{runs}"
        while len(killed_at) < kills:
            process = start_run(folder, name)
            try:
                process.wait(timeout=moments.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed_at.append(last_step(folder / name))
                print(f"kill {len(killed_at)} of {kills}: the log ends at step {killed_at[-1]}", flush=True)
            else:
                if process.returncode:
                    raise SystemExit(f"the run failed by itself: {(folder / 'stderr').read_text()}")
                break
        finish(folder, name)
        found = final_state(folder / name, steps)
        differences += [f"{name}: {key}" for key in expected if not np.array_equal(expected[key], found[key])]
        differences += [f"{name}: another log"] if read_log(folder / name) != lines else []
        shutil.rmtree(folder / name)
    return {
        "kills": len(killed_at),
        "runs": runs,
        "steps": steps,
        "seconds_undisturbed": round(seconds, 1),
        "log_ended_at": killed_at,
        "arrays_compared": len(expected),
        "differences": differences,
    }


def prepare(folder: Path, steps: int) -> None:
    """Write the data, a student with dropout, and the configuration."""
    names = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
    with (folder / "pictures.jsonl").open("w", encoding="utf-8") as file:
        for name, captions in names.items():
            pictures = [str(PICTURES / f"{name}_{design}.png") for design in ("noto", "fxemoji")]
            file.write(json.dumps({"image": pictures, "captions": captions}, ensure_ascii=False) + "\n")
    shutil.copytree(default_checkpoint(), folder / "student")
    config = json.loads((folder / "student/config.json").read_text(encoding="utf-8"))
    config["text_config"] |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (folder / "student/config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "run.toml").write_text(SETTINGS.format(steps=steps), encoding="utf-8")


def start_run(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """Start or go on with a run in its own process."""
    command = [sys.executable, "-m", "altclip_jax", "train", "run.toml", f"folder={name}"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=(folder / "stderr").open("wb")
    )


def finish(folder: Path, name: str) -> None:
    """Let a run go on to its end."""
    if start_run(folder, name).wait():
        raise SystemExit(f"the run failed by itself: {(folder / 'stderr').read_text()}")


def final_state(run: Path, steps: int) -> dict[str, np.ndarray]:
    """Return every array of the last checkpoint by its path."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((run / "checkpoints" / str(steps) / "state").absolute())
    return {
        jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def read_log(run: Path) -> list[tuple[Any, ...]]:
    """Return what the log tells of each step, but for how fast it went."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(entry["step"], entry.get("loss"), json.dumps(entry.get("evaluation"))) for entry in entries]


def last_step(run: Path) -> int:
    """Return the last step that a killed run told of."""
    log = run / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


if __name__ == "__main__":
    sys.exit(main())
