"""The text towers: AltCLIP's, an XLM-RoBERTa, and the causal one of CLIP, its teacher.

Source: modeling_altclip.py (AltCLIPTextModel) and modeling_clip.py of transformers 4.56.2; Conneau et al. 2020 for
XLM-R, Radford et al. 2021 for CLIP.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, Shaped

from altclip_jax.config import AltCLIPTextConfig, CLIPTextConfig
from altclip_jax.model.door import enter
from altclip_jax.model.inputs import AnyArray, check_causal_text_inputs, check_text_inputs, tower_flags
from altclip_jax.model.layers import Part, PostNormBlock, PreNormBlock, attention_bias, causal_bias
from altclip_jax.model.outputs import CLIPTextModelOutput, TowerOutput
from altclip_jax.model.stacked import run_layers


class TextTower(Part):
    """XLM-RoBERTa, a final LayerNorm and a linear layer to the width of the teacher.

    `tower.apply({"params": params}, input_ids, attention_mask=mask)`.
    """

    config: AltCLIPTextConfig

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
    ) -> TowerOutput:
        """Encodes a batch of texts.

        Without `attention_mask` every position is attended, padding included, as in the reference. `head_mask` is
        (heads,) or (layers, heads). With `deterministic=False` pass `rngs={"dropout": key}` to `apply`.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; a text longer than the position table; an
                id outside its table. Values are checked where they are known, which is outside jit; inside it the
                affected rows come out as NaN.
        """
        config = self.config
        flags = tower_flags(config, output_attentions, output_hidden_states, deterministic)
        check_text_inputs(config, input_ids, inputs_embeds, position_ids, token_type_ids, attention_mask)
        bias = None if attention_mask is None else attention_bias(jnp.asarray(attention_mask))
        x = self.norm("embedding_norm")(self._embed(input_ids, inputs_embeds, token_type_ids, position_ids))
        x = nn.Dropout(config.hidden_dropout_prob)(x, deterministic=flags["deterministic"])
        head_masks = None if head_mask is None else list(_by_layer(jnp.asarray(head_mask), config))
        x, hidden_states, attentions = run_layers(self, PostNormBlock, x, bias, head_masks, **flags)
        final = self.norm("final_norm")(x)
        states = enter(self.dense(config.project_dim, config.initializer_factor, "transformation"), final)
        return TowerOutput(
            last_hidden_state=states, pooler_output=states[:, 0], hidden_states=hidden_states, attentions=attentions
        )

    def _embed(
        self,
        input_ids: AnyArray | None,
        inputs_embeds: AnyArray | None,
        token_type_ids: AnyArray | None,
        position_ids: AnyArray | None,
    ) -> Float[Array, "batch sequence embed"]:
        config, pad = self.config, self.config.pad_token_id
        width, deviation = config.hidden_size, config.initializer_factor
        tokens = self.table(config.vocab_size, width, deviation, "token_embedding", pad)
        positions = self.table(config.max_position_embeddings, width, deviation, "position_embedding", pad)
        types = self.table(config.type_vocab_size, width, deviation, "token_type_embedding")
        if inputs_embeds is None:
            input_ids = jnp.asarray(input_ids)
            x = tokens(input_ids)
            default_positions = position_ids_from(input_ids, pad)
        else:
            x = jnp.asarray(inputs_embeds).astype(self.dtype)
            default_positions = jnp.arange(x.shape[1])[None] + pad + 1
        x = x + types(jnp.zeros(x.shape[:2], jnp.int32) if token_type_ids is None else jnp.asarray(token_type_ids))
        if config.position_embedding_type != "absolute":
            _ = positions.embedding  # a parameter of such models too, which nothing reads
            return x
        return x + positions(default_positions if position_ids is None else jnp.asarray(position_ids))


def position_ids_from(input_ids: Int[Array, "batch sequence"], pad_token_id: int) -> Int[Array, "batch sequence"]:
    """Numbers the tokens that are not padding from `pad_token_id` + 1, wherever padding is; padding gets its id."""
    real = (input_ids != pad_token_id).astype(jnp.int32)
    return jnp.cumsum(real, axis=1) * real + pad_token_id


def _by_layer(head_mask: Array, config: AltCLIPTextConfig) -> Float[Array, "layers heads"]:
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if head_mask.shape not in ((heads,), (layers, heads)):
        raise ValueError(
            f"head_mask must have shape (heads,) = ({heads},) or (layers, heads) = ({layers}, {heads}), got"
            f" {head_mask.shape}."
        )
    return jnp.broadcast_to(head_mask, (layers, heads))


class CLIPTextTower(Part):
    """CLIP's text tower. `tower.apply({"params": params}, input_ids, attention_mask)`.

    Its pooled state is the one before `text_projection`, which AltCLIP's student learns by default.
    """

    config: CLIPTextConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Int[AnyArray, "batch sequence"] | None = None,
        attention_mask: Shaped[AnyArray, "#batch sequence"] | None = None,
        position_ids: Int[AnyArray, "#batch sequence"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> TowerOutput:
        """Encodes a batch of texts; every token sees itself and those before it.

        With the padding on the right `attention_mask` changes nothing before it, and so not the pooled state.

        Raises:
            ValueError: no `input_ids`; a text longer than the position table; an id outside its table. Values are
                checked where they are known, which is outside jit; inside it the affected rows come out as NaN.
        """
        config, deviation = self.config, 0.02 * self.config.initializer_factor
        flags = tower_flags(config, output_attentions, output_hidden_states, deterministic)
        check_causal_text_inputs(config, input_ids, position_ids, attention_mask)
        input_ids = jnp.asarray(input_ids)
        bias = causal_bias(input_ids.shape[1], None if attention_mask is None else jnp.asarray(attention_mask))
        tokens = self.table(config.vocab_size, config.hidden_size, deviation, "token_embedding")
        positions = self.table(config.max_position_embeddings, config.hidden_size, deviation, "position_embedding")
        x = tokens(input_ids) + positions(
            jnp.arange(input_ids.shape[1])[None] if position_ids is None else jnp.asarray(position_ids)
        )
        x, hidden_states, attentions = run_layers(self, PreNormBlock, x, bias, None, **flags)
        states = self.norm("final_norm")(x)
        places = end_of_text(input_ids, config)
        return TowerOutput(
            last_hidden_state=states,
            pooler_output=jnp.take_along_axis(states, places[:, None, None], axis=1)[:, 0],
            hidden_states=hidden_states,
            attentions=attentions,
        )


def end_of_text(input_ids: Int[Array, "batch sequence"], config: CLIPTextConfig) -> Int[Array, " batch"]:
    """Returns the position at which each text is read off, by the rule that the configuration asks for.

    A text without the end-of-text token is read off at its first position, as in the reference.
    """
    marks = input_ids if config.reads_at_highest_id else input_ids == config.eos_token_id
    return jnp.argmax(marks, axis=1)


class CLIPTextTowerWithProjection(Part):
    """CLIP's text tower and `text_projection`. `tower.apply({"params": params}, input_ids, attention_mask)`."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Int[AnyArray, "batch sequence"] | None = None,
        attention_mask: Shaped[AnyArray, "#batch sequence"] | None = None,
        position_ids: Int[AnyArray, "#batch sequence"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> CLIPTextModelOutput:
        """Encodes a batch of texts; see `CLIPTextTower`."""
        config = self.config
        text = CLIPTextTower(config, **self.settings, name="text_model")(
            input_ids, attention_mask, position_ids, output_attentions, output_hidden_states, deterministic
        )
        project = self.projection(config.hidden_size, config.initializer_factor, "text_projection")
        return CLIPTextModelOutput(
            text_embeds=enter(project, text.pooler_output),
            last_hidden_state=text.last_hidden_state,
            hidden_states=text.hidden_states,
            attentions=text.attentions,
        )
