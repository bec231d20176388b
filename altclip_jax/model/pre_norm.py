"""The layers of CLIP's towers, which normalise before each half.

Source: modeling_clip.py of transformers 4.56.2 (CLIPEncoderLayer).
"""

from __future__ import annotations

import functools
from typing import Any

from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from altclip_jax.config import CLIPTextConfig, VisionConfig
from altclip_jax.model.layers import MLP, Attention, AttentionImplementation, LayerNorm, rematerialised
from altclip_jax.model.pretrained import PretrainedModel
from altclip_jax.model.stacked import run_layers


def pre_norm_layers(
    tower: PretrainedModel,
    config: VisionConfig | CLIPTextConfig,
    x: Float[Array, "batch sequence embed"],
    bias: Float[Array, "#batch 1 #query key"] | None,
    output_attentions: bool,
    output_hidden_states: bool,
    deterministic: bool,
) -> tuple[Array, tuple[Array, ...], tuple[Any, ...]]:
    """Runs the layers of a tower; see `run_layers`."""
    block = functools.partial(
        rematerialised(PreNormBlock, tower.remat, static_argnums=(4, 5)),
        config,
        tower.attention_implementation,
        dtype=tower.dtype,
        param_dtype=tower.param_dtype,
    )
    depth = config.num_hidden_layers
    return run_layers(
        tower, block, depth, x, bias, [None] * depth, output_attentions, output_hidden_states, deterministic
    )


class PreNormBlock(nn.Module):
    """One layer: each half sees its input normalised and is added to it."""

    config: VisionConfig | CLIPTextConfig
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
        width, factor = config.hidden_size, config.initializer_factor
        by_depth = (2 * config.num_hidden_layers) ** -0.5
        normal = nn.initializers.normal
        normed = LayerNorm(epsilon=config.layer_norm_eps, name="attention_norm", **types)(x)
        attended, weights = Attention(
            num_heads=config.num_attention_heads,
            dropout_rate=config.attention_dropout,
            implementation=self.attention_implementation,
            query_key_value_init=normal(width**-0.5 * by_depth * factor),
            out_init=normal(width**-0.5 * factor),
            name="attention",
            **types,
        )(normed, bias, head_mask, output_attentions, deterministic)
        x = x + attended
        normed = LayerNorm(epsilon=config.layer_norm_eps, name="mlp_norm", **types)(x)
        changed = MLP(
            width=config.intermediate_size,
            activation=config.hidden_act,
            up_init=normal((2 * width) ** -0.5 * factor),
            down_init=normal(width**-0.5 * by_depth * factor),
            name="mlp",
            **types,
        )(normed)
        return x + changed, weights
