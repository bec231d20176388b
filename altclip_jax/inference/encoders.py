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

from altclip_jax.machine import default_device
from altclip_jax.model.inputs import AnyArray, check_texts
from altclip_jax.model.two_towers import normalize
from altclip_jax.pretrained import TwoTowerModel
from altclip_jax.weights.convert import Params

LENGTH_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
CPU_PICTURES = 4  # whose values between two layers stay in a processor's cache; measured: docs/benchmark.md


def encode_text(
    model: TwoTowerModel,
    params: Params,
    input_ids: Int[AnyArray, "texts sequence"],
    mask: Int[AnyArray, "texts sequence"],
) -> Float[Array, "texts projection"]:
    """Returns unit embeddings of tokenized texts, float32.

    Raises:
        ValueError: an id without a row, a text longer than the position table, or a mask of another shape.
    """
    check_texts(model.config.text_config, input_ids, mask)
    embeddings: Array = _encode_text(model, params, input_ids, mask)
    return embeddings


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(model: TwoTowerModel, params: Params, input_ids: Array, mask: Array) -> Array:
    features: Any = model.apply({"params": params}, input_ids, mask, method="get_text_features")
    return normalize(features)


@functools.partial(jax.jit, static_argnums=0, static_argnames="at_once")
def encode_images(
    model: TwoTowerModel,
    params: Params,
    pixel_values: Float[AnyArray, "images channels height width"],
    at_once: int | None = None,
) -> Float[Array, "images projection"]:
    """Returns unit embeddings of prepared pictures, float32.

    Args:
        model: The model.
        params: Its parameters.
        pixel_values: The pictures.
        at_once: So many of them go through all layers before the next ones do (`pictures_at_once`); None: all.
    """

    def embed(pictures: AnyArray) -> Array:
        features: Any = model.apply({"params": params}, pictures, method="get_image_features")
        return normalize(features)

    if at_once is None or len(pixel_values) < 2 * at_once:
        return embed(pixel_values)
    whole = len(pixel_values) // at_once * at_once
    groups, rest = jax.numpy.split(pixel_values, [whole])
    found = jax.lax.map(embed, groups.reshape(-1, at_once, *groups.shape[1:])).reshape(whole, -1)
    return jax.numpy.concatenate([found, embed(rest)]) if len(rest) else found


def pictures_at_once(params: Params) -> int | None:
    """Returns how many pictures of a batch are best encoded before the next ones: few on one CPU, or None for all.

    An accelerator is filled by a large batch. A processor is busy with one picture already, and with more of them what
    passes from layer to layer goes by way of the memory. Pictures that are cut over devices stay where they are.
    """
    devices = devices_of(params) or {default_device()}
    return CPU_PICTURES if len(devices) == 1 and all(device.platform == "cpu" for device in devices) else None


def devices_of(params: Params) -> set[jax.Device]:
    """Returns the devices that parameters are on: none has those that are numpy arrays."""
    return {device for leaf in jax.tree.leaves(params) if isinstance(leaf, Array) for device in leaf.devices()}


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
