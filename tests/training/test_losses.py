"""Both losses against their definitions, and the memory-lean form against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from altclip_jax.training.losses import contrastive_loss, gather, interleave, mean_squared_error


def units(seed, rows=24, width=7):
    values = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return jnp.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def by_definition(text, image, log_scale):
    """Radford et al. 2021, figure 3, in float64 numpy."""
    scores = np.exp(np.float64(log_scale)) * np.asarray(text, np.float64) @ np.asarray(image, np.float64).T
    own = np.diagonal(scores)
    by_text = np.log(np.exp(scores - own[:, None]).sum(axis=1)).mean()
    by_image = np.log(np.exp(scores - own[None]).sum(axis=0)).mean()
    return (by_text + by_image) / 2


@pytest.mark.parametrize("form", ["plain", "chunked"])
@pytest.mark.parametrize("log_scale", [0.0, 2.6592, 4.6])
def test_contrastive_loss_is_the_mean_of_both_cross_entropies(form, log_scale):
    text, image = units(0), units(1)
    loss = contrastive_loss(text, image, jnp.float32(log_scale), form=form, chunk_rows=6)
    np.testing.assert_allclose(loss, by_definition(text, image, log_scale), rtol=2e-6)


@pytest.mark.parametrize("chunk_rows", [1, 4, 24, 1000])
def test_chunked_gradient_equals_the_plain_one(chunk_rows):
    def gradients(form):
        def loss(text, image, scale):
            return 3 * contrastive_loss(text, image, scale, form=form, chunk_rows=chunk_rows)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(units(0), units(1), jnp.float32(3.0))

    for plain, chunked in zip(gradients("plain"), gradients("chunked"), strict=True):
        assert np.linalg.norm(plain - chunked) <= 1e-6 * np.linalg.norm(plain)


def test_gradient_of_the_temperature_agrees_with_finite_differences():
    text, image = units(0), units(1)
    gradient = jax.grad(lambda scale: contrastive_loss(text, image, scale, form="chunked", chunk_rows=6))(
        jnp.float32(2.0)
    )
    numeric = (by_definition(text, image, 2.0 + 1e-4) - by_definition(text, image, 2.0 - 1e-4)) / 2e-4
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5)


def test_chunked_form_never_holds_all_scores():
    rows, width, chunk = 2048, 16, 64

    def peak(form):
        loss = jax.grad(
            lambda text, image: contrastive_loss(text, image, jnp.float32(1.0), form=form, chunk_rows=chunk)
        )
        shape = jax.ShapeDtypeStruct((rows, width), jnp.float32)
        return jax.jit(loss).lower(shape, shape).compile().memory_analysis().temp_size_in_bytes

    scores = rows * rows * 4
    assert peak("plain") >= scores
    assert peak("chunked") <= scores / 4


def test_interleaved_parts_come_together_again():
    rows = jnp.arange(24).reshape(12, 2)
    parts = interleave(rows, 3)
    np.testing.assert_array_equal(parts[1], rows[1::3])
    np.testing.assert_array_equal(gather(parts), rows)


def test_mean_squared_error_is_a_mean_over_batch_and_width():
    student, teacher = np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([[0, 2], [3, 1], [5, 5]])
    assert mean_squared_error(student, teacher) == pytest.approx((1 + 9 + 1) / 6)


def test_half_precision_features_are_compared_in_float32():
    student = jnp.asarray([[256.0, 1.0]], jnp.bfloat16)
    assert mean_squared_error(student, jnp.zeros((1, 2), jnp.bfloat16)) == pytest.approx((65536 + 1) / 2)


def test_unknown_form_and_odd_chunks_are_refused():
    with pytest.raises(ValueError, match=r"'ring!'.*plain, chunked"):
        contrastive_loss(units(0), units(1), jnp.float32(1), form="ring!")
    with pytest.raises(ValueError, match="chunk_rows=5 does not divide the batch of 24"):
        contrastive_loss(units(0), units(1), jnp.float32(1), form="chunked", chunk_rows=5)
