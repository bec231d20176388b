"""Run both stages over meshes that cross processes, on data with bad samples, and compare with one process.

    python -m scripts.campaigns.meshes --output docs/mesh_campaign.json

Each layout is a number of processes of so many devices, and the meshes that are laid over all of them: data, fsdp and
tensor across processes and within them, also such that two processes have one block of rows in common and others not.
Of the samples 5 % are bad, all in odd rows: where processes take turns, one has all of them. For each mesh features are
computed, a first state is evaluated, and a few steps are made. One process of one device says what must come out: the
same rows of features, within FEATURES; the same recalls; losses and the gradient within LOSSES and GRADIENT. Exit code
1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FEATURES = 2e-6  # largest difference of a number, of order 1
LOSSES = 2e-6  # relative, of evaluations and of steps
GRADIENT = 2e-6  # norm of the difference over norm
BATCH = 12  # rows: over 1, 2, 3, 4 or 6 devices
TOKENIZER = Path(__file__).parents[2] / "recipes/emoji/teacher"  # the teacher's
STAGES = ("contrastive", "teacher")
WORDS = "red green small large old new round flat cat dog house tree boat star moon river stone bread".split()


class Mesh(NamedTuple):
    """Axes over all devices; `across` orders these so that neighbours along the last axis are in two processes."""

    axes: dict[str, int]
    across: bool = False
    stages: tuple[str, ...] = STAGES

    def __str__(self) -> str:
        named = " x ".join(f"{name} {size}" for name, size in self.axes.items())
        return f"{named}, neighbours in two processes" if self.across else named


class Layout(NamedTuple):
    """Processes of so many devices each."""

    processes: int
    devices: int
    meshes: tuple[Mesh, ...]


LAYOUTS = (
    Layout(2, 1, (Mesh({"data": 2}), Mesh({"fsdp": 2}), Mesh({"tensor": 2}))),
    Layout(
        2,
        2,
        (
            Mesh({"data": 4}),
            Mesh({"fsdp": 4}),
            Mesh({"tensor": 4}),
            Mesh({"data": 2, "fsdp": 2}),
            Mesh({"data": 2, "tensor": 2}),
            Mesh({"data": 2, "tensor": 2}, across=True),
            Mesh({"fsdp": 2, "tensor": 2}, across=True),
        ),
    ),
    Layout(2, 3, (Mesh({"data": 3, "tensor": 2}),)),  # the block in the middle is in both
    Layout(4, 1, (Mesh({"data": 2, "tensor": 2}), Mesh({"fsdp": 2, "tensor": 2}))),
)


def main() -> int:
    """Run all layouts and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="with a picture, and as many pairs of texts")
    parser.add_argument("--bad", type=float, default=0.05, help="share of the samples; they are in odd rows")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    parser.add_argument("--member", help=argparse.SUPPRESS)  # what one process of a layout does, as JSON
    options = parser.parse_args()
    if options.member:
        member(**json.loads(options.member))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        result = campaign(Path(scratch), LAYOUTS, options.samples, options.bad, options.steps)
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["holds"] else 1


def campaign(folder: Path, layouts: Sequence[Layout], samples: int, bad: float, steps: int) -> dict[str, Any]:
    """Return how far all meshes are from one process."""
    write_models(folder)
    lost = write_data(folder, samples, bad)
    (alone,) = run_layout(folder, Layout(1, 1, (Mesh({"data": 1}),)), steps)
    found = []
    for layout in layouts:
        for mesh, results in zip(layout.meshes, run_layout(folder, layout, steps), strict=True):
            of = {"processes": layout.processes, "devices of each": layout.devices, "mesh": str(mesh)}
            for stage in mesh.stages:
                found.append({**of, "stage": stage, **compare(alone / stage, results / stage)})
                print(json.dumps(found[-1]), flush=True)
    complete = [compare(alone / stage, alone / stage)["features found"] for stage in STAGES]
    return {
        "samples": samples,
        "bad, in odd rows": lost,
        "steps": steps,
        "meshes": found,
        "holds": complete == [samples - lost] * len(STAGES) and all(entry["holds"] for entry in found),
    }


