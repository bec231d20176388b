"""What the commands have in common: how they are added, the model that they ask, progress, JSON, the last word."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from rich.progress import Progress

    from altclip_jax.inference.pipeline import AltCLIP

# These files of orbax log, with its whole traceback and for each thread, what they then raise.
_RAISED_AGAIN = {"async_checkpointer.py", "checkpoint_manager.py", "future.py"}


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help_text: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Adds a command to the subparsers of `altclip`; `run` gets its options and returns the exit code, None for 0."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text.capitalize() + ".", epilog=epilog
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.set_defaults(run=run)
    return parser


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says how a hub id is fetched."""
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub repository")
    parser.add_argument("--local-files-only", action="store_true", help="never use the network")


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


def load_model(options: argparse.Namespace, mesh: Mesh | None = None) -> AltCLIP:
    """Loads the model that the options name, onto a mesh or one device."""
    from altclip_jax.inference.pipeline import AltCLIP

    return AltCLIP.from_pretrained(
        options.model,
        dtype=options.dtype,
        param_dtype=options.param_dtype,
        revision=options.revision,
        local_files_only=options.local_files_only,
        mesh=mesh,
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


def positive(text: str) -> int:
    """Returns the whole number from 1 on that an option names."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def print_json(value: object) -> None:
    """Prints a value on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def explain(error: BaseException) -> int:
    """Says on standard error what ended a command, and returns its exit code."""
    if isinstance(error, BrokenPipeError):
        # the reader of our output, such as head, has had enough; keep the interpreter from complaining at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, KeyboardInterrupt):
        print("altclip: interrupted", file=sys.stderr)
        return 130
    if isinstance(error, (ValueError, TypeError, OSError)):
        print(f"altclip: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return 1


def quiet_storage() -> None:
    """Lets orbax speak of errors alone, and only of those that are not raised anyway; holds until the process ends.

    Until then, because the threads and coroutines of a write that failed come to an end as late as that.
    """
    logger = logging.getLogger("absl")  # imported by now: it must be absl itself that makes this logger
    logger.setLevel(logging.ERROR)
    logger.addFilter(_news)
    # of the many pieces of a failed write the first is raised; nobody asks the others, which are of no other opinion
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


def _news(record: logging.LogRecord) -> bool:
    return record.exc_info is None or record.filename not in _RAISED_AGAIN


def _unraisable(otherwise: Callable[[Any], Any], event: Any) -> None:
    if not (isinstance(event.exc_value, RuntimeError) and str(event.exc_value) == "Event loop is closed"):
        otherwise(event)
