"""Print a table of what a step of the full AltCLIP costs on 8, 64 and 256 chips, for docs/plans.md.

    python -m scripts.benchmark.plan_tables --output plans.json              # the estimate of the CPU's compiler
    python -m scripts.benchmark.plan_tables --output plans.json --topology   # for TPU v5e; needs libtpu

Lines that are in the file are kept; the table is printed from it in the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax

from altclip_jax import parallel
from altclip_jax.files.json_file import read_json_object, write_json
from altclip_jax.planning.chips import CHIPS, name_exchange
from altclip_jax.planning.plan import plan, topology_devices
from altclip_jax.training.config import RunConfig

Line = tuple[str, int, str, int, int]  # recipe, devices, mesh, rows of the batch, its parts
RECIPES = Path(__file__).parents[2] / "recipes" / "altclip"
TOPOLOGIES = {8: "v5e:2x4", 64: "v5e:8x8", 256: "v5e:16x16"}
LINES: tuple[Line, ...] = (
    ("contrastive", 8, "data=8", 1024, 1),
    ("contrastive", 8, "data=8", 1024, 8),
    ("contrastive", 8, "fsdp=8", 1024, 1),
    ("contrastive", 8, "fsdp=8", 1024, 8),
    ("contrastive", 8, "data=2,tensor=4", 1024, 1),
    ("contrastive", 64, "data=64", 8192, 1),
    ("contrastive", 64, "data=8,fsdp=8", 8192, 1),
    ("contrastive", 64, "data=16,tensor=4", 8192, 1),
    ("contrastive", 64, "data=8,fsdp=8", 1024, 1),
    ("contrastive", 256, "data=256", 32768, 1),
    ("contrastive", 256, "data=32,fsdp=8", 32768, 1),
    ("contrastive", 256, "data=32,fsdp=8", 32768, 8),
    ("contrastive", 256, "data=8,fsdp=8,tensor=4", 32768, 1),
    ("teacher_learning", 8, "fsdp=8", 1024, 1),
    ("teacher_learning", 64, "data=8,fsdp=8", 8192, 1),
    ("teacher_learning", 256, "data=32,fsdp=8", 32768, 1),
)


def main() -> None:
    """Compile what is not there yet, and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file of what is done")
    parser.add_argument("--topology", action="store_true", help="for TPU v5e instead of virtual CPU devices")
    parser.add_argument("--lines", type=int, nargs="*", help="numbers of lines, from 0; default: all")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(TOPOLOGIES))
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    done = read_json_object(options.output) if options.output.exists() else {}
    compiler = "v5e" if options.topology else "cpu"
    for line in LINES if options.lines is None else [LINES[number] for number in options.lines]:
        key = " ".join(map(str, (compiler, *line)))
        if key not in done:
            done[key] = numbers(line, topology=options.topology)
            write_json(options.output, done)
            print(key, done[key], flush=True)
    table(done)


def numbers(line: Line, *, topology: bool) -> dict[str, float]:
    """Return what a line costs, by name; sizes in GiB."""
    recipe, devices, mesh, rows, parts = line
    settings = [f"model.source={RECIPES / 'model.json'}", f"mesh={{{mesh}}}", f"batch_size={rows}"]
    settings += [f"loss.micro_batches={parts}"]
    settings += [f"teacher.source={RECIPES / 'teacher.json'}"] if recipe == "teacher_learning" else []
    config = RunConfig.read(RECIPES / f"{recipe}.toml", settings)
    there = topology_devices(TOPOLOGIES[devices]) if topology else jax.devices()[:devices]
    made = plan(
        config,
        parallel.make_mesh(**config.mesh.model_dump(), devices=there),
        compiler=TOPOLOGIES[devices] if topology else "cpu",
    )
    assert made.unknown_loops == 0
    return {
        "arguments": sum(made.arguments.values()) / 2**30,
        "peak": made.peak / 2**30,
        "program": made.program_flops / 1e12,
        "model": made.model_flops / 1e12,
        **{name_exchange(one.kind, one.axes): one.sent / 2**30 for one in made.exchanges},
    }


def table(done: dict[str, dict[str, float]]) -> None:
    """Print what is done as a table in Markdown."""
    chip = CHIPS["v5e"]
    print("| by | stage | chips | mesh | batch | parts | arguments | peak | program, model | sent | products | sent |")
    print("|" + "---|" * 12)
    for key, row in done.items():
        compiler, recipe, devices, mesh, rows, parts = key.split()
        sent = {name: size for name, size in row.items() if name.partition(" ")[2]}
        told = ", ".join(f"{name} {size:.1f}" for name, size in sent.items() if size > 0.05)
        stage = 1 if recipe == "teacher_learning" else 2
        print(
            f"| {compiler} | {stage} | {devices} | {mesh} | {int(rows):,} | {parts} | {row['arguments']:.2f}"
            f" | {row['peak']:.1f} | {row['program']:.1f}, {row['model']:.1f} | {told}"
            f" | {row['program'] * 1e15 / chip.peak_flops:.0f} ms"
            f" | {sum(sent.values()) * 2**30 * 1e3 / chip.bandwidth:.0f} ms |"
        )


if __name__ == "__main__":
    main()
