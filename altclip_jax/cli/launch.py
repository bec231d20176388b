"""launch: a run in several processes on this host."""

from __future__ import annotations

import argparse
import shlex
import socket
import sys
from typing import Any

from altclip_jax.cli.job import Job
from altclip_jax.exit_codes import ASKED_TO_STOP

_IN_SEVERAL = ("train", "embed", "evaluate")  # the commands that have the options of cli/processes.py
_GIVEN_HERE = ("--coordinator", "--processes", "--process", "--local-devices", "--distributed")


def add_commands(commands: Any) -> None:
    """Adds the commands of this file to the subparsers of `altclip`."""
    text = "run a command in several processes on this host, and watch them"
    launch = commands.add_parser(
        "launch",
        help=text,
        description=f"{text.capitalize()}. Each line of theirs begins with the number of its process.",
        epilog="When one fails or dies, the others are ended too, and a sentence says which it was, how it ended and"
        " what it last said; one that ends with 76 has only followed another. The exit code is its own (128 + the"
        " number of a signal), 75 when all were asked to stop and have saved everything. SIGTERM and Ctrl-C"
        " are passed on to all.",
    )
    launch.add_argument("-n", "--processes", type=int, required=True, metavar="N", help="how many")
    launch.add_argument("--local-devices", type=int, metavar="K", help="devices that each process' CPU stands for")
    launch.add_argument(
        "command",
        nargs="+",
        metavar="COMMAND",
        help="after --, such as: -- train run.toml optimizer.learning_rate=1e-3",
    )
    launch.set_defaults(run=_launch)


def _launch(options: argparse.Namespace) -> int:
    count, command = options.processes, options.command
    if count < 1:
        raise ValueError(f"At least one process is needed, not {count}.")
    if command[0] not in _IN_SEVERAL:
        raise ValueError(
            f"{command[0]!r} does not run in several processes. What stands after -- is one of"
            f" {', '.join(_IN_SEVERAL)} with what belongs to it, without `altclip` before it."
        )
    if own := [word for word in command if word.partition("=")[0] in _GIVEN_HERE]:
        raise ValueError(f"{', '.join(own)}: what each process is told of the others is decided by `altclip launch`.")
    devices = [] if options.local_devices is None else ["--local-devices", str(options.local_devices)]
    shared = ["--coordinator", f"127.0.0.1:{_free_port()}", "--processes", str(count), *devices]
    program = [sys.executable, "-m", "altclip_jax", *command, *shared]
    commands = [[*program, "--process", str(process)] for process in range(count)]
    code = Job(commands, numbered_output="--json" not in command).run()  # process 0 alone prints JSON
    if code == ASKED_TO_STOP:
        again = shlex.join(["altclip", "launch", "-n", str(count), *devices, "--", *command])
        print(
            f"altclip: all {count} processes have stopped, everything is saved; to go on:\n  {again}", file=sys.stderr
        )
    return code


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
