"""The image tower: a CLIP vision transformer.

Source: modeling_altclip.py of transformers 4.56.2 (AltCLIPVisionModel); Radford et al. 2021 for CLIP.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from altclip_jax.config import AltCLIPVisionConfig, CLIPVisionConfig, VisionConfig
from altclip_jax.model.inputs import AnyArray, check_pixel_values, static_flag
from altclip_jax.model.layers import EmbeddingTable, LayerNorm
from altclip_jax.model.outputs import AltCLIPVisionOutput
from altclip_jax.model.parameters import stored_param
from altclip_jax.model.pre_norm import pre_norm_layers
from altclip_jax.model.pretrained import PretrainedModel, example_picture
from altclip_jax.quantization.leaves import as_array
from altclip_jax.weights.families import CLIP
from altclip_jax.weights.rules import RuleTable


class AltCLIPVisionModel(PretrainedModel):
    """The image tower. `model.apply({"params": params}, pixel_values)`."""

    config_class: ClassVar[type[VisionConfig]] = AltCLIPVisionConfig
    params_prefix: ClassVar[str] = "vision_model/"

    config: VisionConfig

    @nn.nowrap
    def example_inputs(self) -> dict[str, np.ndarray]:
        """Returns the smallest valid inputs, by name."""
        return example_picture(self.config.num_channels, self.config.image_size)

    @nn.compact
    def __call__(
        self,
        pixel_values: Float[AnyArray, "batch channels height width"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        deterministic: bool = True,
    ) -> AltCLIPVisionOutput:
        """Encodes a batch of normalised pictures, channels first as the processor gives them.

        With `interpolate_pos_encoding` pictures of any size from one patch up are taken: the position table is
        resampled bicubically, as torch does it.

        Raises:
            ValueError: no pictures, or pictures of another shape than the tower was made for.
        """
        config = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        output_attentions = static_flag("output_attentions", output_attentions, config.output_attentions)
        output_hidden_states = static_flag("output_hidden_states", output_hidden_states, config.output_hidden_states)
        deterministic = static_flag("deterministic", deterministic, True)
        interpolate_pos_encoding = static_flag("interpolate_pos_encoding", interpolate_pos_encoding, False)
        check_pixel_values(config, pixel_values, interpolate_pos_encoding)
        x = self._embed(jnp.asarray(pixel_values), interpolate_pos_encoding)
        x = LayerNorm(epsilon=config.layer_norm_eps, name="pre_norm", **types)(x)
        x, hidden_states, attentions = pre_norm_layers(
            self, config, x, None, output_attentions, output_hidden_states, deterministic
        )
        pooled = LayerNorm(epsilon=config.layer_norm_eps, name="post_norm", **types)(x[:, 0])
        return AltCLIPVisionOutput(
            last_hidden_state=x,
            pooler_output=pooled,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )

    def _embed(self, pixel_values: Array, interpolate: bool) -> Float[Array, "batch sequence embed"]:
        config, width = self.config, self.config.hidden_size
        normal, factor = nn.initializers.normal, config.initializer_factor
        patches, (rows, columns) = PatchEmbedding(
            config.patch_size,
            width,
            normal(config.initializer_range * factor),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="patch_embedding",
        )(pixel_values)
        class_embedding = self.param("class_embedding", normal(width**-0.5 * factor), (width,), self.param_dtype)
        first = jnp.broadcast_to(class_embedding.astype(self.dtype), (patches.shape[0], 1, width))
        table = EmbeddingTable(
            config.grid_size**2 + 1,
            width,
            normal(config.initializer_range * factor),
            self.param_dtype,
            name="position_embedding",
        )
        positions: Array = as_array(table())
        if interpolate:
            square = pixel_values.shape[2] == pixel_values.shape[3]
            positions = _resample_positions(positions, config.grid_size, (rows, columns), square)
        return jnp.concatenate([first, patches], axis=1) + positions.astype(self.dtype)[None]


class PatchEmbedding(nn.Module):
    """Cuts pictures into square patches and maps each to a vector.

    It is the convolution whose stride is its kernel's side, computed as the matrix product that it is, for which XLA's
    kernels are the faster ones: on a CPU 0.07 s of the 0.77 s of a ViT-B/32 (32 pictures), and 0.4 s of its gradient.
    """

    patch_size: int
    width: int
    kernel_init: Any
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "batch channels height width"]
    ) -> tuple[Float[Array, "batch patches embed"], tuple[int, int]]:
        """Returns the vectors row by row, and how many rows and columns there are; what is left at the edges is cut."""
        batch, channels, height, width = pixel_values.shape
        side = self.patch_size
        rows, columns = height // side, width // side
        shape = (side, side, channels, self.width)
        kernel = as_array(stored_param(self, "kernel", self.kernel_init, shape, self.param_dtype))
        pixels = pixel_values[:, :, : rows * side, : columns * side].astype(self.dtype)
        patches = pixels.reshape(batch, channels, rows, side, columns, side).transpose(0, 2, 4, 3, 5, 1)
        flat = patches.reshape(batch, rows * columns, side * side * channels)
        return flat @ kernel.astype(self.dtype).reshape(-1, self.width), (rows, columns)


class CLIPVisionModel(AltCLIPVisionModel):
    """The same tower, from and to the checkpoints of CLIP."""

    config_class: ClassVar[type[VisionConfig]] = CLIPVisionConfig
    rule_table: ClassVar[RuleTable] = CLIP


def _resample_positions(
    table: Float[Array, "rows embed"], grid: int, size: tuple[int, int], square: bool
) -> Float[Array, "new_rows embed"]:
    # the reference compares the number of patches, so a square picture of the native grid keeps its table
    if square and size == (grid, grid):
        return table
    vertical, horizontal = bicubic_matrix(grid, size[0]), bicubic_matrix(grid, size[1])
    patches = table[1:].astype(jnp.float32).reshape(grid, grid, -1)
    resampled = jnp.einsum("yr,xc,rce->yxe", vertical, horizontal, patches, precision="highest")
    return jnp.concatenate([table[:1], resampled.reshape(size[0] * size[1], -1).astype(table.dtype)])


@functools.cache
def bicubic_matrix(length: int, new_length: int) -> np.ndarray:
    """The (new_length, length) float32 matrix that resamples one axis as torch does.

    Cubic convolution with a = -0.75, half-pixel centres, edges repeated, no antialiasing. jax.image.resize's "cubic"
    has another a and antialiases. Source: Keys 1981; torch.nn.functional.interpolate(mode="bicubic").
    """
    a = -0.75
    centres = (np.arange(new_length) + 0.5) * length / new_length - 0.5
    first = np.floor(centres).astype(int)
    matrix = np.zeros((new_length, length))
    for tap in range(-1, 3):
        distance = np.abs(centres - (first + tap))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        np.add.at(
            matrix,
            (np.arange(new_length), np.clip(first + tap, 0, length - 1)),
            np.where(distance <= 1, near, far),
        )
    return matrix.astype(np.float32)
