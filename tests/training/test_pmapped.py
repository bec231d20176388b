"""The step under pmap is the step under jit: the same loss, parameters and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from altclip_jax.inference.pmapped import dealt, replicated, single
from altclip_jax.training.objectives import Contrastive, TeacherLearning
from altclip_jax.training.pmapped import make_pmap_step
from altclip_jax.training.state import initial_state, split
from altclip_jax.training.steps import StepSettings, make_train_step
from altclip_jax.weights.convert import flatten

PARTS = ("text_model", "text_projection", "logit_scale")
STEPS = 3


def both(model, params, batch, objective, settings, parts=PARTS):
    """Returns state and metrics after some steps under jit on one device, and under pmap on eight."""
    trained, locked = split(params, parts)
    optimizer = optax.sgd(0.1, momentum=0.9)  # which magnifies no rounding, as Adam does that of the keys' biases
    state = initial_state(trained, optimizer, averaged=settings.ema_decay is not None)
    alone, step = state, jax.jit(make_train_step(objective, optimizer, settings))
    spread, pmap_step = replicated(state), make_pmap_step(objective, optimizer, settings)
    for _ in range(STEPS):
        alone, metrics = step(alone, locked, {}, batch)
        spread, found = pmap_step(spread, replicated(locked), replicated({}), dealt(batch))
    for copies in jax.tree.leaves((spread, found)):
        assert len(copies) == 8
        assert all((np.asarray(copy) == np.asarray(copies[0])).all() for copy in copies)
    return (alone, metrics), (single(spread), single(found))


def assert_same(expected, found):
    """Norm of the difference over norm at most 2e-6, over parameters and moments of the optimizer."""
    for name in expected[1]:
        np.testing.assert_allclose(found[1][name], expected[1][name], rtol=5e-6, err_msg=name)
    assert int(found[0].step) == STEPS
    for left, right in ((expected[0].params, found[0].params), (expected[0].opt_state, found[0].opt_state)):
        leaves = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
        difference = sum(np.sum(np.square(np.float64(a) - np.float64(b))) for a, b in leaves)
        assert np.sqrt(difference / sum(np.sum(np.square(np.float64(a))) for a, _ in leaves)) <= 2e-6


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("plain", {"ema_decay": 0.9}),
        ("chunked", {"micro_batches": 2}),
        ("plain", {"accumulate": 2}),
        ("plain", {"dropout": True, "seed": 5}),
    ],
)
def test_contrastive_steps_are_those_of_jit(model, params, batch, form, settings):
    objective = Contrastive(model, form=form, chunk_rows=4)
    assert_same(*both(model, params, batch, objective, StepSettings(**settings)))


def test_teacher_learning_steps_are_those_of_jit(model, params, batch):
    target = np.random.default_rng(2).standard_normal((16, 16)).astype(np.float32)
    given = {**batch, "teacher_features": target}
    assert_same(*both(model, params, given, TeacherLearning(model), StepSettings(), parts=("text_model",)))


def test_an_update_that_is_not_finite_on_one_device_is_applied_on_none(model, params, batch):
    trained, locked = split(params, PARTS)
    optimizer = optax.sgd(0.1)
    step = make_pmap_step(Contrastive(model), optimizer, StepSettings())
    pixels = batch["pixel_values"].copy()
    pixels[3] = np.nan
    state, metrics = step(
        replicated(initial_state(trained, optimizer, averaged=False)),
        replicated(locked),
        {},
        dealt({**batch, "pixel_values": pixels}),
    )
    assert not np.asarray(metrics["finite"]).any()
    kept, before = flatten(single(state.params)), flatten(trained)
    assert all((np.asarray(kept[path]) == np.asarray(before[path])).all() for path in before)


def test_a_ring_is_refused(model):
    with pytest.raises(ValueError, match="'ring' goes around a mesh and cannot run under pmap"):
        make_pmap_step(Contrastive(model, form="ring"), optax.sgd(0.1), StepSettings())


def test_rows_that_cannot_be_dealt_are_refused():
    with pytest.raises(ValueError, match="10 rows cannot be dealt evenly to 8 devices"):
        dealt({"rows": jnp.zeros((10, 2))})
