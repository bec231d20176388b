"""Bringing every text of a batch together with every image while no device holds all of either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from altclip_jax import parallel

Rows = tuple[Array, ...]  # what belongs to the rows of a batch: (batch, ...) each


def around(
    visit: Callable[[Array, Rows, Rows, Array, Array], tuple[Array, Array]],
    mesh: Mesh,
    chunks: int,
    scale: Array,
    texts: Rows,
    images: Rows,
    to_text: Array,
    to_image: Array,
) -> tuple[Array, Array]:
    """Returns (to_text, to_image) after the texts of each device have visited every device's images.

    A chunk of each device's texts makes its round, then the next. Not to be differentiated through: that would keep
    what every visit saw, which is all of the batch on each device.

    Args:
        visit: Returns (to_text, to_image) continued over a chunk of texts and a device's images.
        mesh: Over whose axes "data" and "fsdp" the rows are dealt; along "tensor" all do the same.
        chunks: Into which a device's texts are cut.
        scale: What every device has, given to `visit`.
        texts: Rows that travel.
        images: Rows that stay.
        to_text: Travels with the texts and is changed on the way.
        to_image: Stays with the images and is changed by each visit.
    """
    pass_on: Any = lax.ppermute
    spec: Any = PartitionSpec
    (axes,) = parallel.BATCH
    devices = parallel.batch_devices(mesh)
    onward = [(device, (device + 1) % devices) for device in range(devices)]

    def local(scale: Array, texts: Rows, images: Rows, to_text: Array, to_image: Array) -> tuple[Array, Array]:
        def step(carry: tuple[Rows, Array, Array], _: None) -> tuple[tuple[Rows, Array, Array], None]:
            texts, to_text, to_image = carry
            to_text, to_image = visit(scale, texts, images, to_text, to_image)
            texts, to_text = pass_on((texts, to_text), axes, onward)
            return (texts, to_text, to_image), None

        def round_trip(to_image: Array, chunk: tuple[Rows, Array]) -> tuple[Array, Array]:
            (_, to_text, to_image), _ = lax.scan(step, (*chunk, to_image), length=devices)
            return to_image, to_text

        cut = jax.tree.map(lambda rows: rows.reshape(chunks, -1, *rows.shape[1:]), (texts, to_text))
        to_image, to_text = lax.scan(round_trip, to_image, cut)
        return to_text.reshape(-1, *to_text.shape[2:]), to_image

    whole, rows = spec(), spec(*parallel.BATCH)
    on_each: Any = jax.shard_map(
        local, mesh=mesh, in_specs=(whole, rows, rows, rows, rows), out_specs=(rows, rows), check_vma=False
    )
    met: tuple[Array, Array] = on_each(scale, texts, images, to_text, to_image)
    return met
