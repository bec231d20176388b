"""AltCLIP: two towers, two projections, one temperature.

Source: modeling_altclip.py of transformers 4.56.2 (AltCLIPModel); Chen et al. 2022, arXiv 2211.06679.
"""

from __future__ import annotations

from typing import ClassVar

from jax import Array
from jaxtyping import Float, Int, Shaped

from altclip_jax.config import AltCLIPConfig
from altclip_jax.model.inputs import AnyArray
from altclip_jax.model.outputs import AltCLIPOutput
from altclip_jax.model.text import AltCLIPTextModel
from altclip_jax.model.two_towers import TwoTowerModel
from altclip_jax.model.vision import AltCLIPVisionModel


class AltCLIPModel(TwoTowerModel):
    """The whole model. `model.apply({"params": params}, input_ids, pixel_values, attention_mask)`."""

    config_class: ClassVar[type[AltCLIPConfig]] = AltCLIPConfig
    text_class: ClassVar[type[AltCLIPTextModel]] = AltCLIPTextModel
    vision_class: ClassVar[type[AltCLIPVisionModel]] = AltCLIPVisionModel
    output_class: ClassVar[type[AltCLIPOutput]] = AltCLIPOutput

    config: AltCLIPConfig

    @property
    def text_width(self) -> int:
        """The width of the text tower's pooled state."""
        return self.config.text_config.project_dim

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
        `to_tuple()` gives the reference's tuple.

        Raises:
            ValueError: an input is missing or does not fit; with `return_loss`, unequal numbers of texts and images.
        """
        output: AltCLIPOutput = self._compared(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
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
        attention_mask: Shaped[AnyArray, "#texts ..."] | None = None,
        position_ids: Int[AnyArray, "#texts sequence"] | None = None,
        token_type_ids: Int[AnyArray, "#texts sequence"] | None = None,
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
