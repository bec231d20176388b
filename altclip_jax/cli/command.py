"""What the commands have in common: how they are added, options about the hub, and JSON for programs."""

from __future__ import annotations

import argparse
import json
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


def print_json(value: object) -> None:
    """Prints a value on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2))
