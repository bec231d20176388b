"""The door of a block: parameters that are stored in another form become arrays here, and nowhere else.

Blocks are the attention and the MLP of each layer and the linear layers at a tower's ends, so at any time the arrays of
few are there. A leaf may be stored in few bits, or transposed as its file has it: any pytree that gives its array as
`__jax_array__` and, where it is a table, its rows as `rows(ids)`. Behind the door are plain arrays, so layers are those
of Flax.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax


def is_stored(leaf: Any) -> bool:
    """Tells whether a leaf is no array and gives one."""
    return hasattr(leaf, "__jax_array__") and not isinstance(leaf, jax.Array)  # a tracer has the attribute too


def enter(block: nn.Module, x: Array, *arguments: Any) -> Any:
    """Returns what a block makes of `x` and other arguments; its parameters become arrays when `x` is there."""

    def run(block: nn.Module, *arguments: Any) -> Any:
        return block(*arguments)

    leaves = jax.tree.leaves(block.variables.get("params"), is_leaf=is_stored)
    if any(is_stored(leaf) or _is_narrow(leaf) for leaf in leaves):
        run = nn.map_variables(run, "params", trans_in_fn=lambda params: open_leaves(params, x))
    return run(block, x, *arguments)


def open_leaves(params: Any, x: Array) -> Any:
    """Returns a tree of plain arrays, which are made no sooner than `x` is there.

    Without the wait XLA, which orders work for concurrency on CPUs, makes the float32 arrays of all layers at once:
    those of eight layers took 8 times the memory of one. It drops optimization barriers before it orders, so what is
    stored in less than four bytes gets a zero that `x` decides.
    """
    if x.size:
        params = jax.tree.map(lambda part: _wait(part, x) if _is_narrow(part) else part, params)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_stored(leaf) else leaf, params, is_leaf=is_stored)


def _is_narrow(part: Array) -> bool:
    return part.ndim > 1 and part.dtype.itemsize < 4


def _wait(part: Array, x: Array) -> Array:
    def wait(part: Array, first: Array) -> Array:
        never = (first != first) & (first == first)
        return jnp.where(never, jnp.zeros((), part.dtype), part)

    waited: Array = lax.platform_dependent(part, x[(0,) * x.ndim], cpu=wait, default=lambda part, first: part)
    return waited
