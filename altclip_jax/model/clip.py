"""CLIP, the teacher: a causal text tower beside the image tower that AltCLIP shares with it.

Source: modeling_clip.py of transformers 4.56.2; Radford et al. 2021.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, Shaped

from altclip_jax.config import CLIPConfig, CLIPTextConfig
from altclip_jax.model.inputs import AnyArray, check_causal_text_inputs, static_flag
from altclip_jax.model.layers import EmbeddingTable, LayerNorm, causal_bias, lookup
from altclip_jax.model.outputs import CLIPOutput, CLIPTextModelOutput, CLIPTextOutput
from altclip_jax.model.pre_norm import pre_norm_layers
from altclip_jax.model.pretrained import PretrainedModel, example_text
from altclip_jax.model.two_towers import TwoTowerModel, projection
from altclip_jax.model.vision import CLIPVisionModel
from altclip_jax.weights.families import CLIP
from altclip_jax.weights.rules import RuleTable


def end_of_text(input_ids: Int[Array, "batch sequence"], config: CLIPTextConfig) -> Int[Array, " batch"]:
    """Returns the position at which each text is read off, by the rule that the configuration asks for.

    A text without the end-of-text token is read off at its first position, as in the reference.
    """
    marks = input_ids if config.reads_at_highest_id else input_ids == config.eos_token_id
    return jnp.argmax(marks, axis=1)


class CLIPTextModel(PretrainedModel):
    """CLIP's text tower. `model.apply({"params": params}, input_ids, attention_mask)`.

    Its pooled state is the one before `text_projection`, which AltCLIP's student learns by default. It reads the
    checkpoints of CLIPModel, CLIPTextModel and CLIPTextModelWithProjection.
    """

    config_class: ClassVar[type[CLIPTextConfig]] = CLIPTextConfig
    rule_table: ClassVar[RuleTable] = CLIP
    params_prefix: ClassVar[str] = "text_model/"

    config: CLIPTextConfig

    @nn.nowrap
    def example_inputs(self) -> dict[str, np.ndarray]:
        """Returns the smallest valid inputs, by name."""
        return example_text()

    @nn.compact
    def __call__(
        self,
        input_ids: Int[AnyArray, "batch sequence"] | None = None,
        attention_mask: Shaped[AnyArray, "#batch sequence"] | None = None,
        position_ids: Int[AnyArray, "#batch sequence"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> CLIPTextOutput:
        """Encodes a batch of texts; every token sees itself and those before it.

        With the padding on the right `attention_mask` changes nothing before it, and so not the pooled state.

        Raises:
            ValueError: no `input_ids`; a text longer than the position table; an id outside its table. Values are
                checked where they are known, which is outside jit; inside it the affected rows come out as NaN.
        """
        config = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        output_attentions = static_flag("output_attentions", output_attentions, config.output_attentions)
        output_hidden_states = static_flag("output_hidden_states", output_hidden_states, config.output_hidden_states)
        deterministic = static_flag("deterministic", deterministic, True)
        check_causal_text_inputs(config, input_ids, position_ids, attention_mask)
        input_ids = jnp.asarray(input_ids)
        bias = causal_bias(input_ids.shape[1], None if attention_mask is None else jnp.asarray(attention_mask))
        x = self._embed(input_ids, position_ids)
        x, hidden_states, attentions = pre_norm_layers(
            self, config, x, bias, output_attentions, output_hidden_states, deterministic
        )
        states = LayerNorm(epsilon=config.layer_norm_eps, name="final_norm", **types)(x)
        places = end_of_text(input_ids, config)
        return CLIPTextOutput(
            last_hidden_state=states,
            pooler_output=jnp.take_along_axis(states, places[:, None, None], axis=1)[:, 0],
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )

    def _embed(
        self, input_ids: Int[Array, "batch sequence"], position_ids: AnyArray | None
    ) -> Float[Array, "batch sequence embed"]:
        config = self.config
        init = nn.initializers.normal(0.02 * config.initializer_factor)
        sizes = {"token_embedding": config.vocab_size, "position_embedding": config.max_position_embeddings}
        tokens, positions = (
            EmbeddingTable(rows, config.hidden_size, init, self.param_dtype, name=name)()
            for name, rows in sizes.items()
        )
        position_ids = jnp.arange(input_ids.shape[1])[None] if position_ids is None else jnp.asarray(position_ids)
        return lookup(tokens, input_ids).astype(self.dtype) + lookup(positions, position_ids).astype(self.dtype)


class CLIPTextModelWithProjection(PretrainedModel):
    """CLIP's text tower and `text_projection`. `model.apply({"params": params}, input_ids, attention_mask)`.

    It reads the checkpoints of CLIPModel and CLIPTextModelWithProjection.
    """

    config_class: ClassVar[type[CLIPTextConfig]] = CLIPTextConfig
    rule_table: ClassVar[RuleTable] = CLIP
    params_prefix: ClassVar[str] = ""

    config: CLIPTextConfig

    @nn.nowrap
    def example_inputs(self) -> dict[str, np.ndarray]:
        """Returns the smallest valid inputs, by name."""
        return example_text()

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
        """Encodes a batch of texts; see `CLIPTextModel`."""
        config = self.config
        text = CLIPTextModel(
            config, self.dtype, self.param_dtype, self.attention_implementation, self.remat, name="text_model"
        )(input_ids, attention_mask, position_ids, output_attentions, output_hidden_states, deterministic)
        project = projection(
            config.hidden_size, config.projection_dim, config.initializer_factor, self.param_dtype, "text_projection"
        )
        return CLIPTextModelOutput(
            text_embeds=project(text.pooler_output),
            last_hidden_state=text.last_hidden_state,
            hidden_states=text.hidden_states,
            attentions=text.attentions,
        )


class CLIPModel(TwoTowerModel):
    """The whole model. `model.apply({"params": params}, input_ids, pixel_values, attention_mask)`."""

    config_class: ClassVar[type[CLIPConfig]] = CLIPConfig
    rule_table: ClassVar[RuleTable] = CLIP
    text_class: ClassVar[type[CLIPTextModel]] = CLIPTextModel
    vision_class: ClassVar[type[CLIPVisionModel]] = CLIPVisionModel
    output_class: ClassVar[type[CLIPOutput]] = CLIPOutput

    config: CLIPConfig

    @property
    def text_width(self) -> int:
        """The width of the text tower's pooled state."""
        return self.config.text_config.hidden_size

    def __call__(
        self,
        input_ids: Int[AnyArray, "texts sequence"] | None = None,
        pixel_values: Float[AnyArray, "images channels height width"] | None = None,
        attention_mask: Shaped[AnyArray, "#texts sequence"] | None = None,
        position_ids: Int[AnyArray, "#texts sequence"] | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        deterministic: bool = True,
    ) -> CLIPOutput:
        """Compares every picture with every text; see `AltCLIPModel`, whose flags and result these are.

        Raises:
            ValueError: an input is missing or does not fit; with `return_loss`, unequal numbers of texts and images.
        """
        output: CLIPOutput = self._compared(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
            },
            pixel_values,
            return_loss=return_loss,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            deterministic=deterministic,
        )
        return output

    def get_text_features(
        self,
        input_ids: Int[AnyArray, "texts sequence"] | None = None,
        attention_mask: Shaped[AnyArray, "#texts sequence"] | None = None,
        position_ids: Int[AnyArray, "#texts sequence"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "texts projection"]:
        """Returns the projected texts, not normalised, float32."""
        output = self.text_model(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, deterministic=deterministic
        )
        features: Array = self.text_projection(output.pooler_output)
        return features
