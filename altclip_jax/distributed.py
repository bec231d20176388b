"""A run of several processes: how one joins it, and how it leaves when something is wrong.

The processes meet at a coordinator, which lives in process 0. Its heartbeat is what ends a process that lost another:
a dead peer may leave the others waiting in the devices' exchange, where no Python exception reaches them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

_AGAIN = 0.2  # seconds between tries to reach the coordinator
_BROKEN = re.compile("gloo|nccl|rccl|collective|connection", re.IGNORECASE)
_TIMEOUTS = ("heartbeat_timeout", "shutdown_timeout", "initialization_timeout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Membership:
    """Which process of a run this one is.

    Attributes:
        coordinator: HOST:PORT, where process 0 listens and all others find it.
        processes: How many there are.
        process: Which of them this is, from 0.
        detected: Instead of these three, what jax reads in the environment: Slurm, Open MPI, Kubernetes, TPU.
        local_devices: How many devices the CPU of this process stands for; also without other processes.
        heartbeat_timeout: Seconds after which a process that is not heard of is dead, and all others end with it.
        shutdown_timeout: Seconds that a process which is done waits for the others.
        initialization_timeout: Seconds until the coordinator must be there, and then until all processes must be.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    detected: bool = False
    local_devices: int | None = None
    heartbeat_timeout: int = 10
    shutdown_timeout: int = 15
    initialization_timeout: int = 60

    def __post_init__(self) -> None:
        explicit = {"coordinator": self.coordinator, "processes": self.processes, "process": self.process}
        given = [name for name, value in explicit.items() if value is not None]
        missing = [name for name, value in explicit.items() if value is None]
        if self.detected and given:
            raise ValueError(
                f"jax was asked to find out by itself which process this is, and {_listed(given)} given as well:"
                " choose one of the two."
            )
        if given and missing:
            raise ValueError(
                f"coordinator, processes and process go together: {_listed(given)} given and {_listed(missing)} not."
            )
        if self.processes is not None and self.process is not None and not 0 <= self.process < self.processes:
            raise ValueError(
                f"There is no process {self.process} of {self.processes}: they are numbered from 0 to"
                f" {self.processes - 1}."
                if self.processes > 0
                else f"A run has at least one process, not {self.processes}."
            )
        if self.coordinator is not None:
            self.address()
        if self.local_devices is not None and self.local_devices < 1:
            raise ValueError(f"A process has at least one device, not {self.local_devices}.")
        for name in _TIMEOUTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least one second is needed.")

    @property
    def several(self) -> bool:
        """Whether there is a run to join."""
        return self.detected or self.coordinator is not None

    def address(self) -> tuple[str, int]:
        """Returns host and port of the coordinator.

        Raises:
            ValueError: it is no address.
        """
        host, _, port = (self.coordinator or "").rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ValueError(f"The coordinator's address {self.coordinator!r} is not HOST:PORT, such as 10.0.0.1:4000.")
        return host.strip("[]"), int(port)


def join(membership: Membership) -> None:
    """Meets the other processes of the run; called before anything is computed.

    SIGTERM keeps the handler that Python has for it, where jax alone would note the signal and go on. If not all
    processes come in time, this one prints a sentence and ends with exit code 1: jax cannot be called back.

    Raises:
        ValueError: jax finds no cluster in the environment, or the local devices are not those of a CPU.
        OSError: the coordinator cannot be reached, or its port is taken.
        RuntimeError: something was computed before.
    """
    if membership.local_devices is not None:
        _configure("jax_num_cpu_devices", membership.local_devices)
    if not membership.several:
        return
    if not membership.detected:
        host, port = membership.address()
        _not_through_a_proxy(host)
        if membership.process == 0:
            _require_free(port, membership)
        else:
            _wait_for(host, port, membership)
    with _ended_after(membership), _python_handles(signal.SIGTERM):
        _initialize(membership)
    if membership.local_devices not in (None, jax.local_device_count()):
        raise ValueError(
            f"This process was to have {membership.local_devices} devices of its CPU, and has"
            f" {jax.local_device_count()} of {jax.default_backend()}: local devices are for runs on CPUs"
            " (JAX_PLATFORMS=cpu)."
        )


def finish() -> None:
    """Waits until all processes are done, however long; what then ends them waits for no more than its timeout."""
    multihost_utils.sync_global_devices("finish")


