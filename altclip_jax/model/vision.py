"""The image tower: a CLIP vision transformer.

Source: modeling_altclip.py of transformers 4.56.2 (AltCLIPVisionModel); Radford et al. 2021 for CLIP.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from altclip_jax.config import VisionConfig
from altclip_jax.model.door import enter
from altclip_jax.model.inputs import AnyArray, check_pixel_values, static_flag, tower_flags
from altclip_jax.model.layers import Part, PreNormBlock
from altclip_jax.model.outputs import TowerOutput
from altclip_jax.model.stacked import run_layers


class VisionTower(Part):
    """The image tower. `tower.apply({"params": params}, pixel_values)`."""

    config: VisionConfig

    @nn.compact
    def __call__(
        self,
        pixel_values: Float[AnyArray, "batch channels height width"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        deterministic: bool = True,
    ) -> TowerOutput:
        """Encodes a batch of normalised pictures, channels first as the processor gives them.

        With `interpolate_pos_encoding` pictures of any size from one patch up are taken: the position table is
        resampled bicubically, as torch does it.

        Raises:
            ValueError: no pictures, or pictures of another shape than the tower was made for.
        """
        flags = tower_flags(self.config, output_attentions, output_hidden_states, deterministic)
        interpolate_pos_encoding = static_flag("interpolate_pos_encoding", interpolate_pos_encoding, False)
        check_pixel_values(self.config, pixel_values, interpolate_pos_encoding)
        x = self.norm("pre_norm")(self._embed(jnp.asarray(pixel_values), interpolate_pos_encoding))
        x, hidden_states, attentions = run_layers(self, PreNormBlock, x, None, None, **flags)
        return TowerOutput(
            last_hidden_state=x,
            pooler_output=self.norm("post_norm")(x[:, 0]),
            hidden_states=hidden_states,
            attentions=attentions,
        )

    def _embed(self, pixel_values: Array, interpolate: bool) -> Float[Array, "batch sequence embed"]:
        config, width, factor = self.config, self.config.hidden_size, self.config.initializer_factor
        deviation = config.initializer_range * factor
        patch_embedding = PatchEmbedding(
            config.patch_size, width, deviation, self.dtype, self.param_dtype, self.precision, name="patch_embedding"
        )
        patches, (rows, columns) = enter(patch_embedding, pixel_values)
        of_class = nn.initializers.normal(width**-0.5 * factor)
        class_embedding = self.param("class_embedding", of_class, (width,), self.param_dtype)
        first = jnp.broadcast_to(class_embedding.astype(self.dtype), (patches.shape[0], 1, width))
        table = self.table(config.grid_size**2 + 1, width, deviation, "position_embedding")
        positions = jnp.asarray(table.embedding)
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
    deviation: float  # of the initial kernel
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "batch channels height width"]
    ) -> tuple[Float[Array, "batch patches embed"], tuple[int, int]]:
        """Returns the vectors row by row, and how many rows and columns there are; what is left at the edges is cut."""
        batch, channels, height, width = pixel_values.shape
        side = self.patch_size
        rows, columns = height // side, width // side
        shape = (side, side, channels, self.width)
        kernel = self.param("kernel", nn.initializers.normal(self.deviation), shape, self.param_dtype)
        pixels = pixel_values[:, :, : rows * side, : columns * side].astype(self.dtype)
        patches = pixels.reshape(batch, channels, rows, side, columns, side).transpose(0, 2, 4, 3, 5, 1)
        flat = patches.reshape(batch, rows * columns, side * side * channels)
        matrix = kernel.astype(self.dtype).reshape(-1, self.width)
        return jnp.matmul(flat, matrix, precision=self.precision), (rows, columns)


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
