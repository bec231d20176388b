"""One step: every way to the gradient gives the same one, on any mesh; and what must not happen does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from altclip_jax import parallel
from altclip_jax.model.two_towers import symmetric_cross_entropy
from altclip_jax.training.flops import product_flops
from altclip_jax.training.objectives import Contrastive, TeacherLearning, dropout_rates
from altclip_jax.training.state import initial_state, merge, split
from altclip_jax.training.steps import StepSettings, make_train_step, row_keys, value_and_gradient
from altclip_jax.weights.convert import flatten

EVERYTHING = ("text_model", "vision_model", "text_projection", "visual_projection", "logit_scale")
# whose true gradient is zero: softmax does not change when all scores of a query do
NO_GRADIENT = ("attention/key/bias",)


def distance(left, right):
    """Norm of the difference over the norm, over the whole tree but for what has no gradient."""
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    kept = [path for path in left if not path.endswith(NO_GRADIENT)]
    for path in left.keys() - set(kept):
        assert np.abs(left[path]).max() < 1e-6
        assert np.abs(right[path]).max() < 1e-6
    difference = sum(np.sum(np.square(np.float64(left[path]) - np.float64(right[path]))) for path in kept)
    return np.sqrt(difference / sum(np.sum(np.square(np.float64(left[path]))) for path in kept))


@functools.cache
def gradient_function(objective, settings):
    def function(params, locked, batch, keys):
        return value_and_gradient(objective, settings, params, locked, {}, batch, keys)

    return jax.jit(function)


def by_definition(model, params, batch):
    def loss(params):
        return model.apply({"params": params}, **batch, return_loss=True).loss

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("plain", {}),
        ("chunked", {}),
        ("plain", {"scan_layers": False}),
        ("plain", {"micro_batches": 4}),
        ("chunked", {"micro_batches": 8}),
        ("plain", {"micro_batches": 16}),
    ],
)
def test_every_way_to_the_contrastive_gradient_is_that_of_the_whole_batch(model, params, batch, form, settings):
    value, gradient = by_definition(model, params, batch)
    objective = Contrastive(model, form=form, chunk_rows=4)
    (loss, metrics), found = gradient_function(objective, StepSettings(**settings))(params, {}, batch, None)
    assert float(loss) == pytest.approx(float(value), rel=1e-6)
    assert float(metrics["scale"]) == pytest.approx(np.exp(2.5), rel=1e-6)
    assert distance(gradient, found) <= 2e-6


@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize(("form", "settings"), [("chunked", {}), ("ring", {"micro_batches": 2})])
def test_any_mesh_gives_the_gradient_of_one_device(model, params, batch, axes, form, settings):
    mesh = parallel.make_mesh(**axes)
    objective = Contrastive(model, form=form, chunk_rows=8, mesh=mesh)
    _, expected = gradient_function(Contrastive(model), StepSettings())(params, {}, batch, None)
    placed = jax.device_put(params, parallel.param_shardings(mesh, params))
    gather = functools.partial(parallel.gathered, mesh)
    groups = parallel.batch_devices(mesh)
    (_, _), found = gradient_function(objective, StepSettings(gather=gather, groups=groups, **settings))(
        placed, {}, parallel.place_batch(mesh, batch, 16, np.arange(16)), None
    )
    assert distance(expected, found) <= 2e-6


def test_gradient_caching_drops_what_the_plain_gradient_drops(model, params, batch):
    """The same keys in both passes: without dropout the two would agree whatever the keys."""
    settings = StepSettings(dropout=True)
    keys = row_keys(settings, jnp.int32(3), 16)
    _, plain = gradient_function(Contrastive(model), settings)(params, {}, batch, keys)
    _, cached = gradient_function(Contrastive(model), StepSettings(micro_batches=4))(params, {}, batch, keys)
    _, without = gradient_function(Contrastive(model), settings)(params, {}, batch, None)
    assert distance(plain, cached) <= 2e-6
    assert distance(plain, without) > 0.01


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_dropout_is_a_function_of_seed_step_and_row_on_any_mesh(model, params, batch, axes):
    objective, settings = Contrastive(model), StepSettings(seed=7, dropout=True)

    @functools.partial(jax.jit, static_argnames="gather")
    def features(params, batch, step, gather=lambda params: params):
        return objective.encode(gather(params), {}, batch, row_keys(settings, step, 16))

    alone = features(params, batch, jnp.int32(5))
    mesh = parallel.make_mesh(**axes)
    placed = jax.device_put(params, parallel.param_shardings(mesh, params))
    gather = functools.partial(parallel.gathered, mesh)
    sharded = features(placed, parallel.place_batch(mesh, batch, 16, np.arange(16)), jnp.int32(5), gather=gather)
    for name in ("text", "image"):
        np.testing.assert_allclose(alone[name], sharded[name], atol=2e-6)
        assert np.abs(alone[name] - features(params, batch, jnp.int32(6))[name]).max() > 0.01
    twice = {name: np.concatenate([rows[:1]] * 16) for name, rows in batch.items()}
    same_row = features(params, twice, jnp.int32(5))["text"]
    assert np.abs(same_row[0] - same_row[1]).max() > 0.01  # rows differ in what they drop


def test_a_locked_image_tower_costs_no_backward_pass_and_no_optimizer_memory(model, params, batch):
    trained, locked = split(params, ("text_model", "text_projection", "logit_scale"))
    objective, optimizer = Contrastive(model), optax.adam(1e-3)
    state = initial_state(trained, optimizer, averaged=False)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in jax.tree.leaves(trained) if leaf.ndim)

    def image_only(params, batch):
        return objective.images(params, batch)

    def gradient(trained, locked, batch):
        return value_and_gradient(objective, StepSettings(), trained, locked, {}, batch, None)

    def features_given(trained, locked, batch):
        given = {**batch, "image_features": jnp.ones((16, 16))}
        return value_and_gradient(objective, StepSettings(), trained, locked, {}, given, None)

    forward = product_flops(image_only, params, batch)
    difference = product_flops(gradient, trained, locked, batch) - product_flops(features_given, trained, locked, batch)
    assert difference == forward - 2 * 16**3  # the projection is in both


def test_stored_image_features_give_the_same_gradient(model, params, batch):
    trained, locked = split(params, ("text_model", "text_projection", "logit_scale"))
    pooled = model.apply(
        {"params": params}, batch["pixel_values"], method=lambda model, x: model.vision_model(x).pooler_output
    )
    stored = {name: rows for name, rows in batch.items() if name != "pixel_values"} | {"image_features": pooled}
    function = gradient_function(Contrastive(model), StepSettings())
    assert distance(function(trained, locked, batch, None)[1], function(trained, locked, stored, None)[1]) <= 2e-6


def test_accumulated_gradient_is_the_mean_of_those_of_the_parts(model, params, batch):
    objective = Contrastive(model)
    _, found = gradient_function(objective, StepSettings(accumulate=2))(params, {}, batch, None)
    parts = [{name: rows[part::2] for name, rows in batch.items()} for part in range(2)]
    alone = [gradient_function(objective, StepSettings())(params, {}, part, None)[1] for part in parts]
    assert distance(jax.tree.map(lambda a, b: (a + b) / 2, *alone), found) <= 2e-6


@pytest.mark.parametrize("settings", [{}, {"micro_batches": 4}, {"accumulate": 4}])
def test_teacher_learning_is_the_mean_squared_error_of_the_pooled_states(model, params, batch, settings):
    target = np.random.default_rng(2).standard_normal((16, 16)).astype(np.float32)
    trained, locked = split(params, ("text_model",))

    def loss(text):
        whole = {**params, "text_model": text}
        states = model.apply(
            {"params": whole},
            batch["input_ids"],
            batch["attention_mask"],
            method=lambda model, ids, mask: model.text_model(ids, mask).pooler_output,
        )
        return jnp.mean((states - target) ** 2)

    value, gradient = jax.value_and_grad(loss)(params["text_model"])
    given = {**batch, "teacher_features": target}
    (found, _), ours = gradient_function(TeacherLearning(model), StepSettings(**settings))(trained, locked, given, None)
    assert float(found) == pytest.approx(float(value), rel=1e-6)
    assert distance({"text_model": gradient}, ours) <= 2e-6


def test_projected_states_are_compared_after_the_text_projection(model, params, batch):
    objective = TeacherLearning(model, target="projected")
    features = objective.encode(params, {}, {**batch, "teacher_features": jnp.zeros((16, 16))}, None)
    expected = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"], method="get_text_features")
    np.testing.assert_allclose(features["student"], expected, atol=1e-5)


def stepped(model, params, batch, settings=None, steps=3, optimizer=None, parts=("text_model", "logit_scale")):
    trained, locked = split(params, parts)
    optimizer = optax.adam(1e-2) if optimizer is None else optimizer
    settings = StepSettings() if settings is None else settings
    state = initial_state(trained, optimizer, averaged=settings.ema_decay is not None)
    step = jax.jit(make_train_step(Contrastive(model), optimizer, settings))
    history = []
    for _ in range(steps):
        state, metrics = step(state, locked, {}, batch)
        history.append(metrics)
    return state, history


def test_steps_lower_the_loss_and_locked_parts_stay(model, params, batch):
    state, history = stepped(model, params, batch, steps=20)
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    assert int(state.step) == 20
    assert bool(state.healthy)
    assert "vision_model" not in state.params
    outputs = model.apply({"params": merge(state.params, split(params, ("text_model", "logit_scale"))[1])}, **batch)
    assert symmetric_cross_entropy(outputs.logits_per_text) < history[0]["loss"] - 0.1


def test_the_temperature_stops_at_its_limit(model, params, batch):
    state, _ = stepped(model, params, batch, StepSettings(max_log_scale=2.4), optimizer=optax.sgd(0.0))
    assert float(state.params["logit_scale"]) == pytest.approx(2.4)
    frozen, _ = stepped(model, params, batch, optimizer=optax.sgd(0.1), parts=("text_model",))
    assert "logit_scale" not in frozen.params


def test_an_update_that_is_not_finite_is_not_applied_nor_any_after_it(model, params, batch):
    trained, locked = split(params, ("text_model", "logit_scale"))
    optimizer = optax.adam(1e-3)
    step = jax.jit(make_train_step(Contrastive(model), optimizer, StepSettings(ema_decay=0.9)))
    before, _ = step(initial_state(trained, optimizer, averaged=True), locked, {}, batch)
    broken = {**batch, "pixel_values": np.full_like(batch["pixel_values"], np.nan)}
    after, metrics = step(before, locked, {}, broken)
    assert not metrics["finite"]
    later, metrics = step(after, locked, {}, batch)
    assert not metrics["finite"]
    assert not later.healthy
    jax.tree.map(np.testing.assert_array_equal, later.replace(healthy=before.healthy), before)


def test_an_update_that_only_the_optimizer_made_infinite_says_that_its_state_is_not_to_be_used(model, params, batch):
    trained, locked = split(params, ("text_model", "logit_scale"))
    optimizer = optax.chain(optax.scale(1e30), optax.scale(1e30))
    step = jax.jit(make_train_step(Contrastive(model), optimizer, StepSettings()))
    broken, metrics = step(initial_state(trained, optimizer, averaged=False), locked, {}, batch)
    assert np.isfinite(metrics["gradient_norm"])
    assert not metrics["finite"]
    assert not broken.healthy
    after, _ = step(broken, locked, {}, batch)
    jax.tree.map(np.testing.assert_array_equal, after, broken)


@pytest.mark.parametrize(("decay", "first"), [(0.05, 0.05), (0.999, 0.1)])
def test_the_average_follows_the_parameters_and_at_first_forgets_faster(model, params, batch, decay, first):
    """After the first update its decay is at most (1 + 0) / (10 + 0)."""
    state, _ = stepped(model, params, batch, StepSettings(ema_decay=decay), steps=1)
    start = split(params, ("text_model", "logit_scale"))[0]
    expected = jax.tree.map(lambda a, b: first * a + (1 - first) * b, start, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, state.average)


def test_dropout_rates_are_those_of_both_towers(model):
    assert dropout_rates(model) == [0.1, 0.1, 0.1]
