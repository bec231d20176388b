"""The two losses, on global arrays, in float32.

Contrastive: Radford et al. 2021 (arXiv 2103.00020), figure 3. Teacher learning: Chen et al. 2022 (arXiv 2211.06679),
section 3.1. Neither names a device or an axis: under jit with a sharded batch, XLA inserts what must be exchanged.
"""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from altclip_jax.model.two_towers import symmetric_cross_entropy

ContrastiveForm = Literal["plain", "chunked"]


def mean_squared_error(student: Float[Array, "batch width"], teacher: Float[Array, "batch width"]) -> Float[Array, ""]:
    """Mean over batch and width of the squared differences, so that neither changes the size of the gradient."""
    loss: Array = jnp.mean(jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)))
    return loss


def contrastive_loss(
    text: Float[Array, "batch projection"],
    image: Float[Array, "batch projection"],
    log_scale: Float[Array, ""],
    *,
    form: ContrastiveForm = "plain",
    chunk_rows: int = 1024,
) -> Float[Array, ""]:
    """Mean of the cross-entropies text to image and image to text over the whole batch, row i belonging to row i.

    "plain" holds the (batch, batch) scores and their gradient; "chunked" never holds more than (chunk_rows, batch) of
    them, and computes them twice. Value and gradient are the same.

    Args:
        text: Unit embeddings.
        image: Unit embeddings.
        log_scale: Logarithm of the inverse temperature.
        form: "plain" or "chunked".
        chunk_rows: Texts that are compared at a time; a divisor of the batch.

    Raises:
        ValueError: an unknown form, or `chunk_rows` does not divide the batch.
    """
    scale = jnp.exp(log_scale.astype(jnp.float32))
    if form == "plain":
        return symmetric_cross_entropy(jnp.einsum("tp,ip->ti", text, image, precision="highest") * scale)
    if form != "chunked":
        raise ValueError(
            f"The contrastive loss has no form {form!r}: choose one of {', '.join(get_args(ContrastiveForm))}."
        )
    rows = text.shape[0]
    chunk_rows = min(chunk_rows, rows)
    if rows % chunk_rows:
        raise ValueError(f"chunk_rows={chunk_rows} does not divide the batch of {rows} rows.")
    return _chunked(text, image, scale, rows // chunk_rows)


def interleave(rows: Float[Array, "batch ..."], parts: int) -> Float[Array, "parts rows ..."]:
    """Deals rows out to parts like cards, so that a sharded batch is cut without moving rows between devices."""
    return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)


def gather(parts: Float[Array, "parts rows ..."]) -> Float[Array, "batch ..."]:
    """Undoes `interleave`."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked(text: Array, image: Array, scale: Array, chunks: int) -> Array:
    return _chunked_forward(text, image, scale, chunks)[0]


def _chunked_forward(text: Array, image: Array, scale: Array, chunks: int) -> tuple[Array, tuple[Array, ...]]:
    def add_chunk(by_image: Array, part: Array) -> tuple[Array, Array]:
        scores = scale * _products(part, image)
        return jnp.logaddexp(by_image, jax.nn.logsumexp(scores, axis=0)), jax.nn.logsumexp(scores, axis=1)

    start = jnp.full(image.shape[0], -jnp.inf)
    by_image, by_text = lax.scan(add_chunk, start, interleave(text, chunks))
    pairs = scale * jnp.sum(text * image, axis=1)
    loss = (by_text.mean() + by_image.mean()) / 2 - pairs.mean()
    return loss, (text, image, scale, by_text, by_image)


def _chunked_backward(chunks: int, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    """The gradient of logsumexp is softmax; the sum of both directions' is made anew, chunk by chunk."""
    text, image, scale, by_text, by_image = saved

    def add_chunk(to_image: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
        texts, norms = part
        scores = scale * _products(texts, image)
        weights = jnp.exp(scores - norms[:, None]) + jnp.exp(scores - by_image[None])
        to_text = jnp.matmul(weights, image, precision="highest")
        return to_image + jnp.matmul(weights.T, texts, precision="highest"), to_text

    to_image, to_text = lax.scan(add_chunk, jnp.zeros_like(image), (interleave(text, chunks), by_text))
    # the pairs themselves count twice, once in each direction
    to_text, to_image = gather(to_text) - 2 * image, to_image - 2 * text
    factor = gradient / (2 * text.shape[0])
    return factor * scale * to_text, factor * scale * to_image, factor * jnp.sum(to_text * text)


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _products(texts: Array, images: Array) -> Array:
    return jnp.einsum("tp,ip->ti", texts, images, precision="highest")
