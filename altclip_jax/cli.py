"""The command `altclip`: parse, call, print. Nothing heavy is imported before a command runs.

Exit codes: 0 done, 1 an error that a sentence on standard error explains, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
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
        options.run(options)
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

    info = _command(commands, "info", _info, "config, parameter counts and files, without loading the weights")
    info.add_argument("source", nargs="?", help="a folder or hub id; default: the embedded model")
    _add_hub(info)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], help_text: str
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
