"""The command `altclip`: parse, call, print. Nothing heavy is imported before a command runs.

Exit codes: 0 done, 1 an error that a sentence on standard error explains, 2 wrong usage, 75 a training run that was asked
to stop and has saved everything: the same command goes on, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altclip_jax.inference.pipeline import AltCLIP

_SHOWN = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "vocab_size",
    "image_size",
    "patch_size",
)
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except BrokenPipeError:
        # the reader of our output, such as head, has had enough; keep the interpreter from complaining at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, TypeError, OSError) as error:
        print(f"altclip: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("altclip: interrupted", file=sys.stderr)
        return 130
    return 0


_ASKED_TO_STOP = 75  # EX_TEMPFAIL of sysexits.h: try again


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="altclip",
        description="AltCLIP, the multilingual CLIP, in JAX. Without --model the embedded model answers, offline.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    classify = _command(commands, "classify", _classify, "which label fits each picture")
    _add_images(classify)
    classify.add_argument("--labels", nargs="+", required=True, metavar="LABEL", help="names, in any language")
    classify.add_argument(
        "--templates", nargs="+", default=["{}"], metavar="T", help="prompts with one {} each, averaged per label"
    )
    _add_model(classify)

    similarity = _command(commands, "similarity", _similarity, "cosine of each picture with each text")
    _add_images(similarity)
    similarity.add_argument("--texts", nargs="+", required=True, metavar="TEXT", help="texts, in any language")
    _add_model(similarity)

    embed = _command(commands, "embed", _embed, "write unit embeddings of pictures and texts to a file")
    _add_images(embed, nargs="*")
    embed.add_argument("--texts", nargs="+", default=[], metavar="TEXT", help="texts, in any language")
    embed.add_argument("--output", required=True, type=Path, metavar="FILE", help="an .npz or .safetensors file")
    _add_model(embed)

    convert = _command(commands, "convert", _convert, "turn a checkpoint into another form, and verify it")
    convert.add_argument("source", help="a folder or hub id")
    convert.add_argument("target", help="the new folder")
    convert.add_argument("--part", choices=["full", "text", "vision"], help="the whole model or one tower")
    convert.add_argument("--form", choices=["safetensors", "orbax"], default="safetensors", help="default: %(default)s")
    convert.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: that of the source")
    convert.add_argument("--max-shard-bytes", type=int, default=5_000_000_000, metavar="N", help="default: %(default)s")
    _add_hub(convert)

    start = _command(commands, "init", _init, "make a checkpoint to train from")
    start.add_argument("target", help="the new folder")
    start.add_argument("--text", metavar="SOURCE", help="XLM-RoBERTa: the text tower, and the tokenizer")
    start.add_argument(
        "--clip", metavar="SOURCE", help="CLIP: the image tower, projections, temperature, image processor"
    )
    start.add_argument("--config", metavar="FILE", help="config.json of the model, if not both of these decide it")
    start.add_argument("--tokenizer", metavar="SOURCE", help="whose tokenizer; default: that of --text")
    start.add_argument("--image-processor", metavar="SOURCE", help="whose image processor; default: that of --clip")
    start.add_argument("--seed", type=int, default=0, metavar="N", help="of what is initialised; default: %(default)s")
    start.add_argument("--local-files-only", action="store_true", help="never use the network")

    train = _command(commands, "train", _train, "train a model, or go on where it was interrupted")
    train.add_argument("config", help="the TOML file of a run, such as those in recipes/")
    train.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="what wins over the file")
    train.add_argument("--dry-run", action="store_true", help="build everything, do one step, leave nothing behind")

    export = _command(commands, "export", _export, "write a checkpoint of a training run as a model's folder")
    export.add_argument("run_folder", metavar="RUN", help="the folder of the run")
    export.add_argument("target", help="the new folder")
    export.add_argument("--step", type=int, metavar="N", help="of which checkpoint; default: the last")
    export.add_argument("--no-average", action="store_true", help="the parameters, not their moving average")

    info = _command(commands, "info", _info, "config, parameter counts and files, without loading the weights")
    info.add_argument("source", nargs="?", help="a folder or hub id; default: the embedded model")
    _add_hub(info)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help_text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text.capitalize() + "."
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.set_defaults(run=run)
    return parser


def _add_images(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    parser.add_argument("images", nargs=nargs, metavar="IMAGE", help="picture files, folders or glob patterns")


def _add_hub(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub repository")
    parser.add_argument("--local-files-only", action="store_true", help="never use the network")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="SOURCE", help="a folder or hub id; default: the embedded model")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="default: %(default)s"
    )
    _add_hub(parser)


def _classify(options: argparse.Namespace) -> None:
    files, clip = _find_images(options.images), _load(options)
    with _progress(len(files)) as done:
        rows = clip.classify(files, options.labels, templates=options.templates, progress=done)
    if options.json:
        _print_json(
            [
                {"image": str(file), "probabilities": dict(zip(options.labels, map(float, row), strict=True))}
                for file, row in zip(files, rows, strict=True)
            ]
        )
        return
    for file, row in zip(files, rows, strict=True):
        print(file)
        for index in (-row).argsort(kind="stable")[:5]:
            print(f"  {row[index]:6.1%}  {options.labels[index]}")


def _similarity(options: argparse.Namespace) -> None:
    files, clip = _find_images(options.images), _load(options)
    with _progress(len(files)) as done:
        rows = clip.encode_images(files, progress=done) @ clip.encode_text(options.texts).T
    if options.json:
        _print_json({"images": [str(file) for file in files], "texts": options.texts, "cosine": rows.tolist()})
        return
    for file, row in zip(files, rows, strict=True):
        print(file)
        for text, cosine in zip(options.texts, row, strict=True):
            print(f"  {cosine:7.4f}  {text}")


def _embed(options: argparse.Namespace) -> None:
    from altclip_jax.inference.embedding_file import write_embeddings

    if not options.images and not options.texts:
        raise ValueError("There is nothing to embed: name pictures, or give texts with --texts.")
    files, clip = _find_images(options.images), _load(options)
    with _progress(len(files) + len(options.texts)) as done:
        images, texts = clip.encode_images(files, progress=done), clip.encode_text(options.texts, progress=done)
    names = [str(file) for file in files]
    write_embeddings(options.output, images=images, image_names=names, texts=texts, text_names=options.texts)
    if options.json:
        _print_json({"output": str(options.output), "images": list(images.shape), "texts": list(texts.shape)})
        return
    print(f"{options.output}: {len(images)} pictures and {len(texts)} texts, {images.shape[1]} numbers each")


def _convert(options: argparse.Namespace) -> None:
    from altclip_jax import checkpoints

    description = checkpoints.convert(
        options.source,
        options.target,
        part=options.part,
        dtype=options.dtype,
        form=options.form,
        max_shard_bytes=options.max_shard_bytes,
        revision=options.revision,
        local_files_only=options.local_files_only,
    )
    _print_description(description, options.json)
    if not options.json:
        print("verified: every value was read back as it was written")


def _init(options: argparse.Namespace) -> None:
    from altclip_jax import student

    names = ("text", "clip", "config", "tokenizer", "image_processor", "seed", "local_files_only")
    made = student.start(options.target, **{name: getattr(options, name) for name in names})
    if options.json:
        _print_json(made._asdict())
        return
    print(f"{made.target}: {made.model_type}, {made.parameters:,} parameters")
    for source, count in made.taken.items():
        print(f"  {count} tensors from {source}")
    print(f"  {len(made.initialised)} tensors initialised with seed {options.seed}")
    for path in made.initialised if made.taken else ():
        print(f"    {path}")
    print(f"  tokenizer: {made.tokenizer}")
    print(f"  image processor: {made.image_processor}")


def _train(options: argparse.Namespace) -> int:
    from altclip_jax.training.config import RunConfig
    from altclip_jax.training.loop import train

    config = RunConfig.read(options.config, options.settings)
    outcome = train(config, dry_run=options.dry_run)
    if options.json:
        exported = None if outcome.exported is None else str(outcome.exported)
        _print_json({**outcome._asdict(), "exported": exported})
    elif outcome.exported is not None:
        speed = outcome.metrics
        if "samples_per_second" in speed:  # not where every step was done before
            print(
                f"{speed['samples_per_second']:.1f} samples/s, {speed['waiting']:.0%} of the time waiting for input,"
                f" {speed['share_of_peak']:.0%} of the measured peak of matrix products"
            )
        print(f"the model is in {outcome.exported}")
    if outcome.stopped_by is None:
        return 0
    again = shlex.join(["altclip", "train", options.config, *options.settings])
    print(
        f"altclip: stopped by {outcome.stopped_by} after step {outcome.step} of {outcome.steps}, everything is saved;"
        f" to go on:\n  {again}",
        file=sys.stderr,
    )
    return _ASKED_TO_STOP


def _export(options: argparse.Namespace) -> None:
    from altclip_jax.training.folder import export

    step = export(options.run_folder, options.target, step=options.step, average=not options.no_average)
    if options.json:
        _print_json({"target": options.target, "step": step})
        return
    print(f"{options.target}: the model after step {step} of {options.run_folder}")


def _info(options: argparse.Namespace) -> None:
    from altclip_jax import checkpoints
    from altclip_jax.assets import default_checkpoint

    source = options.source or default_checkpoint()
    description = checkpoints.describe(source, revision=options.revision, local_files_only=options.local_files_only)
    _print_description(description, options.json)


def _print_description(description: Any, as_json: bool) -> None:
    if as_json:
        _print_json({**description._asdict(), "files": [file._asdict() for file in description.files]})
        return
    print(f"{description.source}: {description.config['model_type']}")
    for name, count in description.parameters.items():
        print(f"  {name:18} {count:>15,} parameters")
    for file in description.files:
        print(f"  {file.name:34} {file.bytes:>15,} bytes, {file.tensors} tensors, {', '.join(file.dtypes)}")
    towers = {name: value for name, value in description.config.items() if name in ("text_config", "vision_config")}
    for name, values in (towers or {"config": description.config}).items():
        print(f"  {name}: " + ", ".join(f"{key} {values[key]}" for key in _SHOWN if key in values))


def _find_images(patterns: Sequence[str]) -> list[Path]:
    import glob

    files: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _PICTURES)
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute
        if not found:
            kinds = " ".join(sorted(_PICTURES))
            raise FileNotFoundError(f"{pattern}: no picture there. Give a file, a folder with {kinds}, or a pattern.")
        files += found
    return files


def _load(options: argparse.Namespace) -> AltCLIP:
    from altclip_jax.inference.pipeline import AltCLIP

    return AltCLIP.from_pretrained(
        options.model, dtype=options.dtype, revision=options.revision, local_files_only=options.local_files_only
    )


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error when the work is long and someone is watching."""
    if total <= 64 or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=total)
        yield lambda done: bar.advance(task, done)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
