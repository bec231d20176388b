"""Counted arithmetic against a count by hand."""

import jax
import jax.numpy as jnp

from altclip_jax.training.flops import product_flops


def test_products_and_their_gradients_are_counted():
    left, right = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert product_flops(jnp.matmul, left, right) == 2 * 3 * 5 * 7
    both = jax.grad(lambda a, b: jnp.sum(a @ b), argnums=(0, 1))
    assert product_flops(both, left, right) == 3 * 2 * 3 * 5 * 7


def test_a_scan_counts_every_round_and_remat_counts_again():
    step = jnp.ones((4, 4))

    def scanned(x):
        return jax.lax.scan(lambda carry, _: (carry @ step, None), x, length=6)[0]

    assert product_flops(scanned, jnp.ones((2, 4))) == 6 * 2 * 2 * 4 * 4
    plain = product_flops(jax.grad(lambda x: jnp.sum(jnp.sin(x @ step))), step)
    again = product_flops(jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(x @ step)))), step)
    assert (plain, again) == (2 * 2 * 4**3, 3 * 2 * 4**3)


def test_a_convolution_counts_its_window():
    picture, kernel = jnp.ones((2, 3, 8, 8)), jnp.ones((6, 3, 4, 4))
    flops = product_flops(lambda a, b: jax.lax.conv_general_dilated(a, b, (4, 4), "VALID"), picture, kernel)
    assert flops == 2 * (2 * 6 * 2 * 2) * (3 * 4 * 4)
