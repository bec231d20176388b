"""What the towers are made of: attention, MLP, masks, tables, the activations.

Softmax, LayerNorm statistics and activations are computed in float32 whatever the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from altclip_jax.model.door import enter, is_stored

AttentionImplementation = Literal["plain", "xla", "cudnn"]
Remat = bool | Literal["dots"]
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


class Part(nn.Module):
    """A part of a network, and how it computes.

    Attributes:
        config: What the part is.
        dtype: Compute dtype of the towers; projections, norms, logits and loss are float32.
        param_dtype: Dtype in which parameters are stored, whether initialised or loaded.
        attention_implementation: "plain", "xla" or "cudnn", see `Attention`.
        remat: True recomputes each layer in the backward pass instead of storing its activations; "dots" stores the
            results of its matrix products and recomputes the rest.
        precision: Of the matrix products of the layers, as `jax.lax.Precision` has it; None leaves it to jax.
    """

    config: Any
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    attention_implementation: AttentionImplementation = "plain"
    remat: Remat = False
    precision: Any = None

    @property
    def settings(self) -> dict[str, Any]:
        """All but the configuration, for a part of this part."""
        names = ("dtype", "param_dtype", "attention_implementation", "remat", "precision")
        return {name: getattr(self, name) for name in names}

    @nn.nowrap
    def dense(self, features: int, deviation: float, name: str | None = None, **how: Any) -> nn.Dense:
        """Returns a linear layer whose kernel is initialised with a standard deviation."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "precision": self.precision}
        return nn.Dense(features, kernel_init=nn.initializers.normal(deviation), name=name, **types | how)

    @nn.nowrap
    def projection(self, width: int, factor: float, name: str | None = None) -> nn.Dense:
        """Returns the linear layer from a tower of `width` to the common space.

        It computes in float32 whatever the towers compute in: a small product whose rounding every score would carry.
        """
        return self.dense(self.config.projection_dim, width**-0.5 * factor, name, use_bias=False, dtype=jnp.float32)

    @nn.nowrap
    def norm(self, name: str) -> nn.LayerNorm:
        """Returns a LayerNorm with two-pass statistics in float32, as torch computes them."""
        return nn.LayerNorm(
            epsilon=self.config.layer_norm_eps,
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    @nn.nowrap
    def table(self, rows: int, width: int, deviation: float, name: str, frozen_row: int | None = None) -> Table:
        """Returns a table of learned rows."""
        normal = nn.initializers.normal(deviation)

        def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            values = normal(key, shape, dtype)
            return values if frozen_row is None else values.at[frozen_row].set(0)

        return Table(
            rows,
            width,
            embedding_init=init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            frozen_row=frozen_row,
            name=name,
        )


class Table(nn.Embed):
    """An nn.Embed whose rows are gathered as they are stored, and made floats after.

    A row outside it is NaN, never another row's value. `frozen_row` gets no gradient: torch's padding_idx.
    """

    frozen_row: int | None = None

    def __call__(self, ids: Int[Array, " ..."]) -> Float[Array, "... embed"]:
        """Returns rows in the compute dtype."""
        return lookup(self.embedding, ids, self.frozen_row).astype(self.dtype)


def lookup(table: Any, ids: Int[Array, " ..."], frozen_row: int | None = None) -> Float[Array, "... embed"]:
    """Returns rows of a table, an array or stored in another form; see `Table`."""
    ids_ = jnp.where(ids < 0, table.shape[0], ids)
    rows: Array = table.rows(ids_) if is_stored(table) else jnp.take(table, ids_, axis=0, mode="fill")
    if frozen_row is None:
        return rows
    return jnp.where((ids == frozen_row)[..., None], jax.lax.stop_gradient(rows), rows)


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


class Attention(Part, kw_only=True):
    """Multi-head self-attention with biases, and optionally the relative positions of Shaw et al. (2018).

    `attention_implementation` "plain" is an einsum with a float32 softmax; "xla" and "cudnn" go through
    jax.nn.dot_product_attention, whose kernels return no attention weights and take no head mask, relative positions
    or dropout: asked for one of these they raise.
    """

    dropout_rate: float
    input_deviation: float  # of the initial kernels of query, key and value
    output_deviation: float
    position_embedding_type: str = "absolute"

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
        width, heads = x.shape[-1], self.config.num_attention_heads
        query, key, value = (
            self.dense(width, self.input_deviation, name)(x).reshape(*x.shape[:-1], heads, width // heads)
            for name in ("query", "key", "value")
        )
        relative = self._relative_scores(query, key) if self.position_embedding_type != "absolute" else None
        weights = None
        if self.attention_implementation == "plain":
            mixed, weights = self._plain(query, key, value, bias, relative, head_mask, deterministic)
        else:
            self._refuse_what_fused_kernels_lack(relative, head_mask, output_attentions, deterministic)
            mixed = _fused(query, key, value, bias, self.attention_implementation)
        out = self.dense(width, self.output_deviation, "out")(mixed.reshape(x.shape))
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
        scores = self._scores("bqhd,bkhd->bhqk", query, key)
        if relative is not None:
            scores = scores + relative
        scores = scores * query.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = nn.Dropout(self.dropout_rate)(weights, deterministic=deterministic)
        if head_mask is not None:
            weights = weights * head_mask.astype(weights.dtype)[None, :, None, None]
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision=self.precision), weights

    def _scores(self, letters: str, left: Array, right: Array) -> Float[Array, "batch head query key"]:
        scores: Array = jnp.einsum(letters, left, right, precision=self.precision, preferred_element_type=jnp.float32)
        return scores

    def _relative_scores(self, query: Array, key: Array) -> Float[Array, "batch head query key"]:
        longest = self.config.max_position_embeddings
        table = self.table(2 * longest - 1, query.shape[-1], self.input_deviation, "distance_embedding")
        places = jnp.arange(query.shape[1])
        distances = table(places[:, None] - places[None, :] + longest - 1)
        scores = self._scores("bqhd,qkd->bhqk", query, distances)
        if self.position_embedding_type == "relative_key_query":
            scores += self._scores("bkhd,qkd->bhqk", key, distances)
        return scores

    def _refuse_what_fused_kernels_lack(
        self, relative: Array | None, head_mask: Array | None, output_attentions: bool, deterministic: bool
    ) -> None:
        implementation = self.attention_implementation
        if implementation not in get_args(AttentionImplementation):
            raise ValueError(
                f"attention_implementation={implementation!r} is not one of"
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
                f"attention_implementation={implementation!r} cannot give {' or '.join(lacking)}:"
                " build the model with attention_implementation='plain'."
            )
        if implementation == "cudnn" and jax.default_backend() != "gpu":
            raise ValueError(
                "attention_implementation='cudnn' needs an NVIDIA GPU and this process runs on"
                f" {jax.default_backend()}: use 'plain' or 'xla'."
            )


def _fused(query: Array, key: Array, value: Array, bias: Array | None, implementation: Any) -> Array:
    if bias is not None:
        # the kernels want the bias in the dtype of the query, whose lowest value may be nearer to zero
        finfo: Any = ml_dtypes.finfo
        bias = jnp.maximum(bias, float(finfo(query.dtype).min)).astype(query.dtype)
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], query.shape[1], key.shape[1]))
    return jax.nn.dot_product_attention(query, key, value, bias=bias, implementation=implementation)


