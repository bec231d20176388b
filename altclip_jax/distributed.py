"""A run of several processes: how one joins it, and how it leaves when something is wrong.

The processes meet at a coordinator, which lives in process 0. Its heartbeat is what ends a process that lost another:
a dead peer may leave the others waiting in the devices' exchange, where no Python exception reaches them. A process
that fails is not dead yet, and tells the others by way of the coordinator: see `watched`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import inspect
import json
import os
import re
import select
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Integer

from altclip_jax.exit_codes import ANOTHER_FAILED, ENDED_BY_SIGTERM

Result = TypeVar("Result")

_AGAIN = 0.2  # seconds between tries to reach the coordinator
_LOOK = 0.5  # seconds between two looks for what another process has told
_SOON = 2.0  # seconds within which what broke an exchange should be told
_MOMENT = 10.0  # seconds to end in order, once a process has failed
_WRITING = 45.0  # the same while a checkpoint is being written
_PATIENCE = 60.0  # seconds in which who was asked to stop must come back to Python
_WRITING_PATIENCE = 600.0  # the same while a checkpoint is being written
_LONGEST_SENTENCE = 4000  # characters that are passed on
_BROKEN = re.compile("gloo|nccl|rccl|collective|connection|barrier|coordination", re.IGNORECASE)
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


class Failure(NamedTuple):
    """What a process of the run met."""

    process: int
    sentence: str


class OtherProcessError(ValueError):
    """Another process of the run could not go on."""

    def __init__(self, failure: Failure | None = None):
        """Takes which one and why, as far as this is known."""
        self.failure = failure
        super().__init__(
            "Another process of this run could not go on, and this one has ended with it."
            if failure is None
            else f"Process {failure.process} of this run could not go on, and this one has ended with it. It said: "
            + failure.sentence
        )


class OtherSamplesError(ValueError):
    """Processes that hold the same rows of a batch have read different samples for them."""

    def __init__(self) -> None:
        super().__init__(
            "Two processes hold the same rows of a batch and have read different samples for them: one can read what"
            " the other cannot. Look whether all hosts see the same files, and run the same command again: it goes on"
            " from what is done."
        )


class Stopped(Exception):  # noqa: N818 - it says what is the matter
    """Raised where work was asked to stop."""


class Concern(enum.IntEnum):
    """Why a run shall end early; the greatest that any process has is that of all."""

    NONE = 0
    ASKED_TO_STOP = 1
    OTHER_SAMPLES = 2
    CANNOT_READ = 3


def is_first() -> bool:
    """Returns whether this process is the one that writes what all share: logs, features, results."""
    first: bool = jax.process_index() == 0
    return first


def barrier(what: str) -> None:
    """Waits until all processes are here; `what` is the same for all, and says what they wait for."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def exchange(values: np.ndarray) -> np.ndarray:
    """Returns the values of all processes, one row for each; every process calls this in the same place."""
    if jax.process_count() == 1:
        return values[None]
    rows: np.ndarray = np.asarray(multihost_utils.process_allgather(values))
    return rows


def exchange_json(value: Any) -> list[Any]:
    """Returns a value that JSON can say, of each process; every process calls this in the same place."""
    if jax.process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    sizes = exchange(np.array([len(text)], np.int32))[:, 0]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return [json.loads(row[:size].tobytes()) for row, size in zip(exchange(padded), sizes, strict=True)]


def from_first(values: np.ndarray) -> np.ndarray:
    """Returns the values of the first process, also where those of the others differ; not their shape or dtype."""
    if jax.process_count() == 1:
        return values
    return np.array(multihost_utils.broadcast_one_to_all(values), values.dtype)


