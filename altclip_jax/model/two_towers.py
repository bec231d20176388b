"""What AltCLIP and CLIP share: two towers, two projections, one temperature.

Source: modeling_altclip.py and modeling_clip.py of transformers 4.56.2.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from altclip_jax.config import TwoTowerConfig
from altclip_jax.model.inputs import AnyArray, static_flag
from altclip_jax.model.parameters import Dense
from altclip_jax.model.pretrained import PretrainedModel, example_picture, example_text


class TwoTowerModel(PretrainedModel):
    """A model that compares texts and pictures; its subclasses name the towers and take the texts' arguments."""

    text_class: ClassVar[type[PretrainedModel]]
    vision_class: ClassVar[type[PretrainedModel]]
    output_class: ClassVar[Any]
    params_prefix: ClassVar[str] = ""

    config: TwoTowerConfig

    @property
    @abc.abstractmethod
    def text_width(self) -> int:
        """The width of the text tower's pooled state."""

    @nn.nowrap
    def example_inputs(self) -> dict[str, np.ndarray]:
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
        factor = config.initializer_factor
        self.text_model = self.text_class(config.text_config, **how)
        self.vision_model = self.vision_class(config.vision_config, **how)
        self.text_projection = projection(self.text_width, config.projection_dim, factor, self.param_dtype)
        self.visual_projection = projection(
            config.vision_config.hidden_size, config.projection_dim, factor, self.param_dtype
        )
        initial = nn.initializers.constant(config.logit_scale_init_value)
        self.logit_scale = self.param("logit_scale", initial, (), self.param_dtype)

    def get_image_features(
        self,
        pixel_values: Float[AnyArray, "images channels height width"] | None = None,
        interpolate_pos_encoding: bool = False,
        deterministic: bool = True,
    ) -> Float[Array, "images projection"]:
        """Returns the projected pictures, not normalised, float32."""
        output = self.vision_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, deterministic=deterministic
        )
        features: Array = self.visual_projection(output.pooler_output)
        return features

    def _compared(
        self,
        text_inputs: Mapping[str, Any],
        pixel_values: AnyArray | None,
        *,
        return_loss: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        interpolate_pos_encoding: bool,
        deterministic: bool,
    ) -> Any:
        """Returns the output record for a batch, of whose texts the subclass knows the arguments."""
        config = self.config
        flags = {
            "output_attentions": static_flag("output_attentions", output_attentions, config.output_attentions),
            "output_hidden_states": static_flag(
                "output_hidden_states", output_hidden_states, config.output_hidden_states
            ),
            "deterministic": static_flag("deterministic", deterministic, True),
        }
        return_loss = static_flag("return_loss", return_loss, False)
        text = self.text_model(**text_inputs, **flags)
        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **flags)
        text_embeds = normalize(self.text_projection(text.pooler_output))
        image_embeds = normalize(self.visual_projection(vision.pooler_output))
        scale = jnp.exp(self.logit_scale.astype(jnp.float32))
        logits_per_text = jnp.einsum("tp,ip->ti", text_embeds, image_embeds, precision="highest") * scale
        return self.output_class(
            loss=symmetric_cross_entropy(logits_per_text) if return_loss else None,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )


def projection(
    width: int, projection_dim: int, factor: float, param_dtype: DTypeLike, name: str | None = None
) -> Dense:
    """Returns the linear layer from a tower of `width` to the common space.

    It computes in float32 whatever the towers compute in: a small product whose rounding every score would carry.
    """
    return Dense(
        projection_dim,
        use_bias=False,
        kernel_init=nn.initializers.normal(width**-0.5 * factor),
        dtype=jnp.float32,
        param_dtype=param_dtype,
        name=name,
    )


def normalize(features: Float[AnyArray, "batch projection"]) -> Float[Array, "batch projection"]:
    """Scales each row to unit length in float32; without an epsilon, as the reference, so a zero row becomes NaN."""
    features = jnp.asarray(features, jnp.float32)
    units: Array = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    return units


def symmetric_cross_entropy(logits_per_text: Float[AnyArray, "texts images"]) -> Float[Array, ""]:
    """Mean of the cross-entropies text to image and image to text, the diagonal being the pairs.

    Raises:
        ValueError: the numbers of texts and images differ.
    """
    texts, images = logits_per_text.shape
    if texts != images:
        raise ValueError(f"The loss pairs text i with image i and got {texts} texts and {images} images.")
    # not jnp.diagonal: its gradient is a conditional, in which collectives of a sharded batch can wait for each other
    pairs = jnp.sum(logits_per_text * jnp.eye(texts, dtype=logits_per_text.dtype), axis=1)
    by_text = jax.nn.logsumexp(logits_per_text, axis=1) - pairs
    by_image = jax.nn.logsumexp(logits_per_text, axis=0) - pairs
    loss: Array = (by_text.mean() + by_image.mean()) / 2
    return loss
