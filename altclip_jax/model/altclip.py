"""AltCLIP: two towers, two projections, one temperature.

Source: modeling_altclip.py of transformers 4.56.2 (AltCLIPModel); Chen et al. 2022, arXiv 2211.06679.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, Shaped

from altclip_jax.config import AltCLIPConfig
from altclip_jax.model.inputs import static_flag
from altclip_jax.model.outputs import AltCLIPOutput
from altclip_jax.model.pretrained import PretrainedModel, example_picture, example_text
from altclip_jax.model.text import AltCLIPTextModel
from altclip_jax.model.vision import AltCLIPVisionModel


class AltCLIPModel(PretrainedModel):
    """The whole model. `model.apply({"params": params}, input_ids, pixel_values, attention_mask)`."""

    config_class: ClassVar[type[AltCLIPConfig]] = AltCLIPConfig
    params_prefix: ClassVar[str] = ""

    config: AltCLIPConfig

    @nn.nowrap
    def example_inputs(self) -> dict[str, Array]:
        """Returns the smallest valid inputs, by name."""
        return {
            **example_text(),
            **example_picture(self.config.vision_config.num_channels, self.config.vision_config.image_size),
        }

    def setup(self) -> None:
        """Names the parts; their names are the first level of the parameter tree."""
        config = self.config
        how: dict[str, Any] = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "attention_implementation": self.attention_implementation,
            "remat": self.remat,
        }

        def projection(width: int) -> nn.Dense:
            init = nn.initializers.normal(width**-0.5 * config.initializer_factor)
            # in float32 whatever the towers compute in: a small product whose rounding every score would carry
            return nn.Dense(
                config.projection_dim,
                use_bias=False,
                kernel_init=init,
                dtype=jnp.float32,
                param_dtype=self.param_dtype,
            )

        self.text_model = AltCLIPTextModel(config.text_config, **how)
        self.vision_model = AltCLIPVisionModel(config.vision_config, **how)
        self.text_projection = projection(config.text_config.project_dim)
        self.visual_projection = projection(config.vision_config.hidden_size)
        initial = nn.initializers.constant(config.logit_scale_init_value)
        self.logit_scale = self.param("logit_scale", initial, (), self.param_dtype)

    def __call__(
        self,
        input_ids: Int[Array, "texts sequence"] | None = None,
        pixel_values: Float[Array, "images channels height width"] | None = None,
        attention_mask: Shaped[Array, "texts ..."] | None = None,
        position_ids: Int[Array, "#texts sequence"] | None = None,
        token_type_ids: Int[Array, "#texts sequence"] | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        deterministic: bool = True,
    ) -> AltCLIPOutput:
        """Compares every picture with every text.

        `return_loss`, `output_attentions`, `output_hidden_states`, `interpolate_pos_encoding` and `deterministic`
        decide what is computed: under jit, fix them with functools.partial. There is no `return_dict`: the output's
        `to_tuple()` gives the reference's tuple.

        Raises:
            ValueError: an input is missing or does not fit; with `return_loss`, unequal numbers of texts and images.
        """
        output_attentions = static_flag("output_attentions", output_attentions, self.config.output_attentions)
        output_hidden_states = static_flag(
            "output_hidden_states", output_hidden_states, self.config.output_hidden_states
        )
        return_loss = static_flag("return_loss", return_loss, False)
        text = self.text_model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=deterministic,
        )
        vision = self.vision_model(
            pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            deterministic=deterministic,
        )
        text_embeds = normalize(self.text_projection(text.pooler_output))
        image_embeds = normalize(self.visual_projection(vision.pooler_output))
        scale = jnp.exp(self.logit_scale.astype(jnp.float32))
        logits_per_text = jnp.einsum("tp,ip->ti", text_embeds, image_embeds, precision="highest") * scale
        return AltCLIPOutput(
            loss=symmetric_cross_entropy(logits_per_text) if return_loss else None,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )

    def get_text_features(
        self,
        input_ids: Int[Array, "texts sequence"] | None = None,
        attention_mask: Shaped[Array, "texts ..."] | None = None,
        position_ids: Int[Array, "#texts sequence"] | None = None,
        token_type_ids: Int[Array, "#texts sequence"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "texts projection"]:
        """Returns the projected texts, not normalised, float32."""
        output = self.text_model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            deterministic=deterministic,
        )
        features: Array = self.text_projection(output.pooler_output)
        return features

    def get_image_features(
        self,
        pixel_values: Float[Array, "images channels height width"] | None = None,
        interpolate_pos_encoding: bool = False,
        deterministic: bool = True,
    ) -> Float[Array, "images projection"]:
        """Returns the projected pictures, not normalised, float32."""
        output = self.vision_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, deterministic=deterministic
        )
        features: Array = self.visual_projection(output.pooler_output)
        return features


def normalize(features: Float[Array, "batch projection"]) -> Float[Array, "batch projection"]:
    """Scales each row to unit length in float32; without an epsilon, as the reference, so a zero row becomes NaN."""
    features = features.astype(jnp.float32)
    units: Array = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    return units


def symmetric_cross_entropy(logits_per_text: Float[Array, "texts images"]) -> Float[Array, ""]:
    """Mean of the cross-entropies text to image and image to text, the diagonal being the pairs.

    Raises:
        ValueError: the numbers of texts and images differ.
    """
    texts, images = logits_per_text.shape
    if texts != images:
        raise ValueError(f"The loss pairs text i with image i and got {texts} texts and {images} images.")
    pairs = jnp.diagonal(logits_per_text)
    by_text = jax.nn.logsumexp(logits_per_text, axis=1) - pairs
    by_image = jax.nn.logsumexp(logits_per_text, axis=0) - pairs
    loss: Array = (by_text.mean() + by_image.mean()) / 2
    return loss
