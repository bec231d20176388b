"""Jitted encoders: prepared arrays in, unit embeddings out.

Every batch is padded to one of a few shapes, so that nothing recompiles after the first batches.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int

from altclip_jax.model.two_towers import TwoTowerModel, normalize
from altclip_jax.weights.convert import Params

LENGTH_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@functools.partial(jax.jit, static_argnums=0)
def encode_text(
    model: TwoTowerModel, params: Params, input_ids: Int[Array, "texts sequence"], mask: Int[Array, "texts sequence"]
) -> Float[Array, "texts projection"]:
    """Returns unit embeddings of tokenized texts, float32."""
    features: Any = model.apply({"params": params}, input_ids, mask, method="get_text_features")
    return normalize(features)


@functools.partial(jax.jit, static_argnums=0)
def encode_images(
    model: TwoTowerModel, params: Params, pixel_values: Float[Array, "images channels height width"]
) -> Float[Array, "images projection"]:
    """Returns unit embeddings of prepared pictures, float32."""
    features: Any = model.apply({"params": params}, pixel_values, method="get_image_features")
    return normalize(features)


def length_buckets(longest: int) -> tuple[int, ...]:
    """Returns the lengths to which texts are padded, ending with the longest a model takes."""
    return (*(length for length in LENGTH_BUCKETS if length < longest), longest)


def padded_size(rows: int, batch_size: int) -> int:
    """Returns the number of rows a batch is padded to: a power of two, or `batch_size`."""
    return min(batch_size, 1 << (rows - 1).bit_length())


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Repeats the last row until there are `rows`: real inputs, so that nothing unusual is computed."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)]) if len(array) < rows else array


def batches(items: int, batch_size: int) -> Iterator[slice]:
    """Cuts `items` into slices of `batch_size`, the last one shorter."""
    return (slice(start, min(start + batch_size, items)) for start in range(0, items, batch_size))


def run_padded(encode: Any, batch_size: int, *arrays: np.ndarray) -> Float32[np.ndarray, "rows projection"]:
    """Runs an encoder on arrays padded to a known number of rows, and cuts the padding off again."""
    rows = len(arrays[0])
    padded = [pad_rows(array, padded_size(rows, batch_size)) for array in arrays]
    return np.asarray(encode(*padded), np.float32)[:rows]


class Encoding(NamedTuple):
    """A batch that the devices work on; its first `rows` rows are wanted."""

    values: Array
    rows: int

    def result(self) -> Float32[np.ndarray, "rows projection"]:
        """Waits for the embeddings."""
        return np.asarray(self.values, np.float32)[: self.rows]


def in_flight(begun: Iterable[Encoding], depth: int = 2) -> Iterator[Float32[np.ndarray, "rows projection"]]:
    """Yields results in order; the devices have up to `depth` batches, so that they wait for none to be made."""
    waiting: deque[Encoding] = deque()
    for encoding in begun:
        waiting.append(encoding)
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
