"""The ring form of the contrastive loss: the plain gradient on any mesh, in less memory than the other forms.

How a model learns by it stands in test_steps.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from altclip_jax import parallel
from altclip_jax.training.losses import contrastive_loss

MESHES = {
    "one": {"data": 1},
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}


def make_mesh(name):
    axes = MESHES[name]
    return parallel.make_mesh(**axes, devices=jax.devices()[: np.prod(list(axes.values()))])


def distance(left, right):
    """Norm of the difference over the norm, over the whole tree."""
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    pairs = [(np.float64(ours), np.float64(theirs)) for ours, theirs in zip(left, right, strict=True)]
    return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs) / sum(np.sum(a**2) for a, _ in pairs))


def embeddings(rows, width=64):
    """Pictures and texts that have a little to do with each other, as in training."""
    rng = np.random.default_rng(0)
    text, other = rng.standard_normal((2, rows, width), dtype=np.float32)
    image = 0.2 * text + other
    return tuple(values / np.linalg.norm(values, axis=1, keepdims=True) for values in (text, image))


@pytest.mark.parametrize("chunk_rows", [2, 1000])
@pytest.mark.parametrize("mesh", MESHES)
def test_ring_loss_and_gradient_are_the_plain_ones(mesh, chunk_rows):
    """Measured: at most 3e-7 at the temperature where training starts and 1e-6 where it stops."""
    mesh = make_mesh(mesh)
    places = (*[parallel.sharding(mesh, parallel.BATCH)] * 2, parallel.sharding(mesh))

    def loss(*arguments, **how):
        return 3 * contrastive_loss(*arguments, **how)

    plain = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    ring = functools.partial(loss, form="ring", chunk_rows=chunk_rows, mesh=mesh)
    ring = jax.jit(jax.value_and_grad(ring, argnums=(0, 1, 2)))
    for log_scale in (2.6592, 4.6052):
        arguments = *embeddings(32), jnp.float32(log_scale)
        value, gradient = plain(*arguments)
        found, ours = ring(*jax.device_put(arguments, places))
        assert float(found) == pytest.approx(float(value), rel=1e-6)
        assert distance(gradient, ours) <= 2e-6
        assert ours[0].sharding.is_equivalent_to(places[0], 2)


def test_a_ring_takes_less_memory_than_chunks_and_chunks_less_than_all_scores():
    mesh = make_mesh("data")
    rows, width = 4096, 64

    def peak(form):
        loss = functools.partial(contrastive_loss, form=form, mesh=mesh)
        whole, dealt = parallel.sharding(mesh), parallel.sharding(mesh, parallel.BATCH)
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), out_shardings=(dealt, dealt, whole))
        embedding = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=dealt)
        compiled = gradient.lower(embedding, embedding, jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    mine = rows // 8
    assert peak("plain") >= mine * rows * 4
    assert peak("ring") < 0.8 * peak("chunked") < 0.8 * 0.5 * peak("plain")
    assert peak("ring") < 2 * mine * mine * 4


def test_a_ring_that_cannot_be_closed_is_refused():
    text, image = embeddings(20)
    with pytest.raises(ValueError, match=r"give mesh, such as parallel\.make_mesh"):
        contrastive_loss(text, image, jnp.float32(1), form="ring")
    with pytest.raises(ValueError, match="20 rows cannot be dealt evenly over data x fsdp = 8"):
        contrastive_loss(text, image, jnp.float32(1), form="ring", mesh=make_mesh("data"))
    with pytest.raises(ValueError, match="chunk_rows=3 does not divide each device's part of 5 rows"):
        contrastive_loss(text, image, jnp.float32(1), form="ring", chunk_rows=3, mesh=make_mesh("all"))
