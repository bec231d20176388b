"""A PyTorch state dict to the parameter tree and back, by the table of its family.

`expected` is the tree a model needs, as shapes and dtypes; `prefix` says where in a full model it is: "" if it has
that one's paths, "text_model/" or "vision_model/" for a tower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from altclip_jax.weights import rules
from altclip_jax.weights.sharded import read_sharded
from altclip_jax.weights.stored import CheckpointError, TensorInfo
from altclip_jax.weights.writers import TensorSource

Params = dict[str, Any]
_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {path: leaf} of a nested dict, paths joined with "/"."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Undoes `flatten`."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def params_from_tensors(
    infos: Mapping[str, TensorInfo],
    read: Callable[..., NDArray[Any]],
    expected: Mapping[str, Any],
    *,
    table: rules.RuleTable,
    prefix: str = "",
    dtype: DTypeLike = jnp.float32,
    subject: str = "checkpoint",
    shardings: Mapping[str, Any] | None = None,
) -> Params:
    """Builds the parameter tree, reading one tensor at a time.

    Args:
        infos: What the file holds, by its own names.
        read: Gives a tensor's data by that name; by a name and slices, a part of it.
        expected: The tree of the model: leaves with a shape. Tensors of a full model's other parts are left alone.
        table: The names of the file's family.
        prefix: Where in a full model `expected` is.
        dtype: Dtype of the parameters.
        subject: What the error message calls the file.
        shardings: Which device keeps which piece of each parameter; only what this process keeps is read. None: one
            device keeps all.

    Raises:
        CheckpointError: tensors are missing, unexpected, of a wrong shape or dtype, or given twice; all are named.
    """
    plan = plan_reading(infos, expected, table=table, prefix=prefix, subject=subject)
    target = np.dtype(dtype)
    if shardings is not None:
        shapes, places = flatten(expected), flatten(shardings)
        return unflatten(
            {
                path: read_sharded(
                    functools.partial(read, name), tuple(shapes[path].shape), transform, target, places[path]
                )
                for path, name, transform in plan
            }
        )
    # jax.device_put adopts an aligned host array on CPU, so that each tensor is held once
    return unflatten(
        {path: jax.device_put(rules.to_param(read(name), transform, target)) for path, name, transform in plan}
    )


def plan_reading(
    infos: Mapping[str, TensorInfo],
    expected: Mapping[str, Any],
    *,
    table: rules.RuleTable,
    prefix: str = "",
    subject: str = "checkpoint",
) -> list[tuple[str, str, rules.Transform]]:
    """Returns (path, name in the file, transform) for each parameter, in the order of the tree.

    Raises:
        CheckpointError: see `params_from_tensors`.
    """
    wanted = flatten(expected)
    parts = {_part(prefix + path) for path in wanted}
    found: dict[str, tuple[str, rules.Transform]] = {}
    faults: list[str] = []
    for name, info in infos.items():
        canonical = table.canonical_name(name)
        if table.is_ignored(canonical):
            continue
        rule = table.path_of(canonical)
        if rule is not None and _part(rule[0]) not in parts:
            continue  # another part of the full model
        path = "" if rule is None else rule[0].removeprefix(prefix)
        if rule is None or path not in wanted:
            faults.append(f"unexpected: {name} {info.shape}, which this model has no place for")
        elif path in found:
            faults.append(f"set twice: {found[path][0]} and {name} are the same parameter")
        else:
            found[path] = (name, rule[1])
            faults += _misfits(info, rules.torch_shape(tuple(wanted[path].shape), rule[1]))
    missing = [path for path in wanted if path not in found]
    faults += [f"missing: {_in_file(prefix + path, wanted[path], table)}" for path in missing]
    if faults:
        raise CheckpointError(f"{subject} does not fit the configuration", faults)
    return [(path, *found[path]) for path in wanted]


def tensor_sources(
    params: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    table: rules.RuleTable,
    prefix: str = "",
    dtype: DTypeLike | None = None,
) -> list[TensorSource]:
    """Returns the tensors of a state dict, each made when it is asked for; a tower's have the names it has alone.

    Raises:
        ValueError: the tree is not the one the model needs; all differences are named.
    """
    check_params(params, expected)
    return list(_sources(flatten(params), table, prefix, dtype))


def _sources(
    flat: Mapping[str, Any], table: rules.RuleTable, prefix: str, dtype: DTypeLike | None
) -> Iterator[TensorSource]:
    for path, leaf in flat.items():
        rule = table.name_of(prefix + path)
        if rule is None:
            raise ValueError(f"The parameter {prefix + path} has no rule in altclip_jax/weights/families.py.")
        name, transform = rule
        target = np.dtype(leaf.dtype if dtype is None else dtype)

        def load(leaf: Any = leaf, transform: rules.Transform = transform, target: Any = target) -> NDArray[Any]:
            return rules.from_param(np.asarray(leaf), transform, target)

        name = name.removeprefix(table.dropped.get(prefix, ""))
        yield TensorSource(name, rules.torch_shape(tuple(leaf.shape), transform), target, load)


def check_params(params: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ValueError naming every path that `params` lacks, has too many, or has in another shape."""
    have, want = flatten(params), flatten(expected)
    faults = [f"missing: {path} {tuple(want[path].shape)}" for path in want if path not in have]
    faults += [f"unexpected: {path} {np.shape(have[path])}" for path in have if path not in want]
    faults += [
        f"wrong shape: {path} is {np.shape(have[path])}, expected {tuple(want[path].shape)}"
        for path in want
        if path in have and np.shape(have[path]) != tuple(want[path].shape)
    ]
    if faults:
        raise ValueError("The parameters do not fit the model:\n  - " + "\n  - ".join(faults))


def _misfits(info: TensorInfo, shape: tuple[int, ...]) -> Iterable[str]:
    if info.shape != shape:
        yield f"wrong shape: {info.name} is {info.shape}, expected {shape}"
    if info.dtype.name not in _FLOATS:
        yield f"wrong dtype: {info.name} is {info.dtype.name}, expected one of {', '.join(sorted(_FLOATS))}"


def _part(path: str) -> str:
    return path.split("/", 1)[0]


def _in_file(path: str, leaf: Any, table: rules.RuleTable) -> str:
    name, transform = table.name_of(path) or (path, "same")
    return f"{name} {rules.torch_shape(tuple(leaf.shape), transform)}"
