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

from altclip_jax.model.layers import Part

STACK = "layers"  # the name of layers one behind the other, along a first axis
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
    tower: Part,
    block: type[Part],
    x: Float[Array, "batch sequence embed"],
    bias: Float[Array, "#batch 1 #query key"] | None,
    head_masks: Sequence[Float[Array, " head"]] | None,
    output_attentions: bool,
    output_hidden_states: bool,
    deterministic: bool,
) -> tuple[Array, tuple[Array, ...] | None, tuple[Any, ...] | None]:
    """Runs the layers of a tower, from inside its `__call__`, in the layout that its parameters have.

    Returns:
        The last states; the states from `x` on and the attention weights of each layer, None unless asked for.
    """

    def layer(block: nn.Module, x: Array, bias: Any, head_mask: Any) -> tuple[Array, Any]:
        found: tuple[Array, Any] = block(x, bias, head_mask, output_attentions, deterministic)
        return found

    layer = _rematerialise(layer, tower.remat)
    config, depth = tower.config, tower.config.num_hidden_layers
    states, attentions = [x], []
    if not tower.has_variable("params", STACK):
        for number in range(depth):
            own = block(config, **tower.settings, name=f"{_PREFIX}{number}")
            x, weights = layer(own, x, bias, None if head_masks is None else head_masks[number])
            states.append(x)
            attentions.append(weights)
    else:
        alone = block(config, **tower.settings, parent=None)
        draws = not deterministic and tower.has_rng("dropout")
        keys = jax.random.split(tower.make_rng("dropout"), depth) if draws else None

        def step(x: Array, own: Any) -> tuple[Array, Any]:
            params, head_mask, key = own
            rngs = None if key is None else {"dropout": key}
            x, weights = alone.apply({"params": params}, x, bias, head_mask, method=layer, rngs=rngs)
            return x, (x if output_hidden_states else None, weights)

        heads = None if head_masks is None else jnp.stack(head_masks)
        x, (later, weights) = lax.scan(step, x, (tower.get_variable("params", STACK), heads, keys))
        states.extend(later if output_hidden_states else ())
        attentions.extend(weights if output_attentions else ())
    return x, tuple(states) if output_hidden_states else None, tuple(attentions) if output_attentions else None


def _rematerialise(layer: Callable[..., Any], remat: Any) -> Callable[..., Any]:
    """Returns a function of a block whose backward pass recomputes what `remat` says instead of storing it."""
    if remat is False:
        return layer
    if remat is not True and remat != "dots":
        raise ValueError(f"remat={remat!r} is not one of False, True and 'dots'.")
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    again: Callable[..., Any] = nn.remat(layer, policy=policy)
    return again


def _are_alike(layers: dict[str, Any]) -> bool:
    def description(layer: Any) -> Any:
        leaves, structure = jax.tree.flatten(layer)
        return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)

    return len(set(map(description, layers.values()))) == 1
