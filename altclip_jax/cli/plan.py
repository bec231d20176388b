"""plan: what a step of a run would cost on a mesh, without its weights, its data or its devices."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from altclip_jax.cli.command import add_command, print_json

if TYPE_CHECKING:
    from altclip_jax.planning.chips import Chip, Reading
    from altclip_jax.planning.plan import Plan

_AXES = ("data", "fsdp", "tensor")
_CHIPS = ("v4", "v5e", "v5p", "v6e")


def add_commands(commands: Any) -> None:
    """Adds the commands of this file to the subparsers of `altclip`."""
    plan = add_command(
        commands,
        "plan",
        _plan,
        "compile a run's step for a mesh that need not exist, and tell its memory, arithmetic and exchange",
    )
    plan.add_argument("config", help="the TOML file of a run; its model and teacher may be a config.json")
    plan.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="what wins over the file")
    plan.add_argument("--mesh", metavar="AXES", help="such as data=8,fsdp=8,tensor=4; default: that of the file")
    plan.add_argument("--devices", type=int, metavar="N", help="default: the product of the mesh")
    plan.add_argument("--topology", metavar="NAME", help="a TPU slice to compile for, such as v5e:4x8; needs libtpu")
    plan.add_argument("--chip", choices=_CHIPS, help="whose numbers follow; default: the topology's, else v5e")
    plan.add_argument("--peak-flops", type=float, metavar="X", help="operations per second of a device")
    plan.add_argument("--bandwidth", type=float, metavar="X", help="bytes per second that a device sends along an axis")
    plan.add_argument("--memory", type=float, metavar="X", help="bytes of a device")
    plan.add_argument("--memory-bandwidth", type=float, metavar="X", help="bytes per second of its memory")


def _plan(options: argparse.Namespace) -> None:
    from altclip_jax.planning.chips import read
    from altclip_jax.planning.plan import plan_apart
    from altclip_jax.training.config import RunConfig

    mesh = [] if options.mesh is None else [f"mesh={{{_axes(options.mesh)}}}"]
    config = RunConfig.read(options.config, [*options.settings, *mesh])
    plan = plan_apart(config, devices=options.devices, topology=options.topology)
    chip = _chip(options)
    reading = read(plan, chip)
    if options.json:
        exchanges = [exchange._asdict() for exchange in plan.exchanges]
        print_json({**vars(plan), "exchanges": exchanges, "chip": vars(chip), "reading": reading._asdict()})
    else:
        _print(config.stage, plan, chip, reading)


def _axes(text: str) -> str:
    """Returns an inline TOML table's inside.

    Raises:
        ValueError: it is not a list of axes and sizes.
    """
    pairs = [pair.partition("=") for pair in text.split(",")]
    names = [name.strip() for name, _, _ in pairs]
    if set(names) <= set(_AXES) and len(set(names)) == len(names) and all(size.strip().isdigit() for *_, size in pairs):
        return text
    raise ValueError(f"--mesh {text} is no mesh: expected sizes of {', '.join(_AXES)}, such as data=8,fsdp=8,tensor=4.")


def _chip(options: argparse.Namespace) -> Chip:
    import dataclasses

    from altclip_jax.planning.chips import CHIPS

    kind = (options.topology or "").partition(":")[0]
    chip = CHIPS[options.chip or (kind if kind in CHIPS else "v5e")]
    names = ("peak_flops", "bandwidth", "memory", "memory_bandwidth")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) is not None}
    if not given:
        return chip
    return dataclasses.replace(chip, name=f"{chip.name}, changed", **given)


def _print(stage: str, plan: Plan, chip: Chip, reading: Reading) -> None:
    from altclip_jax.planning.chips import name_exchange

    by = "the CPU compiler's estimate" if plan.compiler == "cpu" else f"compiled for TPU {plan.compiler}"
    axes = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    print(f"one step of stage {stage!r}, {plan.batch_size:,} rows on {axes}: {by}, in {plan.seconds:.0f} s")
    print("memory of a device, MiB")
    kinds = {kind: size for kind, size in plan.arguments.items() if size}
    for kind, size in {**kinds, "temporaries": plan.temporaries, "peak": plan.peak}.items():
        print(f"  {kind:34}{size / 2**20:12,.1f}")
    print("matrix products of a device, GFLOP")
    print(f"  {'the compiled program':34}{plan.program_flops / 1e9:12,.1f}")
    print(f"  {'the model, nothing computed twice':34}{plan.model_flops / 1e9:12,.1f}")
    print(f"exchange of a device, MiB{'given':>21}{'sent':>12}{'times':>9}")
    for exchange in plan.exchanges:
        given, sent = exchange.bytes / 2**20, exchange.sent / 2**20
        print(f"  {name_exchange(exchange.kind, exchange.axes):32}{given:12,.1f}{sent:12,.1f}{exchange.calls:9,}")
    if plan.unknown_loops:
        print(f"  {plan.unknown_loops} loops of unknown length count as one round each")
    print(
        f"on {chip.name} ({chip.peak_flops / 1e12:g} TFLOP/s, {chip.bandwidth / 1e9:g} GB/s along an axis,"
        f" {chip.memory / 2**30:g} GiB of memory at {chip.memory_bandwidth / 1e9:g} GB/s):"
    )
    print(f"  {reading.sentence}")
