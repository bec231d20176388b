"""classify, similarity: what a model says of pictures and texts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from altclip_jax.cli.command import add_command, add_model_options, encoding_progress, load_model, print_json


def add_commands(commands: Any) -> None:
    """Adds the commands of this file to the subparsers of `altclip`."""
    classify = add_command(commands, "classify", _classify, "which label fits each picture")
    add_images(classify)
    classify.add_argument("--labels", nargs="+", required=True, metavar="LABEL", help="names, in any language")
    classify.add_argument(
        "--templates", nargs="+", default=["{}"], metavar="T", help="prompts with one {} each, averaged per label"
    )
    add_model_options(classify)

    similarity = add_command(commands, "similarity", _similarity, "cosine of each picture with each text")
    add_images(similarity)
    similarity.add_argument("--texts", nargs="+", required=True, metavar="TEXT", help="texts, in any language")
    add_model_options(similarity)


def add_images(
    parser: argparse.ArgumentParser, nargs: str = "+", help_text: str = "picture files, folders or glob patterns"
) -> None:
    """Adds the pictures that a command takes."""
    parser.add_argument("images", nargs=nargs, metavar="IMAGE", help=help_text)


def _classify(options: argparse.Namespace) -> None:
    files, clip = find_images(options.images), load_model(options)
    with encoding_progress(len(files)) as done:
        rows = clip.classify(files, options.labels, templates=options.templates, progress=done)
    if options.json:
        print_json(
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
    files, clip = find_images(options.images), load_model(options)
    with encoding_progress(len(files)) as done:
        rows = clip.encode_images(files, progress=done) @ clip.encode_text(options.texts).T
    if options.json:
        print_json({"images": [str(file) for file in files], "texts": options.texts, "cosine": rows.tolist()})
        return
    for file, row in zip(files, rows, strict=True):
        print(file)
        for text, cosine in zip(options.texts, row, strict=True):
            print(f"  {cosine:7.4f}  {text}")


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Returns the pictures that files, folders and patterns name.

    Raises:
        FileNotFoundError: one of them names none.
    """
    import glob

    from altclip_jax.processing.image_files import PICTURE_SUFFIXES

    files: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute
        if not found:
            kinds = " ".join(sorted(PICTURE_SUFFIXES))
            raise FileNotFoundError(f"{pattern}: no picture there. Give a file, a folder with {kinds}, or a pattern.")
        files += found
    return files