def together(work: Callable[[], Result]) -> Result:
    """Returns what `work` gives here, once it is done in all processes.

    Raises:
        OtherProcessError: another process could not do it; where it could not be done, its own error is raised.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as found:
        error = found
    failed = exchange(np.array([error is not None])).any()
    if error is not None:
        raise error
    if failed:
        raise OtherProcessError
    return result


def digest(ids: Integer[np.ndarray, "rows ids"] | None) -> int:
    """Returns a number that says which samples stand in some rows, and fits an int32; 0 without any."""
    return 0 if ids is None else zlib.crc32(np.ascontiguousarray(ids).tobytes()) >> 1


class Watch:
    """What `watched` gives; with one process all of it is free.

    Attributes:
        writing: Whether a checkpoint is being written, which is given more time.
    """

    def __init__(self, client: Any, name: str):
        """Begins to watch, unless there is no client of the coordinator."""
        self.writing: Callable[[], bool] = lambda: False
        self._client, self._name = client, name
        self._cause: Failure | None = None  # the first failure in the run
        self._since = 0.0  # when it was known here
        self._told = False
        self._meetings = 0
        self._asked: list[float] = []  # when signals came
        self._alive, self._longest = time.monotonic(), 0.0
        if client is not None:
            self._process, self._processes = jax.process_index(), jax.process_count()
            self._signals = _SignalNumbers()
            self._closed = threading.Event()
            self._thread = threading.Thread(target=self._run, name="altclip-watch", daemon=True)
            self._thread.start()

    def alive(self) -> None:
        """Notes that the main thread is in Python and looks whether it was asked to stop."""
        now = time.monotonic()
        self._longest, self._alive = max(self._longest, now - self._alive), now

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tells the others at once of an error inside: before what is open around this is closed, which may hang."""
        try:
            yield
        except BaseException as error:
            self.tell(error)
            raise

    def tell(self, error: BaseException) -> None:
        """Tells the others that this process cannot go on; not what only follows from the failure of another."""
        if self._client is None or self._told:
            return
        self._told = True
        if _follows(error) and self._cause_told():
            return
        cause = Failure(self._process, _sentence(explained(error)))
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was the first, or there is no coordinator
            self._client.key_value_set(f"{self._name}/failed/first", json.dumps(cause))
        self._note(cause)

    def meet(self, error: BaseException | None = None) -> BaseException | None:
        """Waits for all processes where each may have met an error alone; every process calls this in the same place.

        Returns:
            What this process shall raise: its error, `OtherProcessError` if only others have met one, None if nobody
            has. All are here then, and may do something together before.

        Raises:
            OtherProcessError: another one has failed elsewhere meanwhile.
            BaseException: `error`, if the others do not come: they may be waiting for this process in an exchange.
        """
        if self._client is None:
            return error
        self._meetings += 1
        place = f"{self._name}/meeting-{self._meetings}/"
        word = "" if error is None else json.dumps(None if _follows(error) else _sentence(error))
        self._client.key_value_set(f"{place}{self._process}", word or "well")
        begun, pause = time.monotonic(), 0.01
        while len(words := self._client.key_value_dir_get(place)) < self._processes:
            if self._cause is not None and self._cause.process != self._process:
                raise OtherProcessError(self._cause)
            if error is not None and time.monotonic() - begun > _MOMENT:
                raise error
            time.sleep(pause)
            pause = min(2 * pause, _LOOK)
        if self._process == 0 and self._meetings > 1:  # which all have left who are here
            self._client.key_value_delete(f"{self._name}/meeting-{self._meetings - 1}/")
        failures = [
            Failure(int(key.rpartition("/")[2]), json.loads(word)) for key, word in sorted(words) if word != "well"
        ]
        if not failures or (error is not None and not _follows(error)):
            return error
        return OtherProcessError(next((failure for failure in failures if failure.sentence), None))

    def _reason(self, error: BaseException) -> BaseException:
        """Returns an error as a sentence that says what another process met, if it follows from that."""
        if self._client is None or not _follows(error):
            return error
        if getattr(error, "failure", None) is None and self._cause_told():
            return OtherProcessError(self._cause)
        return explained(error)

    def _part(self, *, wait: bool) -> None:
        """Says that this process ends, and lets the one with the coordinator wait for the others."""
        if self._client is None:
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{self._name}/left/{self._process}", "", allow_overwrite=True)
            limit = self._since + _WRITING + 2 * _SOON if wait else time.monotonic() + _SOON
            while self._process == 0 and len(self._left()) < self._processes and time.monotonic() < limit:
                time.sleep(0.05)

    def _close(self) -> None:
        """Ends the watch."""
        if self._client is not None and not self._closed.is_set():
            self._closed.set()
            self._signals.wake()
            self._thread.join()
            self._signals.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            if self._signals.wait(_LOOK) & {signal.SIGTERM, signal.SIGINT}:
                self._asked.append(time.monotonic())
            if self._cause is None:
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    for _, told in self._client.key_value_dir_get(f"{self._name}/failed/"):
                        self._note(Failure(*json.loads(told)))
            if not self._closed.is_set():
                self._end_if_due()

    def _end_if_due(self) -> None:
        now = time.monotonic()
        if self._cause is not None:
            # what others write with who has left will never be whole
            writing = self.writing() and self._cause.process not in self._left()
            asked = bool(self._asked) and self._asked[-1] > self._since and not writing
            if asked or now - self._since > (_WRITING if writing else _MOMENT):
                own = self._cause.process == self._process
                self._end(self._cause.sentence if own else str(OtherProcessError(self._cause)), own=own)
        elif self._asked:
            limit = _WRITING_PATIENCE if self.writing() else max(_PATIENCE, 2 * self._longest)
            if now - max(self._asked[0], self._alive) > limit:
                sentence = (
                    f"It was asked to stop by a signal and waited {limit:.0f} s in vain for another process, or for its"
                    " own devices: nothing was saved since the last checkpoint."
                )
                self.tell(TimeoutError(sentence))
                self._end(sentence, own=True, code=ENDED_BY_SIGTERM)

    def _end(self, text: str, *, own: bool, code: int | None = None) -> None:
        """Ends this process though its main thread does not come back; Python's streams may be in use there."""
        with contextlib.suppress(OSError):
            os.write(2, f"altclip: {text}\n".encode())
        self._part(wait=True)
        os._exit(code or (1 if own else ANOTHER_FAILED))

    def _left(self) -> set[int]:
        """Returns the processes that have ended or are about to."""
        try:
            found = self._client.key_value_dir_get(f"{self._name}/left/")
        except jax.errors.JaxRuntimeError:  # the coordinator itself is gone
            return {0}
        return {int(key.rpartition("/")[2]) for key, _ in found}

    def _note(self, cause: Failure) -> None:
        if self._cause is None:
            self._since, self._cause = time.monotonic(), cause

    def _cause_told(self) -> bool:
        """Returns whether another process tells within a few seconds what it met."""
        limit = time.monotonic() + _SOON
        while self._cause is None and time.monotonic() < limit:
            time.sleep(0.05)
        return self._cause is not None and self._cause.process != self._process


