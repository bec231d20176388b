"""The layers of a tower, one after the other: as a loop over `layer_0`, `layer_1`, ..., or as a scan over a stack.

A checkpoint, an optimizer and everyone who looks at a tree see the first layout. `stack_layers` gives the second, with
`layers` in the place of all of them and a leading axis in each leaf, which a tower takes as well: it then compiles one
layer instead of all, and its backward pass holds what rematerialisation says, also on CPUs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jaxtyping import Float

STACK = "layers"
_LAYER = "layer_{}"


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Returns a tree in which the layers of each tower are stacked, where they all have the same leaves.

    Undone by `unstack_layers`. A tower whose layers differ, since some of one are kept elsewhere, stays as it is.
    """
    layers = _layers(params)
    rest = {name: leaf for name, leaf in params.items() if name not in layers}
    if layers:
        own = list(layers.values())
        if len({_description(layer) for layer in own}) > 1:
            return params
        rest[STACK] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    return {name: stack_layers(leaf) if isinstance(leaf, dict) else leaf for name, leaf in rest.items()}


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Undoes `stack_layers`."""
    rest = {name: leaf for name, leaf in params.items() if name != STACK}
    if STACK in params:
        depth = len(jax.tree.leaves(params[STACK])[0])
        rest |= {
            _LAYER.format(layer): jax.tree.map(lambda leaf, layer=layer: leaf[layer], params[STACK])
            for layer in range(depth)
        }
    return {name: unstack_layers(leaf) if isinstance(leaf, dict) else leaf for name, leaf in rest.items()}


def run_layers(
    tower: nn.Module,
    block: Callable[..., Any],
    depth: int,
    x: Float[Array, "batch sequence embed"],
    bias: Array | None,
    head_masks: Sequence[Array | None],
    output_attentions: bool,
    output_hidden_states: bool,
    deterministic: bool,
) -> tuple[Array, tuple[Array, ...], tuple[Any, ...]]:
    """Runs the layers of a tower, from inside its `__call__`, in the layout that its parameters have.

    Returns:
        The last states; the states from `x` on if asked for; the attention weights of each layer (None unless asked
        for).
    """
    if tower.has_variable("params", STACK):
        keys = None
        if not deterministic and tower.has_rng("dropout"):
            keys = jax.random.split(tower.make_rng("dropout"), depth)
        heads = None if head_masks[0] is None else jnp.stack([mask for mask in head_masks if mask is not None])
        alone = block(parent=None)

        def step(x: Array, own: Any) -> tuple[Array, Any]:
            params, head_mask, key = own
            rngs = None if key is None else {"dropout": key}
            x, weights = alone.apply(
                {"params": params}, x, bias, head_mask, output_attentions, deterministic, rngs=rngs
            )
            return x, (x if output_hidden_states else None, weights)

        last, (states, weights) = lax.scan(step, x, (tower.get_variable("params", STACK), heads, keys))
        attentions = tuple(weights) if output_attentions else (None,) * depth
        return last, (x, *states) if output_hidden_states else (), attentions
    states_, attentions_ = [x], []
    for layer in range(depth):
        x, weights = block(name=_LAYER.format(layer))(x, bias, head_masks[layer], output_attentions, deterministic)
        states_.append(x)
        attentions_.append(weights)
    return x, tuple(states_) if output_hidden_states else (), tuple(attentions_)


def _layers(params: dict[str, Any]) -> dict[str, Any]:
    """Returns those of layer_0, layer_1, ... that are there without a gap."""
    names = itertools.takewhile(params.__contains__, map(_LAYER.format, itertools.count()))
    return {name: params[name] for name in names}


def _description(layer: Any) -> Any:
    leaves, structure = jax.tree.flatten(layer)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
