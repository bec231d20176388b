"""The inference core against transformers: loading, first and warm calls of both towers, preprocessing."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np

CAPTIONS = [
    "a cup of coffee on a wooden table",
    "一杯咖啡放在木桌上",
    "una taza de café",
    "фотография кошки",
    "صورة صاروخ",
    "ロケットの打ち上げ",
    "꽃 한 송이의 사진",
    "un tempio",
]
LOADING = {
    "ours": "from altclip_jax import AltCLIPModel as M; import jax",
    "transformers": "import torch; from transformers import AltCLIPModel as M",
}
TOUCH = {
    "ours": "model, params = M.from_pretrained(folder); jax.block_until_ready(params)",
    "transformers": (
        "model = M.from_pretrained(folder, use_safetensors=safe); [p.sum().item() for p in model.parameters()]"
    ),
}
FIRST = {
    "ours": "AltCLIP.from_pretrained(folder).encode_text(['a cat'])",
    "transformers": "M.from_pretrained(folder).get_text_features(torch.tensor([[0, 10, 7515, 2]]))",
}


def rows(repeats: int, tokenizer: Path) -> list[dict[str, Any]]:
    """Return the lines of the table; full-size towers of BAAI/AltCLIP, float32."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_checkpoints(folder, tokenizer)
        return [*processes(folder), *in_process(folder, repeats)]


def write_checkpoints(folder: Path, tokenizer: Path) -> None:
    """Write the same full-size model as .safetensors and as .bin, each with a processor's files."""
    import torch
    from transformers import AltCLIPModel

    from altclip_jax import AltCLIPConfig, AltCLIPImageProcessor, AltCLIPTokenizer

    for name in ("safetensors", "bin"):
        AltCLIPConfig.altclip().save(folder / name)
        AltCLIPImageProcessor().save_pretrained(folder / name)
        AltCLIPTokenizer.from_pretrained(tokenizer).save_pretrained(folder / name)
    from transformers import AltCLIPConfig as ReferenceConfig

    torch.manual_seed(0)
    model = AltCLIPModel(ReferenceConfig.from_pretrained(folder / "safetensors"))
    torch.save(model.state_dict(), folder / "bin" / "pytorch_model.bin")
    model.save_pretrained(folder / "safetensors")
    del model
    gc.collect()


def processes(folder: Path) -> list[dict[str, Any]]:
    """Measure what needs a process of its own: loading, and the time to a first embedding with a warm cache."""
    lines = []
    for form in ("safetensors", "bin"):
        found: dict[str, list[list[float]]] = {"ours": [], "transformers": []}
        for _ in range(3):
            for side, runs in found.items():
                runs.append(child(loading_program(side, folder / form, form == "safetensors")))
        for index, (name, unit) in enumerate((("load", "s"), ("load: growth of peak memory", "GB"))):
            ours, theirs = (statistics.median(run[index] for run in found[side]) for side in ("ours", "transformers"))
            lines.append(row(f"{name} .{form}", ours, theirs, unit))
    found = {"ours": [], "transformers": []}
    with tempfile.TemporaryDirectory() as cache:
        environment = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for turn in range(4):
            for side, runs in found.items():
                begin = time.perf_counter()
                child(first_program(side, folder / "safetensors"), environment)
                if turn:  # the first fills the cache
                    runs.append([time.perf_counter() - begin])
    ours, theirs = (statistics.median(run[0] for run in found[side]) for side in ("ours", "transformers"))
    lines.append(row("fresh process to first text embedding", ours, theirs, "s"))
    return lines


def loading_program(side: str, folder: Path, safe: bool) -> str:
    """Return a program that prints seconds and growth of peak memory in GB for loading every value."""
    return f"""
import time
{LOADING[side]}
folder, safe = {str(folder)!r}, {safe}
peak = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 2**20
before, begin = peak(), time.perf_counter()
{TOUCH[side]}
print(time.perf_counter() - begin, peak() - before)
"""