_open: Watch | None = None
_opened = 0  # how often, which is the same in all processes


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Within it, what ends one process of a run ends all within a minute, with the sentence of the one that failed.

    An error that leaves the context is told to all processes. The main thread of another may be anywhere: where it
    gets an exception or meets the others, `OtherProcessError` comes out of its context; where it waits in an exchange,
    which nothing interrupts, a thread ends the process with exit code 76 after a moment. The same thread hears SIGTERM,
    and ends a process with exit code 143 that was asked to stop and does not come back to Python.

    Without an error the context is left when all processes are about to leave it. Within another one it is that one;
    with one process it does nothing.
    """
    global _open, _opened
    if _open is not None:
        yield _open
        return
    _opened += 1
    client = _client() if jax.process_count() > 1 else None
    watch = _open = Watch(client, f"altclip/{_opened}")
    try:
        yield watch
        watch.meet()
    except BaseException as error:
        watch.tell(error)
        reason = watch._reason(error)
        watch._close()  # the main thread is here, and waits no longer than it says
        # who has lost another without a word need not wait for it
        watch._part(wait=not _follows(error) or isinstance(reason, OtherProcessError))
        if client is not None:
            _end_soon_after_main_thread()
        if reason is error:
            raise
        raise reason from error
    finally:
        watch._close()
        _open = None


class _SignalNumbers:
    """The signals that Python has handlers for, told to a thread while the main thread may not come to handle them."""

    def __init__(self) -> None:
        self._told, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        self._before: int | None = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)

    def wait(self, seconds: float) -> set[int]:
        """Returns those that came, at the latest after some time."""
        if not select.select([self._told], [], [], seconds)[0]:
            return set()
        numbers = os.read(self._told, 512)
        if self._before is not None and self._before >= 0:  # whoever was told before
            with contextlib.suppress(OSError):
                os.write(self._before, numbers.replace(b"\0", b""))
        return set(numbers)

    def wake(self) -> None:
        """Lets who waits return."""
        os.write(self._tell, b"\0")

    def close(self) -> None:
        """Gives back what it took."""
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        os.close(self._told)
        os.close(self._tell)


def _follows(error: BaseException) -> bool:
    """Returns whether an error says no more than that another process has failed."""
    link: BaseException | None = error
    while link is not None and explained(link) is link:
        link = link.__cause__
    return isinstance(error, OtherProcessError) or link is not None


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "It was interrupted."
    text = str(error)
    if not (text and isinstance(error, (ValueError, TypeError, OSError))):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= _LONGEST_SENTENCE else text[: _LONGEST_SENTENCE - 4] + " ..."


def _client() -> Any:
    """Returns the connection to the coordinator, None without one; jax has no public name for it."""
    from jax._src import distributed

    return getattr(getattr(distributed, "global_state", None), "client", None)


def _end_soon_after_main_thread() -> None:
    """Keeps Python's exit from waiting for the others, which may be gone: for threads that save, and in jax."""

    def end() -> None:
        threading.main_thread().join()
        time.sleep(_MOMENT / 2)
        os._exit(1)

    threading.Thread(target=end, name="altclip-end", daemon=True).start()


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
