"""Programs compiled for the machine that they were compiled on: they load at once, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.export
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jaxlib.version import __version__ as jaxlib_version

from altclip_jax.export.programs import Argument, Program, setting
from altclip_jax.machine import processor


def fingerprint() -> dict[str, str]:
    """Returns what must be equal where an executable is loaded."""
    device = jax.local_devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib_version,
        "platform": device.platform,
        "device": device.device_kind,
        "runtime": device.client.platform_version,
        "processor": processor(),
    }


def check_sizes(sizes: tuple[int, ...], limits: Mapping[str, tuple[int, int | None]]) -> dict[str, int]:
    """Returns {axis: size} of (texts, length) or (images,).

    Raises:
        ValueError: other numbers, or sizes that no program takes.
    """
    names = {1: ("images",), 2: ("texts", "length")}.get(len(sizes))
    if names is None:
        raise ValueError(f"An executable is for (texts, length) or for (images,), got {sizes}.")
    found = dict(zip(names, sizes, strict=True))
    for name, size in found.items():
        least, most = limits[name]
        if size < least or (most is not None and size > most):
            wanted = f"at least {least}" if most is None else f"from {least} to {most}"
            raise ValueError(f"An executable for {name}={size} is not possible: {name} must be {wanted}.")
    return found


def compile_program(
    program: Program, exported: jax.export.Exported, sizes: Mapping[str, int], *, inside: bool
) -> bytes:
    """Compiles an exported program for sizes, on this process' first device.

    Raises:
        ValueError: it was not exported for this platform.
    """
    from jax.experimental import serialize_executable

    here = jax.export.default_export_platform()
    if here not in exported.platforms:
        raise ValueError(
            f"An executable is compiled where it runs, which is {here} here, and platforms={list(exported.platforms)}:"
            f" add {here!r}."
        )
    abstract: Any = jax.ShapeDtypeStruct
    leaves = {} if inside else program.weights
    weights = {name: abstract(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    inputs = [abstract(_shape(given, sizes), np.dtype(given.dtype)) for given in program.inputs]
    with jax.default_device(jax.local_devices()[0]), _no_cache():
        lowered = jax.jit(exported.call).lower(weights, *inputs)
        data: bytes = serialize_executable.serialize(lowered.compile())[0]
    return data


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Compiles anew: what comes from a cache of compiled programs cannot be relied on to be written again."""
    with setting("jax_enable_compilation_cache", False):
        compilation_cache.reset_cache()  # jax asks for the setting once, before it first compiles
        try:
            yield
        finally:
            compilation_cache.reset_cache()


def _shape(given: Argument, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in given.shape)
