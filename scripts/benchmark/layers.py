"""Does scanning over layers pay? The 24 layers of a ViT-L/14 as a Python loop and as lax.scan, with their gradient."""

from __future__ import annotations

import statistics
import time
from typing import Any

BATCH, SEQUENCE = 4, 257


def rows(repeats: int) -> list[dict[str, Any]]:
    """Return compile time, temporary memory and step time of both."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from altclip_jax import AltCLIPConfig
    from altclip_jax.model.layers import PreNormBlock

    config = AltCLIPConfig.altclip().vision_config
    block = PreNormBlock(config)
    x = jnp.ones((BATCH, SEQUENCE, config.hidden_size))
    one = jax.jit(lambda key: block.init(key, x, None, False, True)["params"])(jax.random.key(0))
    depth = config.num_hidden_layers
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * depth), one)
    listed = [jax.tree.map(jnp.copy, one) for _ in range(depth)]

    def layer(params: Any, x: Any) -> Any:
        return block.apply({"params": params}, x, None, False, True)[0]

    def make(scanned: bool, remat: bool) -> Any:
        apply = jax.checkpoint(layer) if remat else layer

        def loss(params: Any, x: Any) -> Any:
            if scanned:
                x = lax.scan(lambda x, params: (apply(params, x), None), x, params)[0]
            else:
                for own in params:
                    x = apply(own, x)
            return jnp.sum(x * x)

        return jax.jit(jax.value_and_grad(loss))

    lines = []
    for remat in (False, True):
        found: dict[bool, dict[str, Any]] = {}
        for scanned, params in ((False, listed), (True, stacked)):
            begin = time.perf_counter()
            lowered = make(scanned, remat).lower(params, x)
            middle = time.perf_counter()
            compiled = lowered.compile()
            memory = compiled.memory_analysis()
            found[scanned] = {
                "trace": (middle - begin, "s"),
                "compile": (time.perf_counter() - middle, "s"),
                "temporary memory": (memory.temp_size_in_bytes / 2**30, "GiB"),
                "run": lambda compiled=compiled, params=params: jax.block_until_ready(compiled(params, x)),
            }
        pairs = []
        for _ in range(repeats + 1):
            pair = []
            for scanned in (False, True):
                begin = time.perf_counter()
                found[scanned]["run"]()
                pair.append(time.perf_counter() - begin)
            pairs.append(pair)
        label = "with remat" if remat else "without remat"
        for what in ("trace", "compile", "temporary memory"):
            (loop, unit), (scan, _) = found[False][what], found[True][what]
            lines.append(line(f"24 layers, {label}: {what}", loop, scan, unit))
        loop, scan = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
        lines.append(line(f"24 layers, {label}: gradient", loop, scan, "s"))
    return lines


def line(name: str, loop: float, scan: float, unit: str) -> dict[str, Any]:
    """Return one line of the table; a ratio above 1 says that the loop takes less."""
    return {"name": name, "loop": loop, "scan": scan, "unit": unit, "ratio": scan / loop}
