"""Open a checkpoint in any of its file forms as one map from names to arrays."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from altclip_jax.files.checkpoint_folder import ORBAX, WEIGHT_FILES
from altclip_jax.sentences import list_some
from altclip_jax.weights.file_kind import open_regular
from altclip_jax.weights.safetensors_file import read_safetensors
from altclip_jax.weights.shard_index import INDEX_SUFFIX, placement_faults, read_index
from altclip_jax.weights.stored import CheckpointError, StoredFile, StoredTensor, TensorInfo
from altclip_jax.weights.torch_file import read_torch

__all__ = ["Checkpoint", "CheckpointError", "TensorInfo", "open_checkpoint", "weights_in"]

_TORCH_SUFFIXES = (".bin", ".pt", ".pth")
_SUFFIXES = (".safetensors", *_TORCH_SUFFIXES, INDEX_SUFFIX)
_FOREIGN = {
    ".msgpack": "Flax weights of transformers",
    ".h5": "TensorFlow weights",
    ".gguf": "GGUF weights",
    ".onnx": "an ONNX graph",
    ".ckpt": "a training checkpoint",
}


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open the weights in a folder, or one file of weights; no tensor data is read yet.

    Args:
        path: a folder, whose weights `weights_in` finds, or a file *.safetensors, *.bin, *.pt, *.pth or *.index.json.

    Raises:
        CheckpointError: what is there is damaged, of another kind or at odds with itself.
        FileNotFoundError: there are no weights; the message says what is there instead.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_in(path)
        if path.name == ORBAX:
            raise CheckpointError(f"{path} is of orbax: make safetensors of {path.parent} with `altclip convert`")
    elif not os.path.lexists(path):
        raise FileNotFoundError(f"{path} does not exist; a folder or a file of weights was expected")
    if not path.name.endswith(_SUFFIXES):
        raise CheckpointError(f"{path} is none of *{', *'.join(_SUFFIXES)}, the kinds of files that are read")
    if path.name.endswith(INDEX_SUFFIX):
        return _open_shards(path)
    return Checkpoint([_Part(path)])


def weights_in(folder: Path) -> Path:
    """Return the weights that are read in a folder: of `WEIGHT_FILES` the first that exists, or `orbax_params`.

    Raises:
        CheckpointError: there are both, so that nobody knows which are meant.
        FileNotFoundError: there are none; the message says what is there instead.
    """
    found = [folder / name for name in WEIGHT_FILES if os.path.lexists(folder / name)]
    if (folder / ORBAX).is_dir():
        if found:
            raise CheckpointError(
                f"{folder} holds {ORBAX} and {found[0].name}, which were not saved together: move one of them away"
            )
        return folder / ORBAX
    if not found:
        raise FileNotFoundError(_nothing_found(folder))
    return found[0]


class Checkpoint:
    """The tensors of one or more files, read one by one on request; a context manager that closes the files.

    Reading is safe from several threads.
    """

    def __init__(self, parts: list[_Part]):
        self._parts = parts
        self._owners = {name: part for part in parts for name in part.tensors}
        infos = {name: part.tensors[name].info for name, part in self._owners.items()}
        self.infos: Mapping[str, TensorInfo] = MappingProxyType(infos)
        self.files = tuple(part.file.path for part in parts)
        self.metadata: dict[str, str] = {}  # of safetensors files; empty for torch's
        for part in reversed(parts):
            self.metadata |= part.metadata

    def read(self, name: str, index: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Read a tensor, or the part of it that `index` names, into a new contiguous array, aligned to 64 bytes.

        Where a part lies in the file as runs of 64 bytes or more, only these are read; where its bits are
        smaller, all from the first to the last. Little more memory is used than the result takes.

        Args:
            name: the tensor.
            index: slices of step 1 for the first axes; the others are read whole.
        """
        if name not in self._owners:
            raise CheckpointError(f"{name!r} is not among the {len(self.infos)} tensors of {self.files[0].parent}")
        part = self._owners[name]
        return part.file.read(part.tensors[name], index)

    def close(self) -> None:
        """Close the files; arrays that were read stay valid."""
        for part in self._parts:
            part.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Part:
    """One open file and what it declares."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]

    def __init__(self, path: Path):
        self.file: StoredFile = open_regular(path)
        try:
            if path.name.endswith(_TORCH_SUFFIXES):
                self.tensors, self.metadata = read_torch(self.file), {}
            else:
                self.tensors, self.metadata = read_safetensors(self.file)
        except BaseException:
            self.file.close()
            raise


def _open_shards(index: Path) -> Checkpoint:
    weight_map = read_index(index)
    counts = collections.Counter(weight_map.values())
    faults: list[str] = []
    with contextlib.ExitStack() as opened:
        parts: dict[str, _Part] = {}
        for shard, count in sorted(counts.items()):
            try:
                parts[shard] = _Part(index.parent / shard)
                opened.callback(parts[shard].file.close)
            except FileNotFoundError as error:
                faults.append(f"the shard {shard}, which should hold {count} tensors, is missing ({error})")
            except (CheckpointError, OSError) as error:
                faults.append(str(error))
        faults += placement_faults(weight_map, {shard: part.tensors for shard, part in parts.items()})
        if faults:
            raise CheckpointError(str(index), faults)
        opened.pop_all()
    return Checkpoint(list(parts.values()))


def _nothing_found(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    sentences = [
        f"{folder} holds no weights that can be read: none of {', '.join(WEIGHT_FILES)} is there",
        f"It holds {list_some(names) or 'nothing'}",
    ]
    for suffix, what in _FOREIGN.items():
        if foreign := [name for name in names if name.endswith(suffix)]:
            sentences.append(f"{foreign[0]} is {what}; get the safetensors or PyTorch weights of the model")
    if any(name.startswith(".model") and name.endswith(".old") for name in names):
        sentences.append(
            "A save was killed while it replaced files: .NAME.*.old is the earlier NAME, .NAME.*.tmp the new"
        )
    elif shards := [name for name in names if name.startswith(("model-", "pytorch_model-"))]:
        sentences.append(f"{shards[0]} is a shard: the {INDEX_SUFFIX} that belongs to it is missing")
    elif other := [name for name in names if name.endswith(_SUFFIXES)]:
        sentences.append(f"If {other[0]} holds the weights, pass the path of that file")
    return ". ".join(sentences)
