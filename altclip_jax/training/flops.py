"""How much arithmetic a step is, and how much of it this machine could do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from altclip_jax.training.objectives import Batch, Objective
from altclip_jax.training.steps import StepSettings, value_and_gradient
from altclip_jax.weights.convert import Params


def model_flops(objective: Objective, params: Params, locked: Params, helper: Params, batch: Params) -> float:
    """Returns the operations of the products of a whole step with nothing computed twice, on shapes or arrays."""

    def gradient(params: Params, locked: Params, helper: Params, batch: Batch) -> Any:
        return value_and_gradient(objective.plain(), StepSettings(), params, locked, helper, batch, None)

    return product_flops(gradient, params, locked, helper, batch)


def product_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns the floating-point operations of all matrix products and convolutions of a call, on abstract arguments.

    A product of (m, k) and (k, n) counts 2 m k n. What is computed a second time to save memory counts again, so give
    the plain form of a function to get the model's own number.
    """
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def measured_peak(dtype: DTypeLike, devices: int, seconds: float = 0.5) -> float:
    """Returns the operations per second that `devices` devices like the first reach on large square products."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    # virtual devices of a CPU share its cores
    return 2 * size**3 / best * (1 if jax.default_backend() == "cpu" else devices)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, settings = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = settings["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, settings["dimension_numbers"]
            outputs = kernel[numbers.rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
        else:
            times = settings["length"] if name == "scan" else 1
            total += times * sum(_flops(inner) for inner in _inner(settings))
    return total


def _inner(settings: dict[str, Any]) -> Iterator[Any]:
    for value in settings.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
