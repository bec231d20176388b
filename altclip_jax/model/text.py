"""The text tower: XLM-RoBERTa, a final LayerNorm and a linear layer to the width of the teacher.

Source: modeling_altclip.py of transformers 4.56.2 (AltCLIPTextModel); Conneau et al. 2020 for XLM-R.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Shaped

from altclip_jax.config import AltCLIPTextConfig
from altclip_jax.model.inputs import AnyArray, check_text_inputs, static_flag
from altclip_jax.model.layers import (
    MLP,
    Attention,
    AttentionImplementation,
    EmbeddingTable,
    LayerNorm,
    attention_bias,
    lookup,
    rematerialised,
)
from altclip_jax.model.outputs import AltCLIPTextOutput
from altclip_jax.model.parameters import Dense
from altclip_jax.model.pretrained import PretrainedModel, example_text
from altclip_jax.model.stacked import run_layers
from altclip_jax.quantization.leaves import QuantizedArray


def position_ids_from(input_ids: Int[Array, "batch sequence"], pad_token_id: int) -> Int[Array, "batch sequence"]:
    """Numbers the tokens that are not padding from `pad_token_id` + 1, wherever padding is; padding gets its id."""
    real = (input_ids != pad_token_id).astype(jnp.int32)
    return jnp.cumsum(real, axis=1) * real + pad_token_id


class PostNormBlock(nn.Module):
    """One XLM-R layer: each half is added to its input, then normalised."""

    config: AltCLIPTextConfig
    attention_implementation: AttentionImplementation
    dtype: DTypeLike
    param_dtype: DTypeLike

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
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = nn.initializers.normal(config.initializer_factor)
        attended, weights = Attention(
            num_heads=config.num_attention_heads,
            dropout_rate=config.attention_probs_dropout_prob,
            implementation=self.attention_implementation,
            query_key_value_init=init,
            out_init=init,
            position_embedding_type=config.position_embedding_type,
            max_position_embeddings=config.max_position_embeddings,
            name="attention",
            **types,
        )(x, bias, head_mask, output_attentions, deterministic)
        attended = nn.Dropout(config.hidden_dropout_prob)(attended, deterministic=deterministic)
        x = LayerNorm(epsilon=config.layer_norm_eps, name="attention_norm", **types)(x + attended)
        changed = MLP(
            width=config.intermediate_size,
            activation=config.hidden_act,
            up_init=init,
            down_init=init,
            name="mlp",
            **types,
        )(x)
        changed = nn.Dropout(config.hidden_dropout_prob)(changed, deterministic=deterministic)
        return LayerNorm(epsilon=config.layer_norm_eps, name="mlp_norm", **types)(x + changed), weights


class AltCLIPTextModel(PretrainedModel):
    """The text tower. `model.apply({"params": params}, input_ids, attention_mask=mask)`."""

    config_class: ClassVar[type[AltCLIPTextConfig]] = AltCLIPTextConfig
    params_prefix: ClassVar[str] = "text_model/"

    config: AltCLIPTextConfig

    @nn.nowrap
    def example_inputs(self) -> dict[str, np.ndarray]:
        """Returns the smallest valid inputs, by name."""
        return example_text()

    @nn.compact
    def __call__(
        self,
        input_ids: Int[AnyArray, "batch sequence"] | None = None,
        attention_mask: Shaped[AnyArray, "#batch ..."] | None = None,
        token_type_ids: Int[AnyArray, "#batch sequence"] | None = None,
        position_ids: Int[AnyArray, "#batch sequence"] | None = None,
        head_mask: Float[AnyArray, " ..."] | None = None,
        inputs_embeds: Float[AnyArray, "batch sequence embed"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> AltCLIPTextOutput:
        """Encodes a batch of texts.

        Without `attention_mask` every position is attended, padding included, as in the reference. `head_mask` is
        (heads,) or (layers, heads). With `deterministic=False` pass `rngs={"dropout": key}` to `apply`.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; a text longer than the position table; an
                id outside its table. Values are checked where they are known, which is outside jit; inside it the
                affected rows come out as NaN.
        """
        config = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        output_attentions = static_flag("output_attentions", output_attentions, config.output_attentions)
        output_hidden_states = static_flag("output_hidden_states", output_hidden_states, config.output_hidden_states)
        deterministic = static_flag("deterministic", deterministic, True)
        check_text_inputs(config, input_ids, inputs_embeds, position_ids, token_type_ids, attention_mask)
        bias = None if attention_mask is None else attention_bias(jnp.asarray(attention_mask))
        x = self._embed(input_ids, inputs_embeds, token_type_ids, position_ids)
        x = LayerNorm(epsilon=config.layer_norm_eps, name="embedding_norm", **types)(x)
        x = nn.Dropout(config.hidden_dropout_prob)(x, deterministic=deterministic)

        block = functools.partial(
            rematerialised(PostNormBlock, self.remat, static_argnums=(4, 5)),
            config,
            self.attention_implementation,
            **types,
        )
        x, hidden_states, attentions = run_layers(
            self,
            block,
            config.num_hidden_layers,
            x,
            bias,
            _per_layer(head_mask, config),
            output_attentions,
            output_hidden_states,
            deterministic,
        )
        final = LayerNorm(epsilon=config.layer_norm_eps, name="final_norm", **types)(x)
        init = nn.initializers.normal(config.initializer_factor)
        states = Dense(config.project_dim, kernel_init=init, name="transformation", **types)(final)
        return AltCLIPTextOutput(
            last_hidden_state=states,
            pooler_output=states[:, 0],
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )

    def _embed(
        self,
        input_ids: AnyArray | None,
        inputs_embeds: AnyArray | None,
        token_type_ids: AnyArray | None,
        position_ids: AnyArray | None,
    ) -> Float[Array, "batch sequence embed"]:
        config, pad = self.config, self.config.pad_token_id
        tokens = self._table("token_embedding", config.vocab_size, pad)
        positions = self._table("position_embedding", config.max_position_embeddings, pad)
        types = self._table("token_type_embedding", config.type_vocab_size, None)
        if inputs_embeds is None:
            input_ids = jnp.asarray(input_ids)
            x = lookup(tokens, input_ids, pad).astype(self.dtype)
            default_positions = position_ids_from(input_ids, pad)
        else:
            x = jnp.asarray(inputs_embeds).astype(self.dtype)
            default_positions = jnp.arange(x.shape[1])[None] + pad + 1
        token_type_ids = jnp.zeros(x.shape[:2], jnp.int32) if token_type_ids is None else jnp.asarray(token_type_ids)
        x = x + lookup(types, token_type_ids).astype(self.dtype)
        if config.position_embedding_type != "absolute":
            return x
        position_ids = default_positions if position_ids is None else jnp.asarray(position_ids)
        return x + lookup(positions, position_ids, pad).astype(self.dtype)

    def _table(self, name: str, rows: int, zero_row: int | None) -> Float[Array, "rows embed"] | QuantizedArray:
        def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            values = nn.initializers.normal(self.config.initializer_factor)(key, shape, dtype)
            return values if zero_row is None else values.at[zero_row].set(0)

        return EmbeddingTable(rows, self.config.hidden_size, init, self.param_dtype, name=name)()


def _per_layer(head_mask: AnyArray | None, config: AltCLIPTextConfig) -> list[Array | None]:
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if head_mask is None:
        return [None] * layers
    head_mask = jnp.asarray(head_mask)
    if head_mask.shape not in ((heads,), (layers, heads)):
        raise ValueError(
            f"head_mask must have shape (heads,) = ({heads},) or (layers, heads) = ({layers}, {heads}), got"
            f" {head_mask.shape}."
        )
    return list(jnp.broadcast_to(head_mask, (layers, heads)))
