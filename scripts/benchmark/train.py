"""A contrastive step against PyTorch: the same weights, batch and AdamW, each side in its own process, in turn.

Towers of the size of ViT-B/32: an image tower of 12 layers of 768, a text tower of 12 layers of 512 with 32,000 tokens.
float32, no dropout. "Memory" is what the process holds at its peak during a step beyond what it held before the model
was made and beyond 16 bytes per parameter (the parameter, its gradient, both moments of Adam).
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmark.process import Process, forget_peak, held, serve

TEXT = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "project_dim": 512,
    "max_position_embeddings": 80,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LENGTH, PROJECTION = 32, 512
RATE, BETAS, EPS, DECAY = 1e-4, (0.9, 0.98), 1e-6, 0.05
SIDES = {
    "plain": "ours",
    "dots": "ours, remat of all but products",
    "remat": "ours, remat",
    "lean": "ours, remat and gradient caching in 8 parts",
}


def rows(repeats: int, batch: int) -> list[dict[str, Any]]:
    """Return the lines of the table."""
    from altclip_jax import AltCLIPConfig, AltCLIPModel

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        import jax

        model = AltCLIPModel(AltCLIPConfig(text_config=TEXT, projection_dim=PROJECTION))
        params = model.init_params(jax.random.key(0))
        model.save_pretrained(folder, params)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        del params
        sides = ("torch", *SIDES)
        servers = {side: Process(sys.executable, __name__, side, str(folder), str(batch)) for side in sides}
        try:
            for server in servers.values():
                server.ask("ready")
            return measure(servers, repeats, batch, parameters)
        finally:
            for server in servers.values():
                server.close()


def measure(servers: dict[str, Process], repeats: int, batch: int, parameters: int) -> list[dict[str, Any]]:
    """Return times and memory of each of our forms beside torch's."""
    losses = {side: [server.ask("step")["loss"] for _ in range(2)] for side, server in servers.items()}
    for side, found in losses.items():
        if not np.allclose(found, losses["torch"], rtol=2e-4):
            raise SystemExit(f"the sides do not compute the same: {side} has {found}, torch {losses['torch']}")
    seconds: dict[str, list[float]] = {side: [] for side in servers}
    for _ in range(repeats):
        for side, server in servers.items():
            seconds[side].append(server.ask("step")["seconds"])
    state = 16 * parameters
    memory = {side: (server.ask("peak")["bytes"] - state) / 2**30 for side, server in servers.items()}
    lines = []
    for side, name in SIDES.items():
        ratio = statistics.median(theirs / ours for ours, theirs in zip(seconds[side], seconds["torch"], strict=True))
        ours, theirs = statistics.median(seconds[side]), statistics.median(seconds["torch"])
        label = f"contrastive step, batch {batch}, {parameters / 1e6:.0f} M parameters: {name}"
        lines.append({"name": label, "ours": ours, "transformers": theirs, "unit": "s", "ratio": ratio})
        lines.append(
            {
                "name": f"  memory beyond parameters, gradients and moments: {name}",
                "ours": memory[side],
                "transformers": memory["torch"],
                "unit": "GiB",
                "ratio": memory["torch"] / memory[side],
            }
        )
    return lines


def answer(side: str, folder: Path, batch: int) -> None:
    """Do what is asked: "ready", "step" and "peak"."""
    make: Callable[..., Any] = torch_step if side == "torch" else our_step
    step, before = make(side, folder, inputs(batch))

    def task(what: str) -> dict[str, Any]:
        if what == "ready":
            return {}
        if what == "step":
            begin = time.perf_counter()
            loss = step()
            return {"seconds": time.perf_counter() - begin, "loss": loss}
        ctypes.CDLL(None).malloc_trim(0)  # what compiling has left behind in the allocator is no step's
        forget_peak()
        step()
        return {"bytes": held("VmHWM") - before}

    serve(task)


def inputs(batch: int) -> dict[str, np.ndarray]:
    """Return a random batch, the same for all."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, TEXT["vocab_size"], (batch, LENGTH)).astype(np.int32)
    pixels = rng.standard_normal((batch, 3, 224, 224), dtype=np.float32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "pixel_values": pixels}


def our_step(side: str, folder: Path, arrays: dict[str, np.ndarray]) -> tuple[Callable[[], float], int]:
    """Return a step of this library, and the bytes held before the model was made."""
    import jax
    import jax.numpy as jnp

    from altclip_jax import AltCLIPModel
    from altclip_jax.training.config import OptimizerSettings
    from altclip_jax.training.objectives import Contrastive
    from altclip_jax.training.optimizer import make_optimizer
    from altclip_jax.training.state import initial_state
    from altclip_jax.training.steps import StepSettings, make_train_step

    jnp.zeros(1).block_until_ready()
    batch, before = jax.device_put(arrays), held("VmRSS")
    model, params = AltCLIPModel.from_pretrained(folder, remat="dots" if side == "dots" else side != "plain")
    rule = {"learning_rate": RATE, "betas": BETAS, "eps": EPS, "weight_decay": DECAY, "clip_norm": None}
    settings = OptimizerSettings(**rule, warmup_steps=0, schedule="constant")
    optimizer = make_optimizer(settings, 1000, params)
    state = jax.jit(lambda params: initial_state(params, optimizer, averaged=False), donate_argnums=0)(params)
    del params
    parts = StepSettings(micro_batches=8 if side == "lean" else 1)
    update = jax.jit(make_train_step(Contrastive(model), optimizer, parts), donate_argnums=0)

    def step() -> float:
        nonlocal state
        state, metrics = update(state, {}, {}, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return step, before


def torch_step(side: str, folder: Path, arrays: dict[str, np.ndarray]) -> tuple[Callable[[], float], int]:
    """Return a step of PyTorch with transformers' model, and the bytes held before the model was made."""
    import torch
    from transformers import AltCLIPModel

    batch, before = {name: torch.tensor(values) for name, values in arrays.items()}, held("VmRSS")
    model = AltCLIPModel.from_pretrained(folder).train()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batch, return_loss=True).loss
        loss.backward()
        optimizer.step()
        return float(loss)

    return step, before


if __name__ == "__main__":
    answer(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
