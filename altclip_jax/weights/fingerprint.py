"""What tells the parameters of a model from any others: a hash of all their bytes.

Version 2 hashes paths, shapes, dtypes and every byte, of arrays in the order of their axes, so it is the same however
they lie in memory and on whichever devices. Version 1, of release 0.1.0, left out the bytes of all but small ones.

Gigabytes take seconds. A fingerprint is therefore kept in the user's cache for parameters that came from files, and
found again by the state of these.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from altclip_jax.files.checkpoint_folder import ORBAX
from altclip_jax.files.json_file import read_json_object, write_json
from altclip_jax.files.user_cache import user_cache
from altclip_jax.quantization.leaves import QuantizedArray, split_leaves
from altclip_jax.version import __version__
from altclip_jax.weights.convert import Params, flatten

VERSION = 2
_BLOCK = 2**24  # bytes that are hashed together; a part of what version 2 means
_SMALL = 4096  # numbers of a parameter up to which its bytes count in version 1
_KEPT_FROM = 2**26  # bytes of parameters; fewer are hashed sooner than a file is read
_SETTLED = 2e9  # nanoseconds: a younger file may change once more and seem the same


def version_of(fingerprint: str) -> int:
    """Returns the version of a fingerprint; those of version 1 do not say it."""
    version, colon, _ = fingerprint.partition(":")
    return int(version) if colon and version.isdecimal() else 1


def fingerprint(params: Params, version: int = VERSION) -> str:
    """Returns a text that differs for other parameters, other dtypes and other forms in few bits.

    Args:
        params: Arrays, quantized or not, on whichever devices of this process.
        version: The current one, or 1 to compare with what 0.1.0 has written.

    Raises:
        ValueError: this library does not know the version.
    """
    if version == 1:
        return _version_1(params)
    if version != VERSION:
        raise ValueError(
            f"A fingerprint of version {version} was made by a later altclip_jax: this one knows 1 to {VERSION}."
        )
    digest = hashlib.sha256("".join(_few_bits(params)).encode())
    arrays = sorted(flatten(split_leaves(params)).items(), key=lambda item: -item[1].nbytes)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashlib lets go of the interpreter's lock
        hashes = {path: _hash(_on_host(array), threads) for path, array in arrays}
    for path, array in sorted(arrays):
        digest.update(f"{path} {tuple(array.shape)} {np.dtype(array.dtype).name} {hashes[path]}\n".encode())
    return f"{VERSION}:{digest.hexdigest()[:32]}"


class Origin:
    """The files that parameters come from, by which their fingerprint is found in the user's cache.

    It is made before they are read, and told of them afterwards. It speaks for these parameters only while each is the
    same object, which cannot be changed, and the files are as they were.
    """

    def __init__(self, folder: Path, how: str):
        """Looks at a folder's files; `how` is all else that decides what is made of them."""
        self._folder, self._how, self._state = folder, how, _state_of(folder)
        self._arrays: dict[str, Any] = {}

    def remember(self, params: Params) -> Origin:
        """Remembers what was read, unless the files have changed meanwhile or just before; returns itself."""
        changed = max((max(times) for _, _, _, *times in self._state), default=0)
        if self._is_as_it_was() and time.time_ns() - changed > _SETTLED:
            self._arrays = {path: weakref.ref(array) for path, array in flatten(split_leaves(params)).items()}
        return self

    def fingerprint(self, params: Params) -> str:
        """Returns the fingerprint of parameters: as it was kept for these files if they are theirs."""
        arrays = flatten(split_leaves(params))
        if sum(array.nbytes for array in arrays.values()) < _KEPT_FROM or not self._is_of(arrays):
            return fingerprint(params)
        shapes = [f"{path} {array.shape} {array.dtype}" for path, array in sorted(arrays.items())]
        made_of = [str(self._folder.resolve()), self._state, self._how, _few_bits(params), shapes]
        key = [VERSION, __version__, *made_of]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        cache = user_cache()
        kept = None if cache is None else cache / "fingerprints" / f"{name}.json"
        if kept is None:
            return fingerprint(params)
        with contextlib.suppress(OSError, ValueError, KeyError):  # not there yet, or not to be read
            return str(read_json_object(kept)["fingerprint"])
        made = fingerprint(params)
        with contextlib.suppress(OSError, ValueError):  # a home that cannot be written: everything works without
            write_json(kept, {"fingerprint": made, "of": str(self._folder)})
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arrays": {}}  # others, in another process

    def _is_of(self, arrays: Mapping[str, Any]) -> bool:
        same = self._arrays.keys() == arrays.keys() and all(
            self._arrays[path]() is array and not (isinstance(array, np.ndarray) and array.flags.writeable)
            for path, array in arrays.items()
        )
        return same and self._is_as_it_was()

    def _is_as_it_was(self) -> bool:
        try:
            return self._state == _state_of(self._folder)
        except OSError:
            return False


def _state_of(folder: Path) -> list[tuple[str, int, int, int, int]]:
    """Returns name, inode, bytes and times of the files that decide what is read from a folder."""
    names = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json")]
    states = {path: path.stat() for path in [*names, *(folder / ORBAX).rglob("*")] if path.is_file()}
    return sorted(
        (str(path.relative_to(folder)), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        for path, state in states.items()
    )


def _few_bits(params: Params) -> list[str]:
    """Returns a line for each parameter in few bits: its codes alone do not say of which dtype an array they make."""
    flat = sorted(flatten(params).items())
    return [f"{path} {leaf.scheme} {leaf.dtype.name}\n" for path, leaf in flat if isinstance(leaf, QuantizedArray)]


def _on_host(array: Any) -> np.ndarray:
    """Returns an array in this process' memory."""
    if isinstance(array, jax.Array) and [device.platform for device in array.devices()] != ["cpu"]:
        array = jnp.copy(array)  # an array keeps what was fetched of it for as long as it lives, and this one soon goes
    return np.asarray(array)


def _hash(array: np.ndarray, threads: ThreadPoolExecutor) -> str:
    """Returns a hash of the hashes of blocks, each of as many whole rows as fit into it."""
    array = array if array.ndim else array.reshape(1)
    rows = max(1, _BLOCK // max(1, array[:1].nbytes))
    blocks = (array[start : start + rows] for start in range(0, len(array), rows))
    return hashlib.sha256(b"".join(threads.map(_hash_block, blocks))).hexdigest()


def _hash_block(block: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data).digest()


def _version_1(params: Params) -> str:
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        digest.update(f"{path} {leaf.shape} {leaf.dtype}\n".encode())
        if leaf.size <= _SMALL:
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
