"""Options of a command that runs in several processes, and what it is run within."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

from altclip_jax.cli.command import explain

_TIMEOUTS = {
    "heartbeat": (10, "until a process that is not heard of counts as dead, and ends all others"),
    "shutdown": (15, "that a process which is done waits for the others"),
    "initialization": (60, "until the coordinator must be there, and then until all processes must be"),
}


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says which process of a run this one is."""
    group = parser.add_argument_group(
        "several processes",
        "The same command on every host, each with its own number; on one host `altclip launch` does it.",
    )
    group.add_argument("--distributed", choices=["auto"], help="read the rest from Slurm, Open MPI, Kubernetes or TPU")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens for the others")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    group.add_argument("--local-devices", type=int, metavar="K", help="how many devices this process' CPU stands for")
    for name, (seconds, text) in _TIMEOUTS.items():
        group.add_argument(
            f"--{name}-timeout", type=int, default=seconds, metavar="S", help=f"seconds {text}; default: %(default)s"
        )


@contextlib.contextmanager
def join(options: argparse.Namespace) -> Iterator[None]:
    """Joins the run that the options name; an error inside ends this process of several at once, with its sentence.

    Otherwise Python's exit would wait for processes that themselves wait for this one. It is left when all processes
    are done, however long that takes; what then ends them waits for no more than its timeout.
    """
    from altclip_jax import distributed
    from altclip_jax.exit_codes import ANOTHER_FAILED

    names = ("coordinator", "processes", "process", "local_devices", *(f"{name}_timeout" for name in _TIMEOUTS))
    membership = distributed.Membership(
        detected=options.distributed == "auto", **{name: getattr(options, name) for name in names}
    )
    if not membership.several:
        distributed.join(membership)
        yield
        return
    _leave_output_to_python()
    try:
        distributed.join(membership)
        with distributed.watched():
            yield
    except BaseException as error:
        code = explain(distributed.explained(error)) or 1
        distributed.leave(ANOTHER_FAILED if isinstance(error, distributed.OtherProcessError) else code)


def _leave_output_to_python() -> None:
    """Sends to standard error, from here to the end, what is written to standard output otherwise than by `print`.

    So does the library that exchanges arrays between CPUs when it connects, and its line would stand before the JSON,
    or after it where one of its threads is late.
    """
    sys.stdout.flush()
    sys.stdout = open(os.dup(1), "w", encoding="utf-8", buffering=1)  # noqa: PTH123, SIM115 - a descriptor
    os.dup2(2, 1)
