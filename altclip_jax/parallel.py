"""Where arrays live: a mesh of devices, and for every parameter the axes along which it is cut.

Rules are data: ordered, whole paths, the first match decides, and a parameter without a rule is an error. Axes are
Auto: jax's present default, Explicit, refuses embedding lookups and the comparison of sharded batches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from altclip_jax.model.stacked import STACK
from altclip_jax.weights.convert import Params, flatten, unflatten

AXES = ("data", "fsdp", "tensor")
Axes = tuple[str | tuple[str, ...] | None, ...]  # for each dimension, the mesh axes that cut it
BATCH: Axes = (("data", "fsdp"),)
WHOLE: Axes = ()

# Kernels are (in, out). "tensor" cuts heads and MLP neurons, "fsdp" what is left; small vectors are on every device.
PARTITION_RULES: tuple[tuple[str, Axes], ...] = (
    (r".*/attention/(query|key|value)/kernel", ("fsdp", "tensor")),
    (r".*/attention/(query|key|value)/bias", ("tensor",)),
    (r".*/attention/out/kernel", ("tensor", "fsdp")),
    (r".*/attention/distance_embedding/embedding", WHOLE),
    (r".*/mlp/up/kernel", ("fsdp", "tensor")),
    (r".*/mlp/up/bias", ("tensor",)),
    (r".*/mlp/down/kernel", ("tensor", "fsdp")),
    (r".*/(attention/out|mlp/down|transformation)/bias", WHOLE),
    (r".*/(token|position|token_type)_embedding/embedding", (None, "fsdp")),
    (r"(text_model/transformation|text_projection|visual_projection)/kernel", ("fsdp", "tensor")),
    (r"vision_model/patch_embedding/kernel", (None, None, None, "fsdp")),
    (r".*(_norm|/pre_norm|/post_norm)/(scale|bias)", WHOLE),
    (r"vision_model/class_embedding|logit_scale", WHOLE),
)


def make_mesh(
    *, data: int | None = None, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arranges devices along ("data", "fsdp", "tensor"); `data` None takes all that the others leave.

    Raises:
        ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if data is None:
        data = max(len(devices) // (fsdp * tensor), 1)
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"A mesh of data {data} x fsdp {fsdp} x tensor {tensor} needs {data * fsdp * tensor} devices and there are"
            f" {len(devices)}: choose axes that multiply to that."
        )
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=kinds, devices=devices)


def local_mesh(fsdp: int = 1, tensor: int = 1) -> Mesh | None:
    """Returns a mesh of this process' devices, or None if it is one.

    Raises:
        ValueError: the axes do not fit the devices.
    """
    devices = jax.local_devices()
    return None if (len(devices), fsdp, tensor) == (1, 1, 1) else make_mesh(fsdp=fsdp, tensor=tensor, devices=devices)


def sharding(mesh: Mesh, axes: Axes = WHOLE) -> NamedSharding:
    """Returns the placement of an array whose dimensions are cut along `axes`; without axes every device has it all."""
    spec: Any = PartitionSpec
    return NamedSharding(mesh, spec(*axes))


def param_shardings(mesh: Mesh, params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the placement of each parameter of a tree of arrays or shapes.

    An axis that does not divide a dimension leaves it whole. The parts of a parameter in few bits, which have its
    axes, are each cut by its rule.

    Args:
        mesh: The devices.
        params: The tree.
        prefix: Which part of a full model it is, such as "text_model/" for a tower's.

    Raises:
        ValueError: parameters without a rule; all are named.
    """
    flat = flatten(params)
    missing = [prefix + path for path in flat if axes_of(prefix + path) is None]
    if missing:
        raise ValueError(f"No rule in altclip_jax/parallel.py says how to cut {', '.join(missing)}.")

    def places(path: str, leaf: Any) -> Any:
        rule = axes_of(prefix + path)
        return jax.tree.map(lambda part: sharding(mesh, _fitted(mesh, rule, part.shape)), leaf)

    return unflatten({path: places(path, leaf) for path, leaf in flat.items()})


def placed(shapes: Any, shardings: Any) -> Any:
    """Returns shapes that also say where their arrays are, for what restores arrays or compiles for them."""
    abstract: Any = jax.ShapeDtypeStruct
    return jax.tree.map(lambda leaf, place: abstract(leaf.shape, leaf.dtype, sharding=place), shapes, shardings)


