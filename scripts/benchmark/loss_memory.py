"""Print what the forms of the contrastive loss take on each of 8 devices, and how far their gradients are apart.

    python -m scripts.benchmark.loss_memory --output docs/loss_memory.json

Value and gradient of texts, images and temperature at a global batch of 32,768 unit embeddings of 768 numbers, dealt
over 8 virtual CPU devices. "temporary" is what the compiled program needs on a device beyond its arguments and results,
as its compiler says. Gradients are those of the texts, computed at --rows rows: the whole scores of 32,768 would not
fit beside their gradient.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from altclip_jax import parallel
from altclip_jax.training.losses import ContrastiveForm, contrastive_loss

FORMS: tuple[ContrastiveForm, ...] = ("plain", "chunked", "ring")


def main() -> None:
    """Compile, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32_768, help="rows of which the memory is told")
    parser.add_argument("--rows", type=int, default=4_096, help="rows of which the gradients are compared")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--chunk-rows", type=int, default=512)
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = parallel.make_mesh()
    result: dict[str, Any] = {"batch": options.batch, "width": options.width, "chunk_rows": options.chunk_rows}
    result["temporary_bytes"] = {
        form: temporary_bytes(form, mesh, options.batch, options.width, options.chunk_rows) for form in FORMS
    }
    result["rows_compared"] = options.rows
    result["gradient_apart"] = gradients_apart(mesh, options.rows, options.width, options.chunk_rows)
    for form, size in result["temporary_bytes"].items():
        apart = result["gradient_apart"].get(form)
        told = "" if apart is None else f", gradient {apart:.1e} from the plain one (norm of the difference over norm)"
        print(f"{form:8} {size / 2**20:8.0f} MiB temporary on each of 8 devices{told}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def temporary_bytes(form: ContrastiveForm, mesh: Any, rows: int, width: int, chunk_rows: int) -> int:
    """Return what value and gradient take on each device beyond what goes in and comes out."""
    place = parallel.sharding(mesh, parallel.BATCH)
    abstract: Any = jax.ShapeDtypeStruct
    embeddings = abstract((rows, width), jnp.float32, sharding=place)
    compiled = gradient_of(form, mesh, chunk_rows).lower(embeddings, embeddings, abstract((), jnp.float32)).compile()
    size: int = compiled.memory_analysis().temp_size_in_bytes
    return size


def gradients_apart(mesh: Any, rows: int, width: int, chunk_rows: int) -> dict[str, float]:
    """Return the norm of the difference from the plain gradient over its norm, over all three gradients."""
    rng = np.random.default_rng(0)
    units = [draw / np.linalg.norm(draw, axis=1, keepdims=True) for draw in rng.standard_normal((2, rows, width))]
    text, image = (jax.device_put(np.float32(unit), parallel.sharding(mesh, parallel.BATCH)) for unit in units)
    found = {
        form: jax.tree.map(np.float64, gradient_of(form, mesh, chunk_rows)(text, image, jnp.float32(4.0))[1])
        for form in FORMS
    }
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in found["plain"]))
    return {
        form: float(
            np.sqrt(sum(np.sum(np.square(a - b)) for a, b in zip(found[form], found["plain"], strict=True))) / norm
        )
        for form in FORMS[1:]
    }


def gradient_of(form: ContrastiveForm, mesh: Any, chunk_rows: int) -> Any:
    """Return the jitted value and gradient of a form."""
    place = parallel.sharding(mesh, parallel.BATCH)

    def loss(text: Any, image: Any, log_scale: Any) -> Any:
        return contrastive_loss(text, image, log_scale, form=form, chunk_rows=chunk_rows, mesh=mesh)

    return jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2)), out_shardings=(None, (place, place, parallel.sharding(mesh)))
    )


if __name__ == "__main__":
    main()
