"""The two losses, on global arrays, in float32.

Contrastive: Radford et al. 2021 (arXiv 2103.00020), figure 3. Teacher learning: Chen et al. 2022 (arXiv 2211.06679),
section 3.1. Under jit with a sharded batch XLA inserts what must be exchanged; only the ring form says it itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Shaped

from altclip_jax import parallel
from altclip_jax.model.inputs import AnyArray
from altclip_jax.model.two_towers import symmetric_cross_entropy

ContrastiveForm = Literal["plain", "chunked", "ring"]
Rows = tuple[Array, ...]  # what belongs to the rows of a batch: (batch, ...) each


def mean_squared_error(
    student: Float[AnyArray, "batch width"], teacher: Float[AnyArray, "batch width"]
) -> Float[Array, ""]:
    """Mean over batch and width of the squared differences, so that neither changes the size of the gradient."""
    loss: Array = jnp.mean(jnp.square(jnp.asarray(student, jnp.float32) - jnp.asarray(teacher, jnp.float32)))
    return loss


def contrastive_loss(
    text: Float[AnyArray, "batch projection"],
    image: Float[AnyArray, "batch projection"],
    log_scale: Float[AnyArray, ""],
    *,
    form: ContrastiveForm = "plain",
    chunk_rows: int = 1024,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Mean of the cross-entropies text to image and image to text over the whole batch, row i belonging to row i.

    "plain" holds the (batch, batch) scores and their gradient; "chunked" never holds more than (chunk_rows, batch) of
    them, and computes them twice. What a device of a mesh has of either is for XLA to choose. "ring" says so itself:
    each device keeps its own images, and chunks of (chunk_rows, projection) texts go from neighbour to neighbour. Value
    and gradient are the same.

    Args:
        text: Unit embeddings.
        image: Unit embeddings.
        log_scale: Logarithm of the inverse temperature.
        form: "plain", "chunked" or "ring".
        chunk_rows: Texts that are compared at a time: a divisor of the batch, or in a ring of each device's part of it.
        mesh: For "ring": the devices, over whose axes "data" and "fsdp" the batch is dealt.

    Raises:
        ValueError: an unknown form, a ring without its mesh, or a batch that cannot be cut so.
    """
    text, image = jnp.asarray(text), jnp.asarray(image)
    scale = jnp.exp(jnp.asarray(log_scale, jnp.float32))
    if form == "plain":
        return symmetric_cross_entropy(jnp.einsum("tp,ip->ti", text, image, precision="highest") * scale)
    if form not in get_args(ContrastiveForm):
        raise ValueError(
            f"The contrastive loss has no form {form!r}: choose one of {', '.join(get_args(ContrastiveForm))}."
        )
    if form == "chunked":
        return _recomputed(text, image, scale, _chunks(text.shape[0], chunk_rows, "the batch"), None)
    if mesh is None:
        raise ValueError("The ring form needs its devices: give mesh, such as parallel.make_mesh() returns.")
    rows, devices = text.shape[0], parallel.batch_devices(mesh)
    if rows % devices:
        raise ValueError(f"A batch of {rows} rows cannot be dealt evenly over data x fsdp = {devices} devices.")
    return _recomputed(text, image, scale, _chunks(rows // devices, chunk_rows, "each device's part"), mesh)


def interleave(rows: Shaped[Array, "batch ..."], parts: int) -> Shaped[Array, "parts rows ..."]:
    """Deals rows out to parts like cards, so that a sharded batch is cut without moving rows between devices."""
    return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)


def gather(parts: Shaped[Array, "parts rows ..."]) -> Shaped[Array, "batch ..."]:
    """Undoes `interleave`."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _recomputed(text: Array, image: Array, scale: Array, chunks: int, mesh: Mesh | None) -> Array:
    return _forward(text, image, scale, chunks, mesh)[0]


def _forward(
    text: Array, image: Array, scale: Array, chunks: int, mesh: Mesh | None
) -> tuple[Array, tuple[Array, ...]]:
    nothing = jnp.full(text.shape[0], -jnp.inf)
    by_text, by_image = _compare(_add_norms, chunks, mesh, scale, (text,), (image,), nothing, nothing)
    pairs = scale * jnp.sum(text * image, axis=1)
    loss = ((by_text - pairs).mean() + (by_image - pairs).mean()) / 2
    return loss, (text, image, scale, by_text, by_image)


def _backward(chunks: int, mesh: Mesh | None, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    text, image, scale, by_text, by_image = saved
    nothing = jnp.zeros_like(text)
    texts, images = (text, by_text), (image, by_image)
    to_text, to_image = _compare(_add_gradients, chunks, mesh, scale, texts, images, nothing, nothing)
    # the pairs themselves count twice, once in each direction
    to_text, to_image = to_text - 2 * image, to_image - 2 * text
    factor = gradient / (2 * text.shape[0])
    return factor * scale * to_text, factor * scale * to_image, factor * jnp.sum(to_text * text)


_recomputed.defvjp(_forward, _backward)


def _compare(
    add: Any, chunks: int, mesh: Mesh | None, scale: Array, texts: Rows, images: Rows, to_text: Array, to_image: Array
) -> tuple[Array, Array]:
    """Returns (to_text, to_image) continued over all scores, chunk by chunk."""
    if mesh is not None:
        return _go_around(add, mesh, chunks, scale, texts, images, to_text, to_image)

    def add_chunk(to_image: Array, chunk: tuple[Rows, Array]) -> tuple[Array, Array]:
        texts, to_text = chunk
        to_text, to_image = add(scale, texts, images, to_text, to_image)
        return to_image, to_text

    dealt = jax.tree.map(lambda rows: interleave(rows, chunks), (texts, to_text))
    to_image, to_text = lax.scan(add_chunk, to_image, dealt)
    return gather(to_text), to_image


def _go_around(
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


def _add_norms(scale: Array, texts: Rows, images: Rows, by_text: Array, by_image: Array) -> tuple[Array, Array]:
    """Continues the logsumexps of both sides."""
    scores = _scores(scale, *texts, *images)
    by_text = jnp.logaddexp(by_text, jax.nn.logsumexp(scores, axis=1))
    return by_text, jnp.logaddexp(by_image, jax.nn.logsumexp(scores, axis=0))


def _add_gradients(scale: Array, texts: Rows, images: Rows, to_text: Array, to_image: Array) -> tuple[Array, Array]:
    """Continues the gradients: that of logsumexp is softmax, and the sum of both directions' is made anew."""
    (text, by_text), (image, by_image) = texts, images
    scores = _scores(scale, text, image)
    weights = jnp.exp(scores - by_text[:, None]) + jnp.exp(scores - by_image[None])
    to_text += jnp.einsum("ti,ip->tp", weights, image, precision="highest")
    return to_text, to_image + jnp.einsum("ti,tp->ip", weights, text, precision="highest")


def _scores(scale: Array, text: Array, image: Array) -> Array:
    return scale * jnp.einsum("tp,ip->ti", text, image, precision="highest")


def _chunks(rows: int, chunk_rows: int, whose: str) -> int:
    chunk_rows = min(chunk_rows, rows)
    if rows % chunk_rows:
        raise ValueError(f"chunk_rows={chunk_rows} does not divide {whose} of {rows} rows.")
    return rows // chunk_rows
