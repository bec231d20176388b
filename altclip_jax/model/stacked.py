"""The layers of a tower, one after the other: as a loop over `layer_0`, `layer_1`, ..., or as a scan over a stack.

A checkpoint, an optimizer and everyone who looks at a tree see the first layout. `stack_layers` gives the second, with
`layers` in the place of all of them and a leading axis in each leaf, which a tower takes as well: it then compiles one
layer instead of all, and its backward pass holds what rematerialisation says, also on CPUs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jaxtyping import Float

from altclip_jax.parallel import STACK

_PREFIX = "layer_"
_LAYER = re.compile(rf"{_PREFIX}\d+")


def stack_layers(*trees: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Returns trees in which the layers of each tower are stacked; undone by `unstack_layers`.

    Args:
        trees: What one model has its parameters in, such as those that train and those that do not. A tower of which
            some tree has a part of the layers, or layers with different leaves, stays as it is in all.
    """
    own = [{name: tree[name] for name in tree if _LAYER.fullmatch(name)} for tree in trees]
    names = sorted(set().union(*own), key=lambda name: int(name.removeprefix(_PREFIX)))
    whole = all(not layers or (layers.keys() == set(names) and _are_alike(layers)) for layers in own)
    stacked: list[dict[str, Any]] = [
        {name: leaf for name, leaf in tree.items() if not (whole and name in names)} for tree in trees
    ]
    below = [name for name in set().union(*stacked) if any(isinstance(tree.get(name), dict) for tree in stacked)]
    for name in below:
        parts = stack_layers(*(tree.get(name, {}) for tree in stacked))
        for tree, part in zip(stacked, parts, strict=True):
            if name in tree:
                tree[name] = part
    if whole:
        for tree, layers in zip(stacked, own, strict=True):
            if layers:
                tree[STACK] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layers[name] for name in names))
    return tuple(stacked)


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Undoes `stack_layers`."""
    rest = {name: leaf for name, leaf in params.items() if name != STACK}
    if STACK in params:
        depth = len(jax.tree.leaves(params[STACK])[0])
        rest |= {
            f"{_PREFIX}{layer}": jax.tree.map(lambda leaf, layer=layer: leaf[layer], params[STACK])
            for layer in range(depth)
        }
    return {name: unstack_layers(leaf) if isinstance(leaf, dict) else leaf for name, leaf in rest.items()}


def run_layers(
    tower: nn.Module,
    block: Callable[..., Any],
    depth: int,
    x: Float[Array, "batch sequence embed"],
    bias: Float[Array, "#batch 1 #query key"] | None,
    head_masks: Sequence[Float[Array, " head"] | None],
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
        x, weights = block(name=f"{_PREFIX}{layer}")(x, bias, head_masks[layer], output_attentions, deterministic)
        states_.append(x)
        attentions_.append(weights)
    return x, tuple(states_) if output_hidden_states else (), tuple(attentions_)


def _are_alike(layers: dict[str, Any]) -> bool:
    def description(layer: Any) -> Any:
        leaves, structure = jax.tree.flatten(layer)
        return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)

    return len(set(map(description, layers.values()))) == 1
