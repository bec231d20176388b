"""export: what a training run has learned as a model's folder, or a model as programs that need no Flax."""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altclip_jax.cli.command import add_command, add_dtype_options, add_hub_options, print_json, quiet_storage

if TYPE_CHECKING:
    from altclip_jax.inference.pipeline import AltCLIP

_OF_RUNS = ("step", "best", "no_average")
_OF_PROGRAMS = {
    "programs": None,
    "weights": None,
    "platforms": None,
    "pictures": None,
    "no_normalize": False,
    "executable": None,
    "dtype": None,
    "param_dtype": None,
    "quantize": None,
    "revision": None,
    "local_files_only": False,
}


def add_commands(commands: Any) -> None:
    """Adds the command of this file to the subparsers of `altclip`."""
    export = add_command(
        commands,
        "export",
        _export,
        "write what a training run has learned as a model's folder, or a model as programs",
        epilog="Without --format the source is a training run; with --format stablehlo it is a model or a run.",
    )
    export.add_argument(
        "source", metavar="SOURCE", help="the folder of a run; for programs also a model: folder or hub id"
    )
    export.add_argument("target", metavar="TARGET", help="the new folder")
    export.add_argument(
        "--format",
        choices=["checkpoint", "stablehlo"],
        default="checkpoint",
        help="a folder that transformers reads, or programs by jax.export; default: %(default)s",
    )
    run = export.add_argument_group("of a training run")
    which = run.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="of which checkpoint; default: the last")
    which.add_argument("--best", action="store_true", help="the best that the run keeps (checkpoints.keep_best)")
    run.add_argument("--no-average", action="store_true", help="the parameters, not their moving average")
    program = export.add_argument_group("of programs", "with --format stablehlo")
    program.add_argument(
        "--programs", nargs="+", choices=["text", "image", "both"], help="both: two towers in one; default: text image"
    )
    program.add_argument("--weights", choices=["beside", "inside"], help="the programs; default: beside")
    program.add_argument(
        "--platforms", nargs="+", choices=["cpu", "cuda", "rocm", "tpu"], help="that they run on; default: cpu cuda tpu"
    )
    program.add_argument(
        "--pictures", choices=["float32", "uint8"], help="prepared, or resized and not normalised; default: float32"
    )
    program.add_argument("--no-normalize", action="store_true", help="give features, not embeddings of unit length")
    program.add_argument(
        "--executable",
        nargs="+",
        type=_sizes,
        metavar="N",
        help="compile for this machine, too: TEXTSxLENGTH, such as 8x64, or a number of pictures",
    )
    add_dtype_options(program)
    program.add_argument("--quantize", choices=["int8", "int4"], help="store kernels and tables in few bits")
    add_hub_options(export)


def _sizes(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither TEXTSxLENGTH, such as 8x64, nor a number of pictures")
    return tuple(map(int, text.split("x")))


def _export(options: argparse.Namespace) -> None:
    if options.format == "stablehlo":
        _export_programs(options)
        return
    given = [name for name, default in _OF_PROGRAMS.items() if getattr(options, name) != default]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} is for programs: add --format stablehlo.")
    step = _export_run(options, options.target)
    if options.json:
        print_json({"target": options.target, "step": step})
        return
    print(f"{options.target}: the model after step {step} of {options.source}")


def _export_run(options: argparse.Namespace, target: str) -> int:
    from altclip_jax.training.run_folder import export

    quiet_storage()
    return export(options.source, target, step=options.step, best=options.best, average=not options.no_average)


def _export_programs(options: argparse.Namespace) -> None:
    from altclip_jax.export.folder import export_program

    given = {name: getattr(options, name) for name in ("programs", "weights", "platforms", "pictures")}
    manifest = export_program(
        _model(options),
        options.target,
        normalize=not options.no_normalize,
        executables=options.executable or (),
        **{name: value for name, value in given.items() if value is not None},
    )
    if options.json:
        print_json({"target": options.target, **manifest})
        return
    print(f"{options.target}: {options.source} for {', '.join(manifest['platforms'])}")
    for name, program in manifest["programs"].items():
        inputs, outputs = (
            ", ".join(
                f"{each['name']} ({', '.join(map(str, each['shape']))}) {each['dtype']}" for each in program[side]
            )
            for side in ("inputs", "outputs")
        )
        print(f"  {program['file']:24} {program['bytes']:>13,} bytes  {name}: {inputs} -> {outputs}")
    compiled = manifest["executables"] or {"files": []}
    for file in (*compiled["files"], *filter(None, [manifest["weights"]])):
        print(f"  {file['file']:24} {file['bytes']:>13,} bytes")
    if manifest["texts"]["tokenizer"] is None:
        print("  no tokenizer.json: the source has none, so whoever runs the programs must bring ids")


def _model(options: argparse.Namespace) -> AltCLIP:
    from altclip_jax.inference.pipeline import AltCLIP

    how: dict[str, Any] = {name: getattr(options, name) for name in ("dtype", "param_dtype", "quantize")}
    if (Path(options.source) / "checkpoints").is_dir():
        with tempfile.TemporaryDirectory() as temporary:
            step = _export_run(options, temporary)
            clip = AltCLIP.from_pretrained(temporary, **how)
            clip.name = f"{options.source}, step {step}"
            return clip
    given = [name for name in _OF_RUNS if getattr(options, name) not in (None, False)]
    if given:
        raise ValueError(
            f"--{given[0].replace('_', '-')} is for the folder of a training run; {options.source} is none."
        )
    return AltCLIP.from_pretrained(
        options.source, revision=options.revision, local_files_only=options.local_files_only, **how
    )
