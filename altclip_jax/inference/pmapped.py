"""pmap: arrays with a leading axis of devices, and encoders that take them.

jit over a mesh (`altclip_jax.parallel`) does the same and more; this is for programs that are written around pmap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32

from altclip_jax.inference.encoder import encode_images, encode_text, pad_rows
from altclip_jax.model.inputs import check_pixel_values, check_texts
from altclip_jax.pretrained import TwoTowerModel
from altclip_jax.weights.convert import Params

AXIS = "devices"
Tree = TypeVar("Tree")
PmapEncoder = Callable[..., Float32[np.ndarray, "rows projection"]]


def replicated(tree: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Returns each array of a tree with a leading axis, along which every device holds a copy.

    Args:
        tree: Of arrays that every process has whole.
        devices: All by default.
    """
    devices = jax.devices() if devices is None else list(devices)
    spec: Any = PartitionSpec
    place = NamedSharding(Mesh(np.array(devices), (AXIS,)), spec(AXIS))
    make: Any = jax.make_array_from_callback

    def copies(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        return make((len(devices), *leaf.shape), place, lambda _: leaf[None])

    copied: Tree = jax.tree.map(copies, tree)
    return copied


def single(tree: Tree) -> Tree:
    """Undoes `replicated`: the copy of one of this process' devices."""

    def first(leaf: Any) -> Any:
        return leaf.addressable_shards[0].data.reshape(leaf.shape[1:])

    copy: Tree = jax.tree.map(first, tree)
    return copy


def dealt(tree: Tree, devices: int | None = None) -> Tree:
    """Returns each array (rows, ...) of a tree as (devices, rows / devices, ...), in order.

    Args:
        tree: The rows of this process.
        devices: Of this process; all of them by default.

    Raises:
        ValueError: the rows cannot be dealt evenly.
    """
    count = jax.local_device_count() if devices is None else devices

    def deal(leaf: Any) -> Any:
        if len(leaf) % count:
            raise ValueError(f"{len(leaf)} rows cannot be dealt evenly to {count} devices.")
        return leaf.reshape(count, -1, *leaf.shape[1:])

    parts: Tree = jax.tree.map(deal, tree)
    return parts


def pmap_encoders(model: TwoTowerModel, devices: Sequence[jax.Device] | None = None) -> tuple[PmapEncoder, PmapEncoder]:
    """Returns (encode_text, encode_images), which spread their rows over devices.

    Each takes (params, arrays...): parameters that are `replicated`, and the arrays (rows, ...) that `encode_text` and
    `encode_images` of `altclip_jax.inference.encoder` take. Any number of rows is right: they are filled up to a
    multiple of the devices, and cut again. They return unit embeddings as numpy arrays, and raise ValueError for what
    the towers do not take, such as an id without a row.

    Args:
        model: The model.
        devices: Those of this process by default.
    """
    devices = jax.local_devices() if devices is None else list(devices)

    def spread(encode: Any, check: Callable[..., None]) -> PmapEncoder:
        mapped: Any = jax.pmap(encode, AXIS, static_broadcasted_argnums=0, devices=devices)

        def encoded(params: Params, *arrays: np.ndarray) -> Float32[np.ndarray, "rows projection"]:
            check(*arrays)
            rows = len(arrays[0])
            if not rows:
                return np.zeros((0, model.config.projection_dim), np.float32)
            # powers of two on each device, so that few shapes are compiled
            whole = len(devices) << (-(-rows // len(devices)) - 1).bit_length()
            parts = dealt([pad_rows(np.asarray(array), whole) for array in arrays], len(devices))
            found = np.asarray(mapped(model, params, *parts), np.float32)
            return found.reshape(whole, -1)[:rows]

        return encoded

    text = functools.partial(check_texts, model.config.text_config)
    pictures = functools.partial(check_pixel_values, model.config.vision_config, interpolate_pos_encoding=False)
    return spread(encode_text, text), spread(encode_images, pictures)
