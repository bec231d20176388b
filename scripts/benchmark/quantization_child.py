"""Load a checkpoint of the full size in one way and measure it; a process of scripts/benchmark/quantization.py."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from altclip_jax import AltCLIPConfig, AltCLIPModel
from altclip_jax.inference.encoder import encode_images, encode_text
from altclip_jax.processing.image import AltCLIPImageProcessor
from altclip_jax.processing.tokenizer import AltCLIPTokenizer
from altclip_jax.weights.convert import flatten
from scripts.benchmark.process import held
from scripts.parity.check import CAPTIONS, photographs


def main() -> None:
    """Print what was measured as JSON, and write the embeddings."""
    given = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    pixels = AltCLIPImageProcessor()(photographs(), return_tensors="np")["pixel_values"]
    texts = AltCLIPTokenizer.from_pretrained(given["tokenizer"])(CAPTIONS, padding=True, return_tensors="np")
    AltCLIPModel(AltCLIPConfig.from_json(folder)).param_shapes()
    jax.block_until_ready(jnp.zeros(4))
    before, start = held("VmHWM"), time.perf_counter()
    model, params = AltCLIPModel.from_pretrained(folder, **given["how"])
    jax.block_until_ready(params)
    loading, growth = time.perf_counter() - start, held("VmHWM") - before
    found: dict[str, Any] = {"loading_s": loading, "peak_growth": growth, "cores": os.cpu_count()}
    leaves = list(flatten(params).values())
    found |= {"resident": sum(leaf.nbytes for leaf in leaves), "parameters": sum(leaf.size for leaf in leaves)}
    inputs = {
        "texts": (encode_text, (texts["input_ids"].astype(np.int32), texts["attention_mask"].astype(np.int32))),
        "images": (encode_images, (pixels,)),
    }
    rows, found["temporary"], found["seconds"] = {}, {}, {}
    for kind, (encode, arrays) in inputs.items():
        compiled = jax.jit(encode, static_argnums=0).lower(model, params, *arrays).compile()
        found["temporary"][kind] = compiled.memory_analysis().temp_size_in_bytes
        rows[kind] = np.asarray(compiled(params, *arrays))
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, *arrays))
        found["seconds"][kind] = time.perf_counter() - start
    with tempfile.TemporaryDirectory(dir=Path(given["rows"]).parent) as temporary:
        model.save_pretrained(temporary, params)
        found["on_disk"] = sum(file.stat().st_size for file in Path(temporary).glob("*.safetensors"))
    np.savez(given["rows"], **rows)
    found |= {"pictures": len(pixels), "texts": len(CAPTIONS)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
