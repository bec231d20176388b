"""A PyTorch state dict to the parameter tree and back, by the table of its family.

`expected` is the tree a model needs, as shapes and dtypes; `prefix` says where in a full model it is: "" if it has
that one's paths, "text_model/" or "vision_model/" for a tower.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding
from jax.typing import DTypeLike
from numpy.typing import NDArray

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.machine import aligned_empty
from altclip_jax.quantization.codes import READ_ELEMENTS, Read, quantize_tensor, slices
from altclip_jax.quantization.leaves import is_part, join_leaves, split_leaves
from altclip_jax.quantization.narrowing import NarrowingError, refuse_infinite
from altclip_jax.quantization.rules import Form
from altclip_jax.weights import rules
from altclip_jax.weights.safetensors_file import TensorSource
from altclip_jax.weights.stored_file import TensorInfo

Params = dict[str, Any]
Box = tuple[tuple[int, int], ...]  # for each axis, where a part of an array begins and ends
_TOGETHER_BYTES = 64 << 20  # pieces of a tensor that take no more are cut out of one reading
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
    forms: Mapping[str, Form] | None = None,
) -> Params:
    """Builds the parameter tree, reading one tensor at a time.

    Args:
        infos: What the file holds, by its own names.
        read: Gives a tensor's data by that name; by a name and slices, a part of it.
        expected: The tree of the model: leaves with a shape, quantized where the file is. Tensors of a full model's
            other parts are left alone.
        table: The names of the file's family.
        prefix: Where in a full model `expected` is.
        dtype: Dtype of the parameters; of those in few bits, that of the arrays that they give back.
        subject: What the error message calls the file.
        shardings: Which device keeps which piece of each parameter; only what this process keeps is read. None: one
            device keeps all.
        forms: By path, what is quantized while it is read: whole, for however many devices.

    Raises:
        CheckpointError: tensors are missing, unexpected, of a wrong shape or dtype, given twice, or hold numbers too
            large for the dtype; all are named.
    """
    wanted, forms = flatten(split_leaves(expected)), forms or {}
    places: dict[str, Any] = {} if shardings is None else flatten(split_leaves(shardings))
    made: Params = {}
    faults: list[str] = []
    for path, name, transform in match_names(infos, expected, table=table, prefix=prefix, subject=subject):
        one = functools.partial(read, name)
        target = np.dtype(wanted[path].dtype if is_part(path) else dtype)
        try:
            if path in forms:
                found = quantize_tensor(one, infos[name].shape, forms[path], f"{name} in {subject}")
                for part, array in found.items():
                    there = places.get(f"{path}/{part}")
                    made[f"{path}/{part}"] = _put(rules.to_param(array, transform, array.dtype), there)
            elif path in places:
                made[path] = _read_sharded(one, tuple(wanted[path].shape), transform, target, places[path])
            else:
                made[path] = _put(_convert(one, infos[name], transform, target))
        except NarrowingError as error:
            faults.append(f"{name} {error}")
    refuse_infinite(subject, faults)
    return join_leaves(unflatten(made), dtype)


def _put(array: NDArray[Any], sharding: Any = None) -> jax.Array:
    placed: jax.Array
    if sharding is None:
        # jax adopts an aligned host array on CPU, so that each tensor is held once
        placed = jax.device_put(array)
        return placed
    make: Any = jax.make_array_from_callback
    placed = make(array.shape, sharding, lambda index: array[index].copy())
    return placed


def _convert(read: Read, info: TensorInfo, transform: rules.Transform, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns a parameter in a dtype, in our layout.

    No more of it is held in the dtype of the file than a block of rows, the first axis in PyTorch's layout: a float32
    checkpoint becomes a bfloat16 model without ever being a float32 one.
    """
    if info.dtype == dtype or math.prod(info.shape) <= READ_ELEMENTS:
        return rules.to_param(read(), transform, dtype)
    out = aligned_empty(rules.param_shape(info.shape, transform), dtype)
    axis = rules.output_axis(transform)
    for rows in slices(info.shape[0], max(1, READ_ELEMENTS // math.prod(info.shape[1:]))):
        where = (*(slice(None) for _ in range(axis % out.ndim)), rows)
        out[where] = rules.to_param(read((rows,)), transform, dtype)
    return out


def _read_sharded(
    read: Callable[[tuple[slice, ...]], NDArray[Any]],
    shape: tuple[int, ...],
    transform: rules.Transform,
    dtype: np.dtype[Any],
    sharding: Sharding,
) -> Array:
    """Reads a parameter straight onto the devices that keep it; the host holds one piece at a time, or 64 MiB.

    Args:
        read: Gives a part of the tensor, in PyTorch's layout.
        shape: Shape of the parameter.
        transform: How it changes from PyTorch's layout.
        dtype: Dtype of the parameter.
        sharding: Which device keeps which piece. Only those of this process are read, each once.
    """
    owners: dict[Box, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        owners.setdefault(_box_of(index, shape), []).append(device)
    arrays: list[Array] = []
    for whole, pieces in _group(list(owners), dtype.itemsize):
        found = read(rules.torch_index(_slices_of(whole), transform))
        for piece in pieces:
            part: Any = (*rules.torch_index(_slices_of(piece, whole), transform), ...)  # which keeps a scalar an array
            made = rules.to_param(found[part], transform, dtype)
            arrays += [jax.device_put(made, device) for device in owners[piece]]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def _group(pieces: Sequence[Box], itemsize: int) -> list[tuple[Box, Sequence[Box]]]:
    """Returns what is read at a time, with the pieces in it.

    Neighbours share the rows of the file: read one by one, each would take as many system calls as all of them.
    """
    if not pieces:
        return []
    ranges = [[piece[axis] for piece in pieces] for axis in range(len(pieces[0]))]
    whole = tuple((min(begin for begin, _ in axis), max(end for _, end in axis)) for axis in ranges)
    size = _size_of(whole)
    if size == sum(map(_size_of, pieces)) and size * itemsize <= _TOGETHER_BYTES:
        return [(whole, pieces)]
    return [(piece, [piece]) for piece in pieces]


def _box_of(index: Sequence[slice], shape: Sequence[int]) -> Box:
    return tuple(wanted.indices(size)[:2] for wanted, size in zip(index, shape, strict=True))


def _slices_of(box: Box, within: Box | None = None) -> tuple[slice, ...]:
    within = within or ((0, 0),) * len(box)
    return tuple(slice(begin - first, end - first) for (begin, end), (first, _) in zip(box, within, strict=True))


def _size_of(box: Box) -> int:
    return math.prod(end - begin for begin, end in box)


def match_names(
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
    wanted = flatten(split_leaves(expected))
    towers = {_top(prefix + path) for path in wanted}
    found: dict[str, tuple[str, rules.Transform]] = {}
    faults: list[str] = []
    for name, info in infos.items():
        canonical = table.canonical_name(name)
        if table.is_ignored(canonical):
            continue
        rule = table.path_of(canonical)
        if rule is not None and _top(rule[0]) not in towers:
            continue  # another part of the full model
        path = "" if rule is None else rule[0].removeprefix(prefix)
        if rule is None or path not in wanted:
            faults.append(f"unexpected: {name} {info.shape}, which this model has no place for")
        elif path in found:
            faults.append(f"set twice: {found[path][0]} and {name} are the same parameter")
        else:
            found[path] = (name, rule[1])
            faults += _misfits(info, wanted[path], rule[1], is_part(path))
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
    return list(_sources(flatten(split_leaves(params)), table, prefix, dtype))


def quantize_tree(
    params: Mapping[str, Any], forms: Mapping[str, Form], *, table: rules.RuleTable, prefix: str = ""
) -> Params:
    """Returns a tree in which the parameters of `forms` are quantized, on one device.

    Raises:
        CheckpointError: parameters hold values that are not finite, or too large for their scales.
    """
    made: Params = {}
    faults: list[str] = []
    for path, leaf in flatten(params).items():
        if path not in forms:
            made[path] = leaf
            continue
        rule = table.name_of(prefix + path)
        assert rule is not None
        array = rules.from_param(np.asarray(leaf), rule[1], np.dtype(leaf.dtype))
        try:
            found = quantize_tensor(array.__getitem__, array.shape, forms[path], path)
        except NarrowingError as error:
            faults.append(f"{path} {error}")
            continue
        placed = {part: _put(rules.to_param(codes, rule[1], codes.dtype)) for part, codes in found.items()}
        made |= join_leaves({path: placed}, leaf.dtype)
    refuse_infinite("The quantized model", faults)
    return unflatten(made)


def _sources(
    flat: Mapping[str, Any], table: rules.RuleTable, prefix: str, dtype: DTypeLike | None
) -> Iterator[TensorSource]:
    for path, leaf in flat.items():
        rule = table.name_of(prefix + path)
        if rule is None:
            raise ValueError(f"The parameter {prefix + path} has no rule in altclip_jax/weights/families.py.")
        name, transform = rule
        target = np.dtype(leaf.dtype if dtype is None or is_part(path) else dtype)

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


def _misfits(info: TensorInfo, leaf: Any, transform: rules.Transform, exact: bool) -> Iterable[str]:
    shape = rules.torch_shape(tuple(leaf.shape), transform)
    if info.shape != shape:
        yield f"wrong shape: {info.name} is {info.shape}, expected {shape}"
    dtypes = [np.dtype(leaf.dtype).name] if exact else sorted(_FLOATS)
    if info.dtype.name not in dtypes:
        one_of = "" if exact else "one of "
        yield f"wrong dtype: {info.name} is {info.dtype.name}, expected {one_of}{', '.join(dtypes)}"


def _top(path: str) -> str:
    return path.split("/", 1)[0]


def _in_file(path: str, leaf: Any, table: rules.RuleTable) -> str:
    name, transform = table.name_of(path) or (path, "same")
    return f"{name} {rules.torch_shape(tuple(leaf.shape), transform)}"