def first_program(side: str, folder: Path) -> str:
    """Return a program that loads the model and embeds one text."""
    imports = "from altclip_jax import AltCLIP" if side == "ours" else LOADING[side]
    return f"{imports}\nfolder = {str(folder)!r}\n{FIRST[side]}\nprint(0)"


def child(program: str, environment: dict[str, str] | None = None) -> list[float]:
    """Run a program in a fresh process and return the numbers it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    return [float(number) for number in done.stdout.split()]


def in_process(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure first and warm calls of both towers, and preprocessing."""
    import jax
    import torch
    from transformers import AltCLIPModel as ReferenceModel
    from transformers import CLIPImageProcessor, XLMRobertaTokenizer

    from altclip_jax import AltCLIPModel, AltCLIPProcessor

    folder = folder / "safetensors"
    processor = AltCLIPProcessor.from_pretrained(folder)
    model, params = AltCLIPModel.from_pretrained(folder)
    reference = ReferenceModel.from_pretrained(folder).eval()
    text_fn = jax.jit(lambda p, ids, mask: model.apply({"params": p}, ids, mask, method="get_text_features"))
    image_fn = jax.jit(lambda p, pixels: model.apply({"params": p}, pixels, method="get_image_features"))
    lines = []
    for size in (1, 8):
        text = processor(text=CAPTIONS[:size], padding=True)
        pixels = np.random.default_rng(0).standard_normal((size, 3, 224, 224), dtype=np.float32)
        ids, mask, pictures = (torch.tensor(array) for array in (text["input_ids"], text["attention_mask"], pixels))

        def our_text(text: Any = text) -> None:
            jax.block_until_ready(text_fn(params, text["input_ids"], text["attention_mask"]))

        def our_image(pixels: Any = pixels) -> None:
            jax.block_until_ready(image_fn(params, pixels))

        def their_text(ids: Any = ids, mask: Any = mask) -> None:
            with torch.inference_mode():
                reference.get_text_features(ids, mask)

        def their_image(pictures: Any = pictures) -> None:
            with torch.inference_mode():
                reference.get_image_features(pictures)

        for name, ours, theirs in (("text", our_text, their_text), ("image", our_image, their_image)):
            lines.append(row(f"{name} tower, batch {size}, first call", seconds(ours), seconds(theirs), "s"))
            lines.append(interleaved(f"{name} tower, batch {size}, warm", ours, theirs, repeats))
    photographs = real_photographs() * 4
    theirs_image, theirs_text = CLIPImageProcessor(), XLMRobertaTokenizer.from_pretrained(folder)
    lines.append(
        interleaved(
            f"preprocess {len(photographs)} decoded photographs",
            lambda: processor(images=photographs),
            lambda: theirs_image(photographs, return_tensors="np"),
            repeats,
        )
    )
    texts = CAPTIONS * 64
    lines.append(
        interleaved(
            f"tokenize {len(texts)} captions",
            lambda: processor(text=texts, padding=True),
            lambda: theirs_text(texts, padding=True, return_tensors="np"),
            repeats,
        )
    )
    return lines


def real_photographs() -> list[Any]:
    """Return decoded photographs that scikit-image ships."""
    import skimage
    from PIL import Image

    folder = Path(skimage.__file__).parent / "data"
    return [
        Image.open(folder / name).convert("RGB")
        for name in ("coffee.png", "astronaut.png", "chelsea.png", "rocket.jpg")
    ]


def seconds(call: Callable[[], object]) -> float:
    """Return the wall seconds of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def interleaved(name: str, ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Time both in turn; the ratio is the median of the ratios pair by pair."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    ratio = statistics.median(right / left for left, right in pairs)
    left, right = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {**row(name, left, right, "s"), "ratio": ratio}


def row(name: str, ours: float, theirs: float, unit: str) -> dict[str, Any]:
    """Return one line of the table."""
    return {"name": name, "ours": ours, "transformers": theirs, "unit": unit, "ratio": theirs / ours if ours else 0.0}
