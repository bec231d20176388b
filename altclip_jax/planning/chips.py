"""What limits a step on a given chip: the times below which it cannot be, and the largest of them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from altclip_jax.planning.plan import Plan

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What one device can do.

    Attributes:
        name: Its name.
        peak_flops: Operations per second of matrix products in bfloat16.
        bandwidth: Bytes per second that it sends to its neighbours on a ring along one axis: over two links.
        memory: Bytes.
        memory_bandwidth: Bytes per second.
    """

    name: str
    peak_flops: float
    bandwidth: float
    memory: float
    memory_bandwidth: float


# The vendor's pages of 2025, but for the memory, which is what the compiler in libtpu 0.0.42.1 has to give. There the
# links of a chip are counted together and both ways: two of the four of v5e and v6e, or of the six of v4 and v5p, one
# way, are what a ring uses.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(name="v4", peak_flops=275e12, bandwidth=100e9, memory=30.75 * _GIB, memory_bandwidth=1.2e12),
        Chip(name="v5e", peak_flops=197e12, bandwidth=100e9, memory=15.75 * _GIB, memory_bandwidth=0.819e12),
        Chip(name="v5p", peak_flops=459e12, bandwidth=200e9, memory=95.74 * _GIB, memory_bandwidth=2.765e12),
        Chip(name="v6e", peak_flops=918e12, bandwidth=200e9, memory=31.25 * _GIB, memory_bandwidth=1.638e12),
    )
}


class Reading(NamedTuple):
    """What a plan means on a chip; times in seconds, each of them at least."""

    compute: float
    memory: float  # to read every argument and write every result once
    exchange: dict[str, float]  # by kind and axes, such as "all-gather fsdp"
    fits: bool
    sentence: str


def read(plan: Plan, chip: Chip) -> Reading:
    """Says what dominates a step."""
    arguments = sum(plan.arguments.values())
    compute = plan.program_flops / chip.peak_flops
    memory = (arguments + plan.results) / chip.memory_bandwidth
    exchange = {name_exchange(one.kind, one.axes): one.sent / chip.bandwidth for one in plan.exchanges if one.sent}
    fits = plan.peak <= chip.memory
    sentence = _dominant(compute, memory, exchange) if fits else _too_large(plan, chip)
    return Reading(compute, memory, exchange, fits, sentence)


def name_exchange(kind: str, axes: tuple[str, ...]) -> str:
    """Returns how an exchange is called."""
    return f"{kind} {'+'.join(axes) or 'within a device'}"


def _dominant(compute: float, memory: float, exchange: dict[str, float]) -> str:
    sending = sum(exchange.values())
    largest = max(exchange, key=lambda name: exchange[name], default="")
    sent = f"exchange {_milliseconds(sending)}" + (
        f" (most of it {largest}, {_milliseconds(exchange[largest])})" if largest else ""
    )
    times = {"compute": compute, "memory": memory, "exchange": sending}
    words = {
        "compute": f"matrix products {_milliseconds(compute)}",
        "memory": f"reading and writing the state {_milliseconds(memory)}",
        "exchange": sent,
    }
    first, *others = sorted(times, key=lambda name: -times[name])
    bound = {"compute": "Compute-bound", "memory": "Bound by memory traffic", "exchange": "Bound by exchange"}[first]
    hidden = "" if first != "compute" or not sending else ", which can hide behind it where it overlaps"
    return f"{bound}: {words[first]}, against {' and '.join(words[name] for name in others)}{hidden}."


def _too_large(plan: Plan, chip: Chip) -> str:
    kinds = {**plan.arguments, "temporaries": plan.temporaries}
    largest = max(kinds, key=lambda kind: kinds[kind])
    remedy = {
        "temporaries": "more loss.micro_batches, model.remat, or fewer rows on each device",
        "batch": "fewer rows on each device",
    }.get(largest, "a larger fsdp axis, or tensor axis")
    return (
        f"Does not fit: {plan.peak / _GIB:.1f} GiB at the peak, and {chip.name} has {chip.memory / _GIB:g} GiB. Most of"
        f" it is {largest}, {kinds[largest] / _GIB:.1f} GiB: {remedy} would help."
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
