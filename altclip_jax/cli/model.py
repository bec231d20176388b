"""The model that a command asks: its options, how it is loaded, and how its progress is shown."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from altclip_jax.cli.command import add_hub_options

if TYPE_CHECKING:
    from rich.progress import Progress

    from altclip_jax.inference.pipeline import AltCLIP


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says which model answers."""
    parser.add_argument("--model", metavar="SOURCE", help="a folder or hub id; default: the embedded model")
    add_dtype_options(parser)
    add_hub_options(parser)


def add_dtype_options(parser: argparse._ActionsContainer) -> None:
    """Adds what says in which dtypes a model computes and is stored; float32 both, if they say nothing."""
    dtypes = ["float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", choices=dtypes, help="of computation; default: float32")
    parser.add_argument(
        "--param-dtype", choices=dtypes, help="of the parameters: 16 bits take half the memory; default: float32"
    )


def load_model(options: argparse.Namespace) -> AltCLIP:
    """Loads the model that the options name."""
    from altclip_jax.inference.pipeline import AltCLIP

    return AltCLIP.from_pretrained(
        options.model,
        dtype=options.dtype,
        param_dtype=options.param_dtype,
        revision=options.revision,
        local_files_only=options.local_files_only,
    )


@contextlib.contextmanager
def encoding_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error when the work is long and someone is watching."""
    with several_encodings() as begin:
        yield begin("encoding", total)


@contextlib.contextmanager
def several_encodings() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Gives a function of a name and a total, which begins a bar on standard error if that is worth it."""
    with contextlib.ExitStack() as stack:
        shown: list[Progress] = []

        def begin(name: str, total: int) -> Callable[[int], None]:
            if total <= 64 or not sys.stderr.isatty():
                return lambda done: None
            from rich.console import Console
            from rich.progress import Progress

            if not shown:
                shown.append(stack.enter_context(Progress(console=Console(stderr=True))))
            task = shown[0].add_task(name, total=total)
            return lambda done: shown[0].advance(task, done)

        yield begin
