"""What the commands have in common: how they are added, options about the hub, and JSON for programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


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
