"""How modules get their parameters, which may be stored in few bits: as arrays, made where they are used.

A layer asks for its kernel inside jit, so that at any time the arrays of few layers are there; in a scan over layers,
those of one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from altclip_jax.quantization.leaves import QuantizedArray, as_array


def stored_param(module: nn.Module, name: str, init: Any, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """What `module.param` gives, or a quantized leaf as it is.

    Raises:
        ValueError: the leaf is that of another shape.
    """
    found: Any = module.get_variable("params", name)
    if not isinstance(found, QuantizedArray):
        return module.param(name, init, shape, dtype)
    if found.shape != shape:
        path = "/".join((*module.path, name))
        raise ValueError(f"The quantized parameter {path} has the shape {found.shape}, expected {shape}.")
    return found


class Dense(nn.Module):
    """A linear layer, as nn.Dense is, whose kernel may be stored in few bits."""

    features: int
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "... embed"]) -> Float[Array, "... features"]:
        """Applies the layer along the last axis, in `dtype`."""
        shape = (inputs.shape[-1], self.features)
        kernel = as_array(_after(inputs, stored_param(self, "kernel", self.kernel_init, shape, self.param_dtype)))
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
        inputs, kernel, bias = nn.dtypes.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        outputs: Array = lax.dot_general(inputs, kernel, (((inputs.ndim - 1,), (0,)), ((), ())))
        return outputs if bias is None else outputs + bias.reshape((1,) * (outputs.ndim - 1) + (-1,))


def _after(inputs: Array, kernel: Any) -> Any:
    """A kernel that is there no sooner than the inputs of its layer, where it is stored narrower than float32.

    On CPUs XLA orders work for concurrency, and would make the float32 arrays of all layers at once: those of eight
    layers took 8 times the memory of one, and with this once. It drops optimization barriers before it orders, so what
    is stored gets a zero that the inputs decide.
    """
    if not inputs.size or (not isinstance(kernel, QuantizedArray) and np.dtype(kernel.dtype).itemsize >= 4):
        return kernel

    def waiting(stored: Array, first: Array) -> Array:
        never = (first != first) & (first == first)
        return jnp.where(never, jnp.zeros((), stored.dtype), stored)

    def made(stored: Array) -> Array:
        first = inputs[(0,) * inputs.ndim]
        found: Array = lax.platform_dependent(stored, first, cpu=waiting, default=lambda stored, first: stored)
        return found

    return dataclasses.replace(kernel, codes=made(kernel.codes)) if isinstance(kernel, QuantizedArray) else made(kernel)