class MLP(Part, kw_only=True):
    """Two linear layers with an activation between them."""

    up_deviation: float
    down_deviation: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch sequence embed"]) -> Float[Array, "batch sequence embed"]:
        """Applies the MLP to every position."""
        up = self.dense(self.config.intermediate_size, self.up_deviation, "up")(x)
        hidden = ACTIVATIONS[self.config.hidden_act](up.astype(jnp.float32)).astype(self.dtype)
        return self.dense(x.shape[-1], self.down_deviation, "down")(hidden)


class PreNormBlock(Part):
    """One layer of CLIP's towers: each half sees its input normalised and is added to it.

    Source: modeling_clip.py of transformers 4.56.2 (CLIPEncoderLayer).
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch sequence embed"],
        bias: Float[Array, "#batch 1 #query key"] | None,
        head_mask: Float[Array, " head"] | None,
        output_attentions: bool,
        deterministic: bool,
    ) -> tuple[Array, Array | None]:
        """Returns the new states, and the attention weights when asked for."""
        config = self.config
        width, factor = config.hidden_size, config.initializer_factor
        by_depth = (2 * config.num_hidden_layers) ** -0.5
        attention = Attention(
            config,
            **self.settings,
            dropout_rate=config.attention_dropout,
            input_deviation=width**-0.5 * by_depth * factor,
            output_deviation=width**-0.5 * factor,
            name="attention",
        )
        mlp = MLP(
            config,
            **self.settings,
            up_deviation=(2 * width) ** -0.5 * factor,
            down_deviation=width**-0.5 * by_depth * factor,
            name="mlp",
        )
        normed = self.norm("attention_norm")(x)
        attended, weights = enter(attention, normed, bias, head_mask, output_attentions, deterministic)
        x = x + attended
        changed = enter(mlp, self.norm("mlp_norm")(x))
        return x + changed, weights


class PostNormBlock(Part):
    """One layer of XLM-RoBERTa: each half is added to its input, then normalised."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch sequence embed"],
        bias: Float[Array, "#batch 1 #query key"] | None,
        head_mask: Float[Array, " head"] | None,
        output_attentions: bool,
        deterministic: bool,
    ) -> tuple[Array, Array | None]:
        """Returns the new states, and the attention weights when asked for."""
        config, deviation = self.config, self.config.initializer_factor
        attention = Attention(
            config,
            **self.settings,
            dropout_rate=config.attention_probs_dropout_prob,
            input_deviation=deviation,
            output_deviation=deviation,
            position_embedding_type=config.position_embedding_type,
            name="attention",
        )
        mlp = MLP(config, **self.settings, up_deviation=deviation, down_deviation=deviation, name="mlp")
        attended, weights = enter(attention, x, bias, head_mask, output_attentions, deterministic)
        attended = nn.Dropout(config.hidden_dropout_prob)(attended, deterministic=deterministic)
        x = self.norm("attention_norm")(x + attended)
        changed = enter(mlp, x)
        changed = nn.Dropout(config.hidden_dropout_prob)(changed, deterministic=deterministic)
        return self.norm("mlp_norm")(x + changed), weights
