"""train: a run in its folder, as someone in front of it sees it."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from altclip_jax.cli.command import add_command, print_json, quiet_storage
from altclip_jax.cli.processes import add_process_options, join
from altclip_jax.exit_codes import ANOTHER_FAILED, ASKED_TO_STOP

if TYPE_CHECKING:
    from altclip_jax.training.loop import Outcome


def add_commands(commands: Any) -> None:
    """Adds the commands of this file to the subparsers of `altclip`."""
    train = add_command(
        commands,
        "train",
        _train,
        "train a model, or go on where it was interrupted",
        epilog=f"Exit code {ASKED_TO_STOP}: it was asked to stop (SIGTERM or Ctrl-C), and everything is saved;"
        f" {ANOTHER_FAILED}: another process of the run failed, and its sentence is repeated.",
    )
    train.add_argument("config", help="the TOML file of a run, such as those in recipes/")
    train.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="what wins over the file")
    train.add_argument("--dry-run", action="store_true", help="build everything, do one step, leave nothing behind")
    add_process_options(train)


def _train(options: argparse.Namespace) -> int:
    from altclip_jax.distributed import is_first
    from altclip_jax.training.config import RunConfig
    from altclip_jax.training.loop import train

    quiet_storage()
    config = RunConfig.read(options.config, options.settings)
    with join(options):
        outcome = train(config, dry_run=options.dry_run)
    if not is_first():  # what follows is said once
        return 0 if outcome.stopped_by is None else ASKED_TO_STOP
    if options.json:
        exported = None if outcome.exported is None else str(outcome.exported)
        print_json({**outcome._asdict(), "exported": exported})
    elif outcome.exported is not None:
        _print_end(outcome)
    if outcome.stopped_by is None:
        return 0
    again = shlex.join(["altclip", "train", options.config, *options.settings, *(["--json"] if options.json else [])])
    where = ""
    if options.coordinator is not None or options.distributed is not None:
        where = ", in as many processes as you like, each told of the others as before or with `altclip launch`"
    print(
        f"altclip: stopped by {outcome.stopped_by} after step {outcome.step} of {outcome.steps}, everything is saved;"
        f" to go on{where}:\n  {again}",
        file=sys.stderr,
    )
    return ASKED_TO_STOP


def _print_end(outcome: Outcome) -> None:
    speed = outcome.metrics
    if "samples_per_second" in speed:  # not where every step was done before
        print(
            f"{speed['samples_per_second']:.1f} samples/s, {speed['waiting']:.0%} of the time waiting for input,"
            f" {speed['share_of_peak']:.0%} of the measured peak of matrix products"
        )
    print(f"the model is in {outcome.exported}")