def gathered(mesh: Mesh, params: Params, prefix: str = "") -> Params:
    """Inside jit: the parameters as computation wants them, each whole along "fsdp" and cut along "tensor" alone.

    This is what makes "fsdp" a way to store parameters and no way to compute with them. Left to itself the partitioner
    of jax 0.10.2 cuts activations along it too and, on a mesh of data 2 x fsdp 2 x tensor 2, gave a wrong gradient
    (relative errors of 4e-3 to 1.2 were seen).
    """
    if mesh.shape["fsdp"] == 1:
        return params

    constrain: Any = jax.lax.with_sharding_constraint

    def whole(path: str, leaf: Any) -> Any:
        rule = axes_of(prefix + path)
        if f"/{STACK}/" in f"/{path}":
            rule = (None, *(rule or ()))

        def part(array: Any) -> Any:
            axes = tuple(None if axis == "fsdp" else axis for axis in _fitted(mesh, rule, array.shape))
            return constrain(array, sharding(mesh, axes))

        return jax.tree.map(part, leaf)

    return unflatten({path: whole(path, leaf) for path, leaf in flatten(params).items()})


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns the placement of each leaf of a train state: that of its parameter, wherever its path ends in one's."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        # an optimizer of several groups puts the group's name before the path
        candidates = (axes_of("/".join(names[start:])) for start in range(min(len(names), 2)))
        axes = next((found for found in candidates if found is not None), None)
        # an optimizer may keep less of a parameter than its shape, such as Adafactor's rows and columns
        fits = axes is not None and len(axes) <= np.ndim(leaf)
        return sharding(mesh, _fitted(mesh, axes, np.shape(leaf)) if fits else WHOLE)

    return jax.tree_util.tree_map_with_path(place, state)


def axes_of(path: str) -> Axes | None:
    """Returns the axes along which the rules cut a parameter, or None without a rule."""
    return next((axes for pattern, axes in PARTITION_RULES if re.fullmatch(pattern, path)), None)


def batch_devices(mesh: Mesh) -> int:
    """Returns over how many devices the rows of a batch are dealt."""
    devices: int = mesh.shape["data"] * mesh.shape["fsdp"]
    return devices


class RowShare(NamedTuple):
    """Rows of a global batch that the same processes hold, in order."""

    rows: Int[np.ndarray, " share"]
    holders: tuple[int, ...]  # the processes, in order


def row_shares(mesh: Mesh, rows: int) -> tuple[RowShare, ...]:
    """Cuts the rows of a global batch by who holds them, the same in all processes.

    Who shares out work between processes does it by these and never by the number of a process: where "tensor" goes
    across processes, some hold the same rows and must bring the same to them.

    Raises:
        ValueError: the batch cannot be dealt evenly over the devices.
    """
    each = _rows_of_a_device(mesh, rows)
    of_blocks = [
        tuple(sorted({device.process_index for device in block}))
        for block in mesh.devices.reshape(batch_devices(mesh), -1)
    ]
    holders = np.repeat(np.arange(len(of_blocks)), each)  # the block of each row
    return tuple(
        RowShare(
            np.flatnonzero(np.isin(holders, [place for place, own in enumerate(of_blocks) if own == group])), group
        )
        for group in dict.fromkeys(of_blocks)
    )


def leads(mesh: Mesh, rows: int) -> bool:
    """Returns whether this process holds rows of a global batch that none before it holds."""
    return any(share.holders[0] == jax.process_index() for share in row_shares(mesh, rows))


def local_rows(mesh: Mesh, rows: int) -> Int[np.ndarray, " mine"]:
    """Returns which rows of a global batch the devices of this process hold, in order.

    Raises:
        ValueError: the batch cannot be dealt evenly over the devices.
    """
    _rows_of_a_device(mesh, rows)
    everything = np.arange(rows)
    pieces = sharding(mesh, BATCH).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([everything[piece] for piece in pieces if piece is not None]))


def place_batch(
    mesh: Mesh, arrays: Mapping[str, np.ndarray], rows: int, mine: Int[np.ndarray, " mine"]
) -> dict[str, jax.Array]:
    """Puts the rows that this process loaded where they belong in the global batch.

    Args:
        mesh: The devices.
        arrays: Row by row those of `mine`.
        rows: Of the global batch.
        mine: From `local_rows`.
    """
    make: Any = jax.make_array_from_callback
    places = sharding(mesh, BATCH)

    def place(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            first = int(np.searchsorted(mine, start))
            piece: np.ndarray = array[first : first + stop - start]
            return piece

        placed: jax.Array = make((rows, *array.shape[1:]), places, part)
        return placed

    return {name: place(array) for name, array in arrays.items()}


def _rows_of_a_device(mesh: Mesh, rows: int) -> int:
    devices = batch_devices(mesh)
    if rows % devices:
        raise ValueError(f"A batch of {rows} rows cannot be dealt evenly over data x fsdp = {devices} devices.")
    return rows // devices


def _fitted(mesh: Mesh, axes: Axes | None, shape: Sequence[int]) -> Axes:
    """Returns the axes but for those that do not divide their dimension."""
    pairs = zip(axes or (), shape, strict=False)
    return tuple(axis if isinstance(axis, str) and size % mesh.shape[axis] == 0 else None for axis, size in pairs)
