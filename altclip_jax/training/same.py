"""What must be the same in all processes of a run, and is not noticed by itself where it differs."""

from __future__ import annotations

import collections
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from altclip_jax.sentences import some_lines
from altclip_jax.training.description import told
from altclip_jax.training.processes import exchanged

_PACKAGES = ("altclip-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_OWN_MATTER = ("data.threads", "data.prefetch", "logging")


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
    text = json.dumps({**_packages(), **_own(description)}, sort_keys=True).encode()
    digests = exchanged(np.frombuffer(hashlib.sha256(text).digest(), np.uint8))
    if (digests == digests[0]).all():
        return
    sizes = exchanged(np.array([len(text)], np.int32))[:, 0]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    texts = exchanged(padded)
    found = differing([json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)])
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
    values = told(description)
    return {
        name: value
        for name, value in values.items()
        if not any(name == free or name.startswith(f"{free}.") for free in _OWN_MATTER)
    }