def write_models(folder: Path) -> None:
    """Write a tiny student and a tiny teacher."""
    import jax

    from altclip_jax import AltCLIPConfig, AltCLIPModel, AltCLIPProcessor, CLIPConfig, CLIPModel
    from altclip_jax.assets import default_checkpoint

    text = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
    }
    student_text = {
        **text,
        "vocab_size": 8000,
        "max_position_embeddings": 66,
        "project_dim": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    picture = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 16,
    }
    student = AltCLIPModel(AltCLIPConfig(text_config=student_text, vision_config=picture, projection_dim=16))
    teacher_text = {**text, "vocab_size": 2048, "eos_token_id": 2047}
    teacher = CLIPModel(CLIPConfig(text_config=teacher_text, vision_config=picture, projection_dim=16))
    student.save_pretrained(folder / "student", student.init_params(jax.random.key(0)))
    teacher.save_pretrained(folder / "teacher", teacher.init_params(jax.random.key(1)))
    AltCLIPProcessor.from_pretrained(default_checkpoint()).save_pretrained(folder / "student")
    AltCLIPProcessor.from_pretrained(TOKENIZER).save_pretrained(folder / "teacher")


def write_data(folder: Path, samples: int, bad: float) -> int:
    """Write pictures with captions and parallel text, each once to learn from and a tenth of it to evaluate.

    Returns:
        How many samples are bad, of either kind.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    odd = np.arange(1, samples, 2)
    lost = set(rng.choice(odd, round(samples * bad), replace=False).tolist())
    (folder / "pictures").mkdir()
    pictures, pairs = [], []
    for number in range(samples):
        path = folder / "pictures" / f"{number}.png"
        if number in lost:
            path.write_bytes(b"no picture")
        else:
            Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8)).save(path)
        text = " ".join(rng.choice(WORDS, 3))
        pictures.append(json.dumps({"image": str(path), "captions": {"en": text, "fr": f"{text} {number}"}}))
        pairs.append(f"{text} {number}\t{'' if number in lost else text}\tfr")
    for name, lines in {"pictures.jsonl": pictures, "pairs.tsv": pairs}.items():
        head = ["source\ttarget\tlanguage"] if name.endswith(".tsv") else []
        (folder / name).write_text("\n".join([*head, *lines, ""]), encoding="utf-8")
        (folder / f"held_out_{name}").write_text("\n".join([*head, *lines[: samples // 10], ""]), encoding="utf-8")
    return len(lost)


def run_layout(folder: Path, layout: Layout, steps: int) -> list[Path]:
    """Start the processes of a layout, and return where each mesh left what it found."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    results = [folder / f"{layout.processes}x{layout.devices}" / str(number) for number in range(len(layout.meshes))]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    running = []
    for process in range(layout.processes):
        told = {
            "folder": str(folder),
            "processes": layout.processes,
            "process": process,
            "devices": layout.devices,
            "address": address,
            "meshes": layout.meshes,
            "results": [str(result) for result in results],
            "steps": steps,
        }
        command = [sys.executable, __file__, "--member", json.dumps(told)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        words = [process.communicate(timeout=1800)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    if any(process.returncode for process in running):
        raise SystemExit("\n".join(f"process {number}:\n{word}" for number, word in enumerate(words)))
    return results


def member(
    *,
    folder: str,
    processes: int,
    process: int,
    devices: int,
    address: str,
    meshes: list[Any],
    results: list[str],
    steps: int,
) -> None:
    """Do what one process of a layout does."""
    from altclip_jax.distributed import Membership, join

    shared = {"coordinator": address, "processes": processes, "process": process} if processes > 1 else {}
    join(Membership(**shared, local_devices=devices, heartbeat_timeout=60))
    for mesh, result in zip(itertools.starmap(Mesh, meshes), results, strict=True):
        with lay_out(mesh):
            for stage in mesh.stages:
                measure(Path(folder), Path(result) / stage, stage, mesh.axes, steps)


@contextlib.contextmanager
def lay_out(mesh: Mesh) -> Iterator[None]:
    """Give every mesh the devices in the order that is wanted."""
    import jax

    from altclip_jax import parallel

    devices = jax.devices()
    if mesh.across:
        devices = np.reshape(devices, (jax.process_count(), -1)).T.reshape(-1).tolist()
    plain = parallel.make_mesh
    parallel.make_mesh = functools.partial(plain, devices=devices)
    try:
        yield
    finally:
        parallel.make_mesh = plain


def measure(folder: Path, run_folder: Path, stage: str, axes: dict[str, int], steps: int) -> None:
    """Compute features, evaluate a first state, make some steps, and keep what came out."""
    import optax

    from altclip_jax.distributed import barrier, is_first
    from altclip_jax.training.description import files_of
    from altclip_jax.training.processes import whole
    from altclip_jax.training.run import build
    from altclip_jax.weights.convert import flatten

    data = "pictures.jsonl" if stage == "contrastive" else "pairs.tsv"
    config = run_config(folder, run_folder, stage, axes, data)
    run_folder.mkdir(parents=True, exist_ok=True)
    run = build(config, run_folder, files_of(config.data.train), resumed=False)
    state = run.first_state()
    assert run.evaluate is not None
    metrics = run.evaluate(state)
    losses, gradient = [], {}
    with run.batches(0) as batches:
        for batch in itertools.islice(batches, steps):
            state, told = run.step(state, batch.placed)
            losses.append(float(told["loss"]))
            if not gradient:  # the first momentum is the first gradient
                momentum = optax.tree.get(state.opt_state, "trace")
                gradient = {path: np.asarray(leaf) for path, leaf in flatten(whole(momentum)).items()}
    barrier("measured")
    if is_first():
        (name,) = (path.name[:-4] for path in (run_folder / "features").glob("*_train.npy"))
        rows = np.load(run_folder / "features" / f"{name}.npy")
        there = np.load(run_folder / "features" / f"{name}.there.npy")
        gradients = {f"gradient/{path}": leaf for path, leaf in gradient.items()}
        np.savez(run_folder / "found.npz", rows=rows, there=there, losses=losses, **gradients)
        (run_folder / "metrics.json").write_text(json.dumps(metrics))
    barrier("kept")


def run_config(folder: Path, run_folder: Path, stage: str, axes: dict[str, int], data: str) -> Any:
    """Return what a run of either stage is."""
    from altclip_jax.training.config import RunConfig

    values: dict[str, Any] = {
        "stage": stage,
        "folder": str(run_folder),
        "steps": 100,
        "batch_size": BATCH,
        "model": {"source": str(folder / "student"), "remat": "none"},
        "data": {
            "max_length": 12,
            "train": [{"path": str(folder / data)}],
            "evaluate": [{"path": str(folder / f"held_out_{data}")}],
            "max_bad_share": 0.06,  # of all; of the odd rows, 10 % are bad
        },
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "warmup_steps": 1, "weight_decay": 0.0},
        "evaluation": {"batch_size": BATCH},
        "mesh": axes,
    }
    if stage == "teacher":
        values["teacher"] = {"source": str(folder / "teacher"), "max_length": 12}
    return RunConfig.from_values(values)


def compare(expected: Path, found: Path) -> dict[str, Any]:
    """Return how far what one mesh found is from what is expected."""
    want, have = (np.load(folder / "found.npz") for folder in (expected, found))
    wanted, had = (json.loads((folder / "metrics.json").read_text()) for folder in (expected, found))
    both = want["there"] & have["there"]
    losses = [name for name in wanted if name.endswith("loss")]
    squares = [
        (np.square(have[name] - want[name]).sum(dtype=np.float64), np.square(want[name]).sum(dtype=np.float64))
        for name in want
        if name.startswith("gradient/")
    ]
    difference, norm = np.sqrt(np.sum(squares, axis=0))
    result: dict[str, Any] = {
        "features found": int(have["there"].sum()),
        "missing features": int((want["there"] & ~have["there"]).sum()),
        "features of bad samples": int((have["there"] & ~want["there"]).sum()),
        "features": float(np.abs(have["rows"][both] - want["rows"][both]).max()),
        "recalls": max(abs(had[name] - wanted[name]) for name in wanted if name not in losses),
        "loss of evaluation": max(abs(had[name] / wanted[name] - 1) for name in losses),
        "losses": float(np.abs(have["losses"] / want["losses"] - 1).max()),
        "gradient": float(difference / norm),
    }
    limits = {
        "missing features": 0,
        "features of bad samples": 0,
        "features": FEATURES,
        "recalls": 0,
        "loss of evaluation": LOSSES,
        "losses": LOSSES,
        "gradient": GRADIENT,
    }
    return {**result, "holds": bool(all(result[name] <= limit for name, limit in limits.items()))}


if __name__ == "__main__":
    sys.exit(main())
