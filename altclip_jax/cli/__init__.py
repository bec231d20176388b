"""The command `altclip`: parse, call, print. Nothing heavy is imported before a command runs.

Exit codes: 0 done, 1 an error that a sentence on standard error explains, 2 wrong usage, 75 a training run that was
asked to stop and has saved everything (the same command goes on), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from altclip_jax.cli import answering, checkpoints, evaluate, training


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "settings") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.settings += rest  # argparse does not look for more of them behind an option
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="altclip",
        description="AltCLIP, the multilingual CLIP, in JAX. Without --model the embedded model answers, offline.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for family in (answering, evaluate, checkpoints, training):
        family.add_commands(commands)
    return parser
