"""How parameters change: schedule, optimizer, and what holds for single paths.

Everything is optax's; this chains it by the settings of a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from altclip_jax.training.config import OptimizerSettings, PathRule
from altclip_jax.weights.convert import Params, flatten, unflatten

# The matrices inside the layers, which Muon is made for; embeddings and projections are Adam's.
_LAYER_KERNEL = re.compile(r".*layer_\d+/.*/kernel")


def make_schedule(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Returns the learning rate by step: linear warm-up that reaches it at step `warmup_steps` - 1, then the schedule.

    The first step already has 1/warmup_steps of the rate; the last has `final_factor` of it, unless it is constant.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    after = max(steps - max(warmup, 1), 1)
    decay = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, after, alpha=settings.final_factor),
        "linear": optax.linear_schedule(peak, peak * settings.final_factor, after),
    }[settings.schedule]
    if warmup <= 1:
        return decay
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), decay], [warmup - 1])


def make_optimizer(settings: OptimizerSettings, steps: int, params: Params) -> optax.GradientTransformation:
    """Returns the whole update rule for `params`, of which only paths and shapes are looked at.

    Clipping, then the optimizer's own scaling, then decoupled weight decay, then the learning rate with its factors.

    Raises:
        ValueError: a rule matches no parameter.
    """
    rules = _rules(settings, params)
    factors = {path: 1.0 if rule is None else rule.factor for path, rule in rules.items()}
    decays = unflatten({path: _decays(leaf, rules[path]) for path, leaf in flatten(params).items()})
    parts = [] if settings.clip_norm is None else [optax.clip_by_global_norm(settings.clip_norm)]
    parts.append(_SCALINGS[settings.name](settings, params))
    if settings.weight_decay:
        parts.append(optax.add_decayed_weights(settings.weight_decay, mask=decays))
    if settings.name == "lamb":
        parts.append(optax.scale_by_trust_ratio())
    if set(factors.values()) != {1.0}:
        parts.append(_scale_by_factors(unflatten(factors)))
    parts.append(optax.scale_by_learning_rate(make_schedule(settings, steps)))
    return optax.chain(*parts)


def _rules(settings: OptimizerSettings, params: Params) -> dict[str, PathRule | None]:
    paths = list(flatten(params))
    idle = [rule.match for rule in settings.rules if not any(re.fullmatch(rule.match, path) for path in paths)]
    if idle:
        raise ValueError(f"optimizer.rules that match no trained parameter: {', '.join(map(repr, idle))}.")
    return {path: next((rule for rule in settings.rules if re.fullmatch(rule.match, path)), None) for path in paths}


def _decays(leaf: Any, rule: PathRule | None) -> bool:
    return leaf.ndim >= 2 if rule is None or rule.decay is None else rule.decay


def _adam(settings: OptimizerSettings, params: Params) -> optax.GradientTransformation:
    return optax.scale_by_adam(*settings.betas, settings.eps)


def _muon(settings: OptimizerSettings, params: Params) -> optax.GradientTransformation:
    labels = {path: "muon" if _LAYER_KERNEL.fullmatch(path) else "adam" for path in flatten(params)}
    # the whole of contrib.muon, which also scales by shape, turned back into a direction to move against
    muon = optax.chain(contrib.muon(learning_rate=1.0), optax.scale(-1.0))
    return optax.partition({"muon": muon, "adam": _adam(settings, params)}, unflatten(labels))


_SCALINGS: dict[str, Callable[[OptimizerSettings, Params], optax.GradientTransformation]] = {
    "adamw": _adam,
    "adam": _adam,
    "lamb": _adam,
    "sgd": lambda settings, params: optax.trace(decay=settings.betas[0]),
    "lion": lambda settings, params: optax.scale_by_lion(*settings.betas),
    "adafactor": lambda settings, params: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
    "muon": _muon,
}


def _scale_by_factors(factors: Params) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda update, factor: update * jnp.asarray(factor, update.dtype), updates, factors
        )
    )
