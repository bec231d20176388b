"""What the towers are made of: attention, MLP, masks, tables, the activations.

Softmax, LayerNorm statistics and activations are computed in float32 whatever the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from altclip_jax.model.parameters import Dense, stored_param
from altclip_jax.quantization.leaves import QuantizedArray, take_rows

AttentionImplementation = Literal["plain", "xla", "cudnn"]
Remat = bool | Literal["dots"]
Initializer = Callable[..., Any]
Block = TypeVar("Block", bound=nn.Module)
_LOWEST = float(np.finfo(np.float32).min)


def quick_gelu(x: Array) -> Array:
    """X * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "quick_gelu": quick_gelu,
    "selu": jax.nn.selu,
}


def attention_bias(mask: Array) -> Float[Array, "batch 1 query key"]:
    """Turns a mask (batch, key) or (batch, query, key), 1 = attend, into what is added to the scores.

    (1 - mask) * the lowest float32: a row that masks everything stays finite and becomes uniform.
    """
    mask = mask[:, None, :] if mask.ndim == 2 else mask
    bias: Array = (1.0 - mask[:, None].astype(jnp.float32)) * _LOWEST
    return bias


def causal_bias(length: int, mask: Array | None = None) -> Float[Array, "#batch 1 query key"]:
    """What is added to the scores of a causal tower; `mask` (batch, key) hides padding too, where it is not 1.

    Hidden for one reason a score gets the lowest float32, for two -inf, as in the reference: no row is -inf throughout,
    since no position is in its own future.
    """
    future = jnp.where(jnp.tril(jnp.ones((length, length), bool)), 0.0, _LOWEST)[None, None]
    if mask is None:
        return future
    return future + jnp.where(mask == 1, 0.0, _LOWEST)[:, None, None]


def rematerialised(block: type[Block], remat: Remat, static_argnums: tuple[int, ...]) -> type[Block]:
    """Returns a block class whose backward pass recomputes what `remat` says instead of storing it.

    Args:
        block: The class of a layer.
        remat: False stores all, True recomputes all, "dots" stores the results of matrix products with parameters.
        static_argnums: The arguments of the block's `__call__` that decide what is computed, `self` being 0.

    Raises:
        ValueError: `remat` is something else.
    """
    if remat is False:
        return block
    if remat is not True and remat != "dots":
        raise ValueError(f"remat={remat!r} is not one of False, True and 'dots'.")
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(block, policy=policy, static_argnums=static_argnums)


class LayerNorm(nn.LayerNorm):
    """LayerNorm with an explicit epsilon and two-pass statistics in float32, as torch computes them."""

    use_fast_variance: bool = False


