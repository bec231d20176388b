"""Print tables of what a step of the full AltCLIP costs on 8, 64 and 256 chips, for docs/plans.md.

    python scripts/plan_tables.py --output plans.json        # for TPU v5e, minutes a line; needs libtpu
    python scripts/plan_tables.py --output plans.json --cpu  # the estimate of the CPU's compiler, a minute a line

Lines that are in the file are kept; the tables are printed from it in the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from altclip_jax.json_file import read_json_object, write_json
from altclip_jax.training.chips import CHIPS, named, read
from altclip_jax.training.config import RunConfig
from altclip_jax.training.plan import plan_apart

RECIPES = Path(__file__).parents[1] / "recipes" / "altclip"
TOPOLOGIES = {8: "v5e:2x4", 64: "v5e:8x8", 256: "v5e:16x16"}
# recipe, devices, mesh, rows of the batch, its parts
LINES: tuple[tuple[str, int, str, int, int], ...] = (
    ("contrastive", 256, "data=32,fsdp=8", 32768, 1),
    ("contrastive", 8, "data=8", 1024, 8),
    ("contrastive", 8, "fsdp=8", 1024, 8),
    ("contrastive", 8, "data=8", 1024, 1),
    ("contrastive", 8, "fsdp=8", 1024, 1),
    ("contrastive", 8, "data=2,tensor=4", 1024, 1),
    ("contrastive", 64, "data=8,fsdp=8", 1024, 1),
    ("contrastive", 64, "data=64", 8192, 1),
    ("contrastive", 64, "data=8,fsdp=8", 8192, 1),
    ("contrastive", 64, "data=16,tensor=4", 8192, 1),
    ("contrastive", 256, "data=256", 32768, 1),
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
    parser.add_argument("--cpu", action="store_true", help="for virtual devices of this CPU instead of a v5e")
    parser.add_argument("--lines", type=int, nargs="*", help="numbers of lines, from 0; default: all")
    options = parser.parse_args()
    done = read_json_object(options.output) if options.output.exists() else {}
    for line in LINES if options.lines is None else [LINES[number] for number in options.lines]:
        key = " ".join(map(str, ("cpu" if options.cpu else "v5e", *line)))
        if key not in done:
            done[key] = {"line": line, "compiler": "cpu" if options.cpu else "v5e", **planned(line, cpu=options.cpu)}
            write_json(options.output, done)
            print(key, done[key], flush=True)
    for compiler in sorted({row["compiler"] for row in done.values()}):
        print(f"\n{compiler}\n")
        table([row for row in done.values() if row["compiler"] == compiler])


def planned(line: tuple[str, int, str, int, int], *, cpu: bool) -> dict[str, Any]:
    """Return the numbers of a line, or why there are none."""
    recipe, devices, mesh, rows, parts = line
    settings = [f"model.source={RECIPES / 'model.json'}", f"mesh={{{mesh}}}", f"batch_size={rows}"]
    settings += [f"loss.micro_batches={parts}"]
    settings += [f"teacher.source={RECIPES / 'teacher.json'}"] if recipe == "teacher_learning" else []
    config = RunConfig.read(RECIPES / f"{recipe}.toml", settings)
    try:
        plan = plan_apart(config, devices=devices, topology=None if cpu else TOPOLOGIES[devices])
    except ValueError as error:
        return {"error": str(error)}
    reading = read(plan, CHIPS["v5e"])
    return {
        "seconds": round(plan.seconds),
        "arguments": sum(plan.arguments.values()) / 2**30,
        "peak": plan.peak / 2**30,
        "program": plan.program_flops / 1e12,
        "model": plan.model_flops / 1e12,
        "sent": {named(one.kind, one.axes): one.sent / 2**30 for one in plan.exchanges},
        "compute": reading.compute * 1e3,
        "exchange": sum(reading.exchange.values()) * 1e3,
        "sentence": reading.sentence,
        "unknown_loops": plan.unknown_loops,
    }


def table(rows: list[dict[str, Any]]) -> None:
    """Print lines as a table in Markdown, in the order of `LINES`."""
    print("| stage | chips | mesh | batch | parts | arguments | peak | program, model | sent, GiB | products | sent |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    order = [list(line) for line in LINES]
    for row in sorted(rows, key=lambda row: (row["line"][0], row["line"][1], order.index(list(row["line"])))):
        recipe, devices, mesh, batch, parts = row["line"]
        start = f"| {1 if recipe == 'teacher_learning' else 2} | {devices} | {mesh} | {batch:,} | {parts} |"
        if "error" in row:
            print(f"{start} {row['error']} |")
            continue
        sent = ", ".join(f"{name} {size:.2f}" for name, size in row["sent"].items() if size > 0.1)
        print(
            f"{start} {row['arguments']:.2f} | {row['peak']:.1f} | {row['program']:.2f}, {row['model']:.2f} | {sent}"
            f" | {row['compute']:.0f} ms | {row['exchange']:.0f} ms |"
        )


if __name__ == "__main__":
    main()
