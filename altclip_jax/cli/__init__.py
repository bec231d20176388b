"""The command `altclip`: parse, call, print. Nothing heavy is imported before a command runs.

Exit codes: 0 done, 1 an error that a sentence on standard error explains, 2 wrong usage, 75 a training run that was
asked to stop and has saved everything (the same command goes on), 76 another process of the run failed, 130
interrupted, 143 asked to stop while it waited in vain for another process.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from altclip_jax.cli import answering, checkpoints, corpus, evaluate, export, launch, plan, search, training
from altclip_jax.cli.command import explain
from altclip_jax.files.user_cache import user_cache
from altclip_jax.machine import processor


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = parse(arguments)
    if arguments is None:  # not for a program that calls us: its jax is its own
        keep_compiled_programs()
    try:
        return options.run(options) or 0
    except (ValueError, TypeError, OSError, KeyboardInterrupt) as error:
        return explain(error)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns what the arguments say; wrong usage ends the process with 2 and a sentence."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "settings") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.settings += rest  # argparse does not look for more of them behind an option
    return options


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command with those of all its commands below it."""
    parser = argparse.ArgumentParser(
        prog="altclip",
        description="AltCLIP, the multilingual CLIP, in JAX. Without --model the embedded model answers, offline.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for family in (answering, corpus, search, evaluate, checkpoints, export, training, launch, plan):
        family.add_commands(commands)
    return parser


def keep_compiled_programs() -> None:
    """Tells jax, before it is imported, in which folder it keeps compiled programs.

    That is what the environment's ALTCLIP_COMPILATION_CACHE says ("off": nowhere), or jax's own
    JAX_COMPILATION_CACHE_DIR, or a folder in the user's cache; one for each kind of processor, since programs for CPUs
    use the instructions of the one they were compiled on.
    """
    said = os.environ.get("ALTCLIP_COMPILATION_CACHE")
    if said == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(said) if said else user_cache()
    if cache is None:
        return
    folder = (cache if said else cache / "compiled") / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # no home, or one that cannot be written: everything works without
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