class Attention(nn.Module):
    """Multi-head self-attention with biases, and optionally the relative positions of Shaw et al. (2018).

    `implementation` "plain" is an einsum with a float32 softmax; "xla" and "cudnn" go through
    jax.nn.dot_product_attention, whose kernels return no attention weights and take no head mask, relative positions
    or dropout: asked for one of these they raise.
    """

    num_heads: int
    dropout_rate: float
    implementation: AttentionImplementation
    query_key_value_init: Initializer
    out_init: Initializer
    dtype: DTypeLike
    param_dtype: DTypeLike
    position_embedding_type: str = "absolute"
    max_position_embeddings: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch sequence embed"],
        bias: Float[Array, "#batch 1 #query key"] | None,
        head_mask: Float[Array, " head"] | None,
        output_attentions: bool,
        deterministic: bool,
    ) -> tuple[Float[Array, "batch sequence embed"], Float[Array, "batch head query key"] | None]:
        """Returns the attended values, and the attention weights (after dropout and head mask) when asked for."""
        width = x.shape[-1]

        def project(name: str) -> Array:
            dense = Dense(
                width, kernel_init=self.query_key_value_init, dtype=self.dtype, param_dtype=self.param_dtype, name=name
            )
            return dense(x).reshape(*x.shape[:-1], self.num_heads, width // self.num_heads)

        query, key, value = project("query"), project("key"), project("value")
        relative = self._relative_scores(query, key) if self.position_embedding_type != "absolute" else None
        if self.implementation == "plain":
            mixed, weights = self._plain(query, key, value, bias, relative, head_mask, deterministic)
        else:
            self._refuse_what_fused_kernels_lack(relative, head_mask, output_attentions, deterministic)
            mixed, weights = _fused(query, key, value, bias, self.implementation), None
        out = Dense(width, kernel_init=self.out_init, dtype=self.dtype, param_dtype=self.param_dtype, name="out")(
            mixed.reshape(x.shape)
        )
        return out, weights if output_attentions else None

    def _plain(
        self,
        query: Array,
        key: Array,
        value: Array,
        bias: Array | None,
        relative: Array | None,
        head_mask: Array | None,
        deterministic: bool,
    ) -> tuple[Array, Array]:
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        if relative is not None:
            scores = scores + relative
        scores = scores * query.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = nn.Dropout(self.dropout_rate)(weights, deterministic=deterministic)
        if head_mask is not None:
            weights = weights * head_mask.astype(weights.dtype)[None, :, None, None]
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value), weights

    def _relative_scores(self, query: Array, key: Array) -> Float[Array, "batch head query key"]:
        rows = 2 * self.max_position_embeddings - 1
        table = EmbeddingTable(
            rows, query.shape[-1], self.query_key_value_init, self.param_dtype, name="distance_embedding"
        )()
        places = jnp.arange(query.shape[1])
        offsets = places[:, None] - places[None, :] + self.max_position_embeddings - 1
        distances = lookup(table, offsets).astype(self.dtype)
        scores = jnp.einsum("bqhd,qkd->bhqk", query, distances, preferred_element_type=jnp.float32)
        if self.position_embedding_type == "relative_key_query":
            scores += jnp.einsum("bkhd,qkd->bhqk", key, distances, preferred_element_type=jnp.float32)
        return scores

    def _refuse_what_fused_kernels_lack(
        self, relative: Array | None, head_mask: Array | None, output_attentions: bool, deterministic: bool
    ) -> None:
        if self.implementation not in get_args(AttentionImplementation):
            raise ValueError(
                f"attention_implementation={self.implementation!r} is not one of"
                f" {', '.join(get_args(AttentionImplementation))}."
            )
        asked = {
            "output_attentions": output_attentions,
            "head_mask": head_mask is not None,
            f"position_embedding_type={self.position_embedding_type!r}": relative is not None,
            f"attention dropout of {self.dropout_rate}": self.dropout_rate > 0 and not deterministic,
        }
        lacking = [name for name, wanted in asked.items() if wanted]
        if lacking:
            raise ValueError(
                f"attention_implementation={self.implementation!r} cannot give {' or '.join(lacking)}:"
                " build the model with attention_implementation='plain'."
            )
        if self.implementation == "cudnn" and jax.default_backend() != "gpu":
            raise ValueError(
                "attention_implementation='cudnn' needs an NVIDIA GPU and this process runs on"
                f" {jax.default_backend()}: use 'plain' or 'xla'."
            )


def _lowest(dtype: Any) -> float:
    info: Any = ml_dtypes.finfo
    return float(info(dtype).min)


def _fused(query: Array, key: Array, value: Array, bias: Array | None, implementation: Any) -> Array:
    if bias is not None:
        # the kernels want the bias in the dtype of the query, whose lowest value may be nearer to zero
        bias = jnp.maximum(bias, _lowest(query.dtype)).astype(query.dtype)
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], query.shape[1], key.shape[1]))
    return jax.nn.dot_product_attention(query, key, value, bias=bias, implementation=implementation)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    width: int
    activation: str
    up_init: Initializer
    down_init: Initializer
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch sequence embed"]) -> Float[Array, "batch sequence embed"]:
        """Applies the MLP to every position."""
        up = Dense(self.width, kernel_init=self.up_init, dtype=self.dtype, param_dtype=self.param_dtype, name="up")(x)
        hidden = ACTIVATIONS[self.activation](up.astype(jnp.float32)).astype(self.dtype)
        return Dense(
            x.shape[-1], kernel_init=self.down_init, dtype=self.dtype, param_dtype=self.param_dtype, name="down"
        )(hidden)


def lookup(
    table: Float[Array, "rows embed"] | QuantizedArray, ids: Int[Array, " ..."], frozen_row: int | None = None
) -> Float[Array, "... embed"]:
    """Rows of an embedding table; a row outside it is NaN, never another row's value.

    `frozen_row` gets no gradient: torch's padding_idx.
    """
    rows = take_rows(table, jnp.where(ids < 0, table.shape[0], ids))
    if frozen_row is None:
        return rows
    return jnp.where((ids == frozen_row)[..., None], jax.lax.stop_gradient(rows), rows)


class EmbeddingTable(nn.Module):
    """A table of learned rows, under the path that nn.Embed would give it; read with `lookup`."""

    rows: int
    width: int
    init_fn: Initializer
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self) -> Float[Array, "rows embed"] | QuantizedArray:
        """Returns the whole table, as it is stored."""
        table: Array | QuantizedArray = stored_param(
            self, "embedding", self.init_fn, (self.rows, self.width), self.param_dtype
        )
        return table
