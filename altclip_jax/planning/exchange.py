"""What a compiled program exchanges between devices: by kind, and by the axes of the mesh along which it goes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from altclip_jax.planning.program import Placed, Program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)


class Exchange(NamedTuple):
    """What one device does of one kind along the same axes."""

    kind: str
    axes: tuple[str, ...]  # those along which the devices of a group differ; empty: a group is one device
    calls: int
    bytes: int  # that it gives into them
    sent: float  # bytes that it sends, by the best known algorithm on a ring; of a permute, the mean over devices


def exchanges(program: Program, mesh: Mapping[str, int]) -> list[Exchange]:
    """Returns what a program exchanges, the largest first.

    Args:
        program: It.
        mesh: Sizes by axis, in the order in which devices are numbered.
    """
    total: dict[tuple[str, tuple[str, ...]], Exchange] = {}
    seen: set[tuple[str, str]] = set()
    for placed in program.run():
        kind = placed.instruction.opcode.removesuffix("-start")
        if kind in KINDS and _first(placed, seen):
            one = _exchange(kind, placed, mesh)
            before = total.get(one[:2], Exchange(*one[:2], 0, 0, 0.0))
            total[one[:2]] = Exchange(
                *one[:2], before.calls + one.calls, before.bytes + one.bytes, before.sent + one.sent
            )
    return sorted(total.values(), key=lambda exchange: -exchange.sent)


def _first(placed: Placed, seen: set[tuple[str, str]]) -> bool:
    """Tells whether an exchange is counted; a TPU program has it in the fusion that starts, hides and ends it."""
    channel = re.search(r"channel_id=(\d+)", placed.instruction.attributes)
    if channel is None or placed.fused_into is None:
        return True
    key = (placed.fused_into, channel[1])
    if key in seen:
        return False
    seen.add(key)
    return True


def _exchange(kind: str, placed: Placed, mesh: Mapping[str, int]) -> Exchange:
    given = sum(shape.bytes for operand in placed.operands for shape in operand)
    devices, attributes = math.prod(mesh.values()), placed.instruction.attributes
    if kind == "collective-permute":
        pairs = device_pairs(attributes)
        moving = pairs[pairs[:, 0] != pairs[:, 1]]
        axes, share = _axes(moving, mesh), len(moving) / devices
    else:
        groups = device_groups(attributes, devices)
        size = groups.shape[1]
        axes = _axes(groups, mesh)
        share = {"all-gather": size - 1.0, "all-reduce": 2 * (size - 1) / size}.get(kind, (size - 1) / size)
    return Exchange(kind, axes, placed.times, placed.times * given, placed.times * given * share)


def device_groups(attributes: str, devices: int) -> np.ndarray:
    """Returns (groups, devices of a group) from the attributes of a collective, in any of the forms that XLA prints.

    Raises:
        ValueError: in another form.
    """
    ids = np.arange(devices)
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        rows = [[int(number) for number in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", found[1])]
        return np.array(rows) if rows else ids[None]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        sizes, before, order = (_integers(part) for part in found.groups())
        return _turn(ids, before, order).reshape(sizes)
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", attributes):
        return _along(ids, *found.groups())
    raise ValueError(f"This form of groups of devices is not known here: {attributes[:200]}")


def device_pairs(attributes: str) -> np.ndarray:
    """Returns (pairs, source and target) of a permute."""
    found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if found is None:
        raise ValueError(f"This form of pairs of devices is not known here: {attributes[:200]}")
    return np.array([_integers(pair) for pair in re.findall(r"\{(\d+,\d+)\}", found[1])]).reshape(-1, 2)


def _along(ids: np.ndarray, mesh: str, device_ids: str | None, along: str) -> np.ndarray:
    """Reads mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a','b':(1)2}, where (1)2 is a part of an axis."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    if device_ids is not None:
        numbers, _, turn = device_ids.partition("T(")
        given = _integers(numbers.strip("[]"))
        explicit = len(given) == len(ids) and not turn
        ids = np.array(given) if explicit else _turn(ids, given, _integers(turn.rstrip(")")))
    chosen: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along):
        chosen[name].append((int(before or 1), int(size or sizes[name])))
    shape, vary = [], []
    for name, whole in sizes.items():
        cuts = sorted({1, whole, *(cut for before, size in chosen[name] for cut in (before, before * size))})
        for low, high in itertools.pairwise(cuts):
            vary.append(any(before <= low and high <= before * size for before, size in chosen[name]))
            shape.append(high // low)
    order = [axis for axis, varies in enumerate(vary) if not varies]
    order += [axis for axis, varies in enumerate(vary) if varies]
    group = math.prod(size for size, varies in zip(shape, vary, strict=True) if varies)
    return ids.reshape(shape).transpose(order).reshape(-1, group)


def _turn(ids: np.ndarray, before: list[int], order: list[int]) -> np.ndarray:
    return ids.reshape(before).transpose(order or list(range(len(before)))).reshape(-1)


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    places = np.unravel_index(groups, tuple(mesh.values()))
    return tuple(
        axis for axis, place in zip(mesh, places, strict=True) if groups.size and np.any(place != place[:, :1])
    )


def _integers(text: str | None) -> list[int]:
    return [int(number) for number in (text or "").split(",") if number]
