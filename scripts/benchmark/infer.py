"""Inference against transformers, old and new: each side in a process of its own, in turn, with the same inputs.

Full-size towers of BAAI/AltCLIP with random values. A side is measured by its own clock, so that the process that asks
costs nothing; a number is the median over the rounds, of which each asks every side once.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.benchmark import core
from scripts.benchmark.captions import captions
from scripts.benchmark.process import Process, say

WORKER = "scripts.benchmark.worker"
SIZES = (1024, 2048, 4096, 8192)
WIDTH, LAYERS, TOKENS, PATCH = 1024, 24, 257, 14
# multiplications and additions of a picture in a ViT-L/14: kernels, scores and sums of attention, patches
FLOPS = LAYERS * (24 * WIDTH**2 * TOKENS + 4 * WIDTH * TOKENS**2) + 2 * 3 * PATCH**2 * WIDTH * (TOKENS - 1)
FIRST = {
    "ours": "from altclip_jax import AltCLIP; AltCLIP.from_pretrained(folder).encode_text(['a cat'])",
    "transformers": (
        "import torch; from transformers import AltCLIPModel as M, AutoTokenizer as T;"
        " t = T.from_pretrained(folder)(['a cat'], return_tensors='pt');"
        " M.from_pretrained(folder).get_text_features(t['input_ids'], t['attention_mask'])"
    ),
}


class Benchmark:
    """The rounds of all sides, and the lines of the table."""

    def __init__(self, folder: Path, peers: Sequence[tuple[str, str]], device: str, repeats: int):
        """Start a process for this library and one for each peer: (Python, attention)."""
        self.folder, self.device, self.repeats = folder, device, repeats
        self.sides = {"ours": Process(sys.executable, WORKER, "ours", str(folder), device)}
        for python, attention in peers:
            peer = Process(python, WORKER, "transformers", str(folder), device, attention)
            self.sides[peer.ask("about").split(",")[0]] = peer
        self.about = {side: process.ask("about") for side, process in self.sides.items()}
        self.lines: list[dict[str, Any]] = []

    def close(self) -> None:
        """End all processes."""
        for side in self.sides.values():
            side.close()

    def measure(self, name: str, *task: Any, per: int = 1, repeats: int | None = None) -> dict[str, float]:
        """Add a line: seconds of a task, or of one of its `per` parts, after a round that is not counted."""
        runs: dict[str, list[float]] = {side: [] for side in self.sides}
        for turn in range(1 + (repeats or self.repeats)):
            for side, worker in self.sides.items():
                took = worker.ask(*task)
                if turn:
                    runs[side].append(took / per)
        return self.add(name, {side: statistics.median(found) for side, found in runs.items()}, "s")

    def add(self, name: str, values: dict[str, float], unit: str) -> dict[str, float]:
        """Add a line and print it."""
        ratios = {side: value / values["ours"] for side, value in values.items() if side != "ours"}
        self.lines.append({"name": name, "unit": unit, "values": values, "ratios": ratios})
        print(
            f"{name:58}",
            *(
                f"{side} {value:.4g} {unit}" + (f" ({ratios[side]:.2f}x)" if side in ratios else "")
                for side, value in values.items()
            ),
            sep="  ",
            flush=True,
        )
        return values

    def peak(self) -> dict[str, Any]:
        """Measure the best float32 product: the larger of numpy, torch and jax at each size."""
        speeds: dict[str, dict[int, float]] = {}
        for size in SIZES:
            for side, worker in self.sides.items():
                for library, task in (("numpy", "numpy_product"), ("jax" if side == "ours" else "torch", "product")):
                    if library == "numpy" and (side != "ours" or self.device != "cpu"):
                        continue
                    took = min(worker.ask(task, size) for _ in range(3))
                    own = speeds.setdefault(library, {})
                    own[size] = max(own.get(size, 0.0), 2 * size**3 / took / 1e9)
        best = max(max(own.values()) for own in speeds.values())
        print(f"best float32 product: {best:,.0f} GFLOP/s  {speeds}", flush=True)
        return {"best_gflops": best, "by_library": speeds}


def run(
    repeats: int,
    tokenizer: Path,
    peers: Sequence[tuple[str, str]],
    device: str,
    numbers: Sequence[str],
    *,
    tiny: bool = False,
) -> dict[str, Any]:
    """Return the lines of the table and what they were measured with."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say("writing a model and pictures")
        write_model(folder / "model", tokenizer, tiny)
        files, texts = write_pictures(folder / "pictures", 32), captions(256)
        say("starting the sides")
        benchmark = Benchmark(folder / "model", peers, device, repeats)
        try:
            say("measuring products")
            peak = benchmark.peak()
            for number in numbers:
                of_one_number(benchmark, number, files, texts, peak["best_gflops"])
        finally:
            benchmark.close()
        if device == "cpu":
            fresh(benchmark)
        return {"sides": benchmark.about, "peak": peak, "flops_of_a_picture": FLOPS, "rows": benchmark.lines}


