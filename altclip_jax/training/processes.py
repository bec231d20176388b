"""What the processes of one run agree on; with one process all of this is free."""

from __future__ import annotations

import collections
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from altclip_jax import parallel
from altclip_jax.distributed import Concern, digest, exchange, exchange_json, from_first
from altclip_jax.files import hub
from altclip_jax.sentences import some_lines
from altclip_jax.training.description import flatten_description

_PACKAGES = ("altclip-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_OWN_MATTER = ("data.threads", "data.prefetch", "logging")


def find(source: str) -> hub.Snapshot:
    """Returns what `hub.find` finds, in all processes the same commit: that which the first one has found."""
    found = hub.find(source)
    own = np.frombuffer((found.commit or "").ljust(40).encode(), np.uint8)
    commit = from_first(own).tobytes().decode().strip()
    return hub.find(source, revision=commit) if commit and commit != found.commit else found


def whole(tree: Any) -> Any:
    """Returns a tree of global arrays with every array readable by this process; all processes call this."""

    def gathered(leaf: jax.Array) -> Any:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        # one by one and on to the host, so that no device has more than one of them whole
        return np.asarray(jax.jit(lambda x: x, out_shardings=parallel.sharding(leaf.sharding.mesh))(leaf))  # type: ignore[attr-defined]

    return jax.tree.map(gathered, tree)


def require_same(description: Mapping[str, Any]) -> None:
    """Compares devices, the run's description and the packages that compute it over all processes.

    Two learning rates, say, would train two models that exchange gradients, and nothing would tell.

    Raises:
        ValueError: something differs; in every process.
    """
    if jax.process_count() == 1:
        return
    counts = collections.Counter(device.process_index for device in jax.devices())
    if uneven := differing([{"devices": counts[process]} for process in range(jax.process_count())]):
        raise ValueError(f"Each process of a run has the same number of devices, but here: {uneven[0]}.")
    own = {**_packages(), **_own(description)}
    text = json.dumps(own, sort_keys=True).encode()
    digests = exchange(np.frombuffer(hashlib.sha256(text).digest(), np.uint8))
    if (digests == digests[0]).all():
        return
    found = differing(exchange_json(own))
    raise ValueError(
        "The processes of this run were not started alike:\n  - "
        + "\n  - ".join(some_lines(found))
        + "\nStart all of them with the same command, on the same files, with the same packages."
    )


def differing(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns "setting: value in process 0, another in process 1" for what is not the same in all."""
    found = []
    for name in sorted(set().union(*processes)):
        first: dict[str, int] = {}  # process that has a value, by how it is written
        for number, values in enumerate(processes):
            first.setdefault(repr(values[name]) if name in values else "absent", number)
        if len(first) > 1:
            found.append(f"{name}: " + ", ".join(f"{value} in process {number}" for value, number in first.items()))
    return found


def _packages() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from its sources
            versions[name] = "not installed"
    return versions


def _own(description: Mapping[str, Any]) -> dict[str, Any]:
    values = flatten_description(description)
    return {
        name: value
        for name, value in values.items()
        if not any(name == free or name.startswith(f"{free}.") for free in _OWN_MATTER)
    }


class Agreement:
    """Lets processes act on what only one of them knows at the same step.

    The exchange is a program for the devices like the step itself, and runs before the step that is dispatched after
    it: whoever asks for its outcome waits for no more than the steps before.
    """

    def __init__(self, mesh: jax.sharding.Mesh, rows: int):
        """Takes the devices of the run, and the rows of its batches."""
        self._alone = jax.process_count() == 1
        (batch,) = parallel.BATCH
        self._shape = parallel.batch_devices(mesh), mesh.shape["tensor"], 2
        self._place = parallel.sharding(mesh, (batch, "tensor", None))
        self._each, self._mine = rows // self._shape[0], parallel.local_rows(mesh, rows)

        def greatest(told: jax.Array) -> jax.Array:
            concerns, digests = told[..., 0], told[..., 1]
            differ = (digests.max(axis=1) != digests.min(axis=1)).any()
            return jnp.maximum(concerns.max(), jnp.where(differ, Concern.OTHER_SAMPLES, Concern.NONE))

        self._greatest = jax.jit(greatest, out_shardings=parallel.sharding(mesh))

    def at_once(self, concern: Concern) -> Concern:
        """Returns the concern if there is no other process to agree with."""
        return concern if self._alone else Concern.NONE

    def ask(self, concern: Concern, ids: Integer[np.ndarray, "mine ids"] | None) -> Callable[[], Concern]:
        """Tells all processes what this one is concerned about, and returns what gives the concern of all.

        Every process calls this in the same place.

        Args:
            concern: Of this process.
            ids: Of the samples in its rows of the batch that comes next, which must be those of who holds the same.
        """
        if self._alone:
            return lambda: concern

        def tell(index: tuple[slice, ...]) -> np.ndarray:
            first = int(np.searchsorted(self._mine, (index[0].start or 0) * self._each))
            return np.array([[[concern, digest(None if ids is None else ids[first : first + self._each])]]], np.int32)

        make: Any = jax.make_array_from_callback
        outcome = self._greatest(make(self._shape, self._place, tell))
        return lambda: Concern(int(outcome))
