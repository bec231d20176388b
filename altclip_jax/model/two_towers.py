"""AltCLIP and CLIP: two towers, two projections, one temperature.

Source: modeling_altclip.py and modeling_clip.py of transformers 4.56.2; Chen et al. 2022, arXiv 2211.06679; Radford et
al. 2021.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, Shaped

from altclip_jax.config import CLIPConfig, TwoTowerConfig
from altclip_jax.model.door import enter
from altclip_jax.model.inputs import AnyArray, static_flag, tower_flags
from altclip_jax.model.layers import Part
from altclip_jax.model.outputs import AltCLIPOutput, TowerOutput
from altclip_jax.model.text import CLIPTextTower, TextTower
from altclip_jax.model.vision import VisionTower


class TwoTowers(Part):
    """The whole model. `model.apply({"params": params}, input_ids, pixel_values, attention_mask)`."""

    config: TwoTowerConfig

    def setup(self) -> None:
        """Names the parts; their names are the first level of the parameter tree."""
        config, factor = self.config, self.config.initializer_factor
        texts, pictures = config.text_config, config.vision_config
        if isinstance(config, CLIPConfig):
            self.text_model: Any = CLIPTextTower(texts, **self.settings)
            text_width = texts.hidden_size
        else:
            self.text_model = TextTower(texts, **self.settings)
            text_width = texts.project_dim
        self.vision_model = VisionTower(pictures, **self.settings)
        self.text_projection = self.projection(text_width, factor)
        self.visual_projection = self.projection(pictures.hidden_size, factor)
        initial = nn.initializers.constant(config.logit_scale_init_value)
        self.logit_scale = self.param("logit_scale", initial, (), self.param_dtype)

    def __call__(
        self,
        input_ids: Int[AnyArray, "texts sequence"] | None = None,
        pixel_values: Float[AnyArray, "images channels height width"] | None = None,
        attention_mask: Shaped[AnyArray, "#texts ..."] | None = None,
        position_ids: Int[AnyArray, "#texts sequence"] | None = None,
        token_type_ids: Int[AnyArray, "#texts sequence"] | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        deterministic: bool = True,
    ) -> AltCLIPOutput:
        """Compares every picture with every text.

        `return_loss`, `output_attentions`, `output_hidden_states`, `interpolate_pos_encoding` and `deterministic`
        decide what is computed: under jit, fix them with functools.partial. There is no `return_dict`: the output's
        `to_tuple()` gives the reference's tuple. A CLIP takes no `token_type_ids`.

        Raises:
            ValueError: an input is missing or does not fit; with `return_loss`, unequal numbers of texts and images.
        """
        flags = tower_flags(self.config, output_attentions, output_hidden_states, deterministic)
        return_loss = static_flag("return_loss", return_loss, False)
        text = self._encode_texts(input_ids, attention_mask, position_ids, token_type_ids, **flags)
        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **flags)
        text_embeds = normalize(enter(self.text_projection, text.pooler_output))
        image_embeds = normalize(enter(self.visual_projection, vision.pooler_output))
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
        input_ids: Int[AnyArray, "texts sequence"] | None = None,
        attention_mask: Shaped[AnyArray, "#texts ..."] | None = None,
        position_ids: Int[AnyArray, "#texts sequence"] | None = None,
        token_type_ids: Int[AnyArray, "#texts sequence"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "texts projection"]:
        """Returns the projected texts, not normalised, float32."""
        text = self._encode_texts(input_ids, attention_mask, position_ids, token_type_ids, deterministic=deterministic)
        features: Array = enter(self.text_projection, text.pooler_output)
        return features

    def get_image_features(
        self,
        pixel_values: Float[AnyArray, "images channels height width"] | None = None,
        interpolate_pos_encoding: bool = False,
        deterministic: bool = True,
    ) -> Float[Array, "images projection"]:
        """Returns the projected pictures, not normalised, float32."""
        vision = self.vision_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, deterministic=deterministic
        )
        features: Array = enter(self.visual_projection, vision.pooler_output)
        return features

    def _encode_texts(self, input_ids: Any, mask: Any, positions: Any, token_types: Any, **flags: bool) -> TowerOutput:
        types = {} if token_types is None else {"token_type_ids": token_types}  # which CLIP's tower does not take
        output: TowerOutput = self.text_model(input_ids, attention_mask=mask, position_ids=positions, **types, **flags)
        return output


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