def explained(error: BaseException) -> BaseException:
    """Returns a sentence for what jax raises where the exchange with another process breaks off, else the error."""
    if isinstance(error, jax.errors.JaxRuntimeError) and _BROKEN.search(str(error)):
        return ConnectionError(
            f"The exchange with the other processes broke off ({error}): one of them has ended or cannot be reached."
            " If it has said why, that is the reason; the same command on all goes on from the last checkpoint."
        )
    return error


def leave(code: int) -> NoReturn:
    """Ends this process at once, so that no other waits for it at the barrier that is at the end of each."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _initialize(membership: Membership) -> None:
    """Calls jax with what its version knows of."""
    wanted: dict[str, Any] = {
        "heartbeat_timeout_seconds": membership.heartbeat_timeout,
        "shutdown_timeout_seconds": membership.shutdown_timeout,  # unknown to jax 0.8.0: 300 s
        # later than ours, whose end is a sentence: jax aborts
        "initialization_timeout": membership.initialization_timeout + 10,
    }
    if not membership.detected:
        wanted |= {
            "coordinator_address": membership.coordinator,
            "num_processes": membership.processes,
            "process_id": membership.process,
            "cluster_detection_method": "deactivate",  # or a cluster's environment would choose devices
        }
    known = inspect.signature(jax.distributed.initialize).parameters
    try:
        jax.distributed.initialize(**{name: value for name, value in wanted.items() if name in known})
    except ValueError as error:
        if not membership.detected:
            raise
        raise ValueError(
            f"jax finds no cluster in the environment of this process ({error}) It knows Slurm (inside srun), Open MPI,"
            " Kubernetes and TPU; elsewhere give coordinator, processes and process."
        ) from error


@contextlib.contextmanager
def _ended_after(membership: Membership) -> Iterator[None]:
    """Ends this process with a sentence if what it does inside takes longer than the initialization may."""

    def end() -> None:
        which = "A process" if membership.detected else f"Process {membership.process} of {membership.processes}"
        where = f" at {found}" if (found := _coordinator_in_use()) else ""
        print(
            f"altclip: {which} waited {membership.initialization_timeout} s for the run to come together{where}, and"
            " not all processes came: start all of them, with the same coordinator and number of processes, each with"
            " its own process number.",
            file=sys.stderr,
        )
        leave(1)

    timer = threading.Timer(membership.initialization_timeout, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _coordinator_in_use() -> str | None:
    """Returns the address that jax was given or has found; only jax itself knows the latter."""
    from jax._src import distributed

    return getattr(getattr(distributed, "global_state", None), "coordinator_address", None)


@contextlib.contextmanager
def _python_handles(number: signal.Signals) -> Iterator[None]:
    """Gives a signal back to Python's handler, after code that is not Python's took it."""
    here = threading.current_thread() is threading.main_thread()  # elsewhere Python cannot set handlers
    handler = signal.getsignal(number)
    yield
    if here and handler is not None:
        signal.signal(number, handler)


def _not_through_a_proxy(host: str) -> None:
    """Keeps the connection to the coordinator from a proxy for the web, which jax's own would go through."""
    if any(name.lower().endswith("_proxy") for name in os.environ):
        name = "no_grpc_proxy"  # read in this case alone
        others = os.environ.get(name) or os.environ.get("no_proxy")
        os.environ[name] = f"{others},{host}" if others else host
        _configure("jax_check_proxy_envs", False)  # it warns of what cannot happen any more


def _require_free(port: int, membership: Membership) -> None:
    """Raises OSError if process 0 cannot listen there; jax would share the port with another run, or crash."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as error:
        raise OSError(
            f"Process 0 cannot listen at port {port} for the coordinator {membership.coordinator} ({error.strerror}):"
            " end what uses it, or choose another port."
        ) from error


def _wait_for(host: str, port: int, membership: Membership) -> None:
    """Returns once something listens at the coordinator's address."""
    limit = time.monotonic() + membership.initialization_timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=max(limit - time.monotonic(), 0.1)).close()
        except OSError as error:
            if time.monotonic() + _AGAIN > limit:
                raise OSError(
                    f"Process {membership.process} of {membership.processes} could not reach the coordinator"
                    f" {membership.coordinator} within {membership.initialization_timeout} s"
                    f" ({error.strerror or error}): is process 0 running there, and may this host connect to it?"
                ) from error
            time.sleep(_AGAIN)
        else:
            return


def _configure(name: str, value: object) -> None:
    update: Any = jax.config.update
    update(name, value)


def _listed(names: list[str]) -> str:
    return " and ".join(names) + (" is" if len(names) == 1 else " are")