def of_one_number(benchmark: Benchmark, number: str, files: list[str], texts: list[str], best: float) -> None:
    """Measure everything in float32, tf32 or bfloat16."""
    say(f"loading in {number}")
    for worker in benchmark.sides.values():
        worker.ask("load", number)
    resident = {side: worker.ask("resident") for side, worker in benchmark.sides.items()}
    for rows in (1, 8, 32):
        found = benchmark.measure(f"{number}: pictures, batch {rows}, of one", "images", rows, per=rows)
        if number == "float32":
            shares = {side: 100 * FLOPS / took / 1e9 / best for side, took in found.items()}
            benchmark.add(f"{number}: pictures, batch {rows}, of the best product", shares, "%")
    for batch, name in ((1, "one by one"), (8, "eight at a time"), (0, "a list of 256")):
        some = texts if batch == 0 else texts[: 16 * batch]
        benchmark.measure(f"{number}: captions, {name}, of one", "captions", some, batch, per=len(some))
    benchmark.measure(f"{number}: 32 JPEG files and 32 captions", "files", files, texts[:32], 32)
    if benchmark.device == "cpu":
        growth = {side: worker.ask("peak") - resident[side] for side, worker in benchmark.sides.items()}
        benchmark.add(f"{number}: memory beyond the model", growth, "GiB")
    if number == "float32":
        for threads, name in ((0, "as called"), (1, "one thread")):
            benchmark.measure(f"preprocess 32 decoded photographs, {name}", "preprocess", files, threads, repeats=7)


def fresh(benchmark: Benchmark) -> None:
    """Measure the time of a new process to its first embedding, with a compilation cache that is warm."""
    runs: dict[str, list[float]] = {side: [] for side in benchmark.sides}
    with tempfile.TemporaryDirectory() as cache:
        environment = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for turn in range(1 + benchmark.repeats):
            for side, worker in benchmark.sides.items():
                program = f"folder = {str(benchmark.folder)!r}\n{FIRST[worker.arguments[0]]}"
                begin = time.perf_counter()
                subprocess.run(
                    [worker.python, "-W", "ignore", "-c", program],
                    check=True,
                    capture_output=True,
                    env={**os.environ, **environment},
                )
                if turn:
                    runs[side].append(time.perf_counter() - begin)
    benchmark.add("fresh process to first caption", {side: statistics.median(own) for side, own in runs.items()}, "s")


def write_model(folder: Path, tokenizer: Path, tiny: bool) -> None:
    """Write the full-size model with random values, or one that is small and of no interest but to try this out."""
    import jax

    from altclip_jax import AltCLIPConfig, AltCLIPImageProcessor, AltCLIPModel, AltCLIPTokenizer

    config = AltCLIPConfig.altclip()
    if tiny:
        small: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        config = dataclasses.replace(
            config,
            text_config=dataclasses.replace(config.text_config, **small),
            vision_config=dataclasses.replace(config.vision_config, **small),
        )
    model = AltCLIPModel(config)
    with jax.default_device(jax.devices("cpu")[0]):  # an accelerator belongs to the sides
        model.save_pretrained(folder, model.init_params(jax.random.key(0)))
    AltCLIPImageProcessor().save_pretrained(folder)
    AltCLIPTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write JPEG files of usual size, 640 x 480, cut from real photographs."""
    folder.mkdir()
    rng, photographs = np.random.default_rng(0), core.real_photographs()
    paths = []
    for number in range(count):
        picture: Image.Image = photographs[number % len(photographs)]
        width = int(picture.width * rng.uniform(0.6, 1))
        height = min(picture.height, width * 3 // 4)
        left, top = (int(rng.integers(room + 1)) for room in (picture.width - width, picture.height - height))
        cut = picture.crop((left, top, left + width, top + height)).resize((640, 480), Image.Resampling.LANCZOS)
        paths.append(str(folder / f"{number:03}.jpg"))
        cut.save(paths[-1], quality=90)
    return paths
