"""The update rule against optax's own whole optimizers, and what holds for single paths."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from altclip_jax.training.config import OptimizerSettings
from altclip_jax.training.optimizer import make_optimizer, make_schedule

PARAMS = {
    "text_model": {
        "layer_0": {"mlp": {"up": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}}},
        "token_embedding": {"embedding": jnp.ones((8, 4))},
    },
    "logit_scale": jnp.ones(()),
}


def settings(**changes):
    plain = {"learning_rate": 0.1, "weight_decay": 0.0, "clip_norm": None, "warmup_steps": 0, "schedule": "constant"}
    return OptimizerSettings(**{**plain, **changes})


def gradients(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), PARAMS)


def run(optimizer, steps=3, params=PARAMS):
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def same(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), left, right)


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        (
            {"name": "adamw", "weight_decay": 0.3},
            lambda mask: optax.adamw(0.1, 0.99, 0.999, 1e-8, weight_decay=0.3, mask=mask),
        ),
        ({"name": "adam"}, lambda mask: optax.adam(0.1, 0.99, 0.999)),
        ({"name": "sgd"}, lambda mask: optax.sgd(0.1, momentum=0.99)),
        ({"name": "lion", "weight_decay": 0.3}, lambda mask: optax.lion(0.1, 0.99, 0.999, weight_decay=0.3, mask=mask)),
        (
            {"name": "lamb", "weight_decay": 0.3},
            lambda mask: optax.lamb(0.1, 0.99, 0.999, 1e-8, weight_decay=0.3, mask=mask),
        ),
    ],
)
def test_each_name_is_the_optimizer_of_that_name(changes, whole):
    mask = jax.tree.map(lambda leaf: leaf.ndim >= 2, PARAMS)
    same(run(make_optimizer(settings(**changes), 10, PARAMS)), run(whole(mask)))


def test_muon_moves_the_kernels_of_layers_and_adam_the_rest():
    moved = run(make_optimizer(settings(name="muon"), 10, PARAMS))
    adam = run(make_optimizer(settings(name="adam"), 10, PARAMS))
    muon = run(optax.contrib.muon(0.1))
    layer = ("text_model", "layer_0", "mlp", "up")

    def at(tree, *path):
        for name in path:
            tree = tree[name]
        return tree

    same(at(moved, *layer, "kernel"), at(muon, *layer, "kernel"))
    same(at(moved, *layer, "bias"), at(adam, *layer, "bias"))
    same(moved["text_model"]["token_embedding"], adam["text_model"]["token_embedding"])


def test_adafactor_keeps_less_than_the_parameters():
    params = {"text_projection": {"kernel": jnp.ones((256, 512))}}
    state = make_optimizer(settings(name="adafactor"), 10, params).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 2000


def test_decay_leaves_vectors_alone_and_a_rule_decides_otherwise():
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    rules = ({"match": ".*token_embedding.*", "decay": False}, {"match": ".*bias", "decay": True})
    for given, decayed in (((), {"kernel", "embedding"}), (rules, {"kernel", "bias"})):
        optimizer = make_optimizer(settings(name="sgd", weight_decay=0.5, rules=given), 10, PARAMS)
        updates, _ = optimizer.update(still, optimizer.init(PARAMS), PARAMS)
        flat = jax.tree_util.tree_flatten_with_path(updates)[0]
        assert {path[-1].key for path, leaf in flat if np.any(leaf)} == decayed


def test_the_first_rule_that_matches_sets_the_learning_rate():
    rules = ({"match": ".*embedding", "factor": 8}, {"match": ".*", "factor": 0.5})
    moved = run(make_optimizer(settings(rules=rules), 10, PARAMS), steps=1)
    plain = run(make_optimizer(settings(), 10, PARAMS), steps=1)
    changes = jax.tree.map(lambda a, b, c: (a - c) / (b - c), moved, plain, PARAMS)
    np.testing.assert_allclose(changes["text_model"]["token_embedding"]["embedding"], 8, rtol=1e-5)
    np.testing.assert_allclose(changes["logit_scale"], 0.5, rtol=1e-5)


def test_a_rule_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"match no trained parameter: 'vision_model/.*'"):
        make_optimizer(settings(rules=({"match": "vision_model/.*"},)), 10, PARAMS)


def test_the_whole_gradient_is_clipped():
    optimizer = make_optimizer(settings(name="sgd", betas=(0.0, 0.0), clip_norm=1e-3), 10, PARAMS)
    updates, _ = optimizer.update(gradients(0), optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.1 * 1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "half", "last"), [("constant", 1.0, 1.0), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)]
)
def test_warm_up_then_the_schedule(schedule, half, last):
    rate = make_schedule(settings(learning_rate=2.0, warmup_steps=10, schedule=schedule, final_factor=0.1), 110)
    rates = [float(rate(step)) / 2 for step in (0, 4, 9, 59, 109)]
    np.testing.assert_allclose(rates, [0.1, 0.5, 1.0, half, last], atol=1e-2)


def test_without_warm_up_the_first_step_has_the_whole_rate():
    rate = make_schedule(settings(learning_rate=2.0, schedule="cosine"), 100)
    assert float(rate(0)) == pytest.approx(2.0)
