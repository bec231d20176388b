"""The files of a checkpoint's folder: which there are for what, which one is read, and what a save replaces.

Of the weights the first that is there is read; only `orbax_params` is refused beside another form, since nothing that
this library writes leaves them both. Of an XLM-RoBERTa's vocabularies sentencepiece.bpe.model is read before
tokenizer.json, of a CLIP's tokenizer.json before the others. A save removes what it does not write of its own kind.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from altclip_jax.files import whole
from altclip_jax.files.json_file import parse_json
from altclip_jax.files.staging import staged_name
from altclip_jax.sentences import list_some

CONFIG_FILE = "config.json"
ORBAX = "orbax_params"
# In the order in which they are looked for.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")
VOCABULARIES = ("sentencepiece.bpe.model", "vocab.json", "merges.txt", "tokenizer.json")
TOKENIZER_FILES = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
IMAGE_FILES = ("preprocessor_config.json",)
# transformers 5 reads the settings of pictures in the first if they are nested in it, 4.56.2 in the second: ours
# must not stand beside other settings.
IMAGE_FILES_REPLACED = ("processor_config.json", *IMAGE_FILES)
PROCESSOR_FILES = (*TOKENIZER_FILES, *IMAGE_FILES_REPLACED)

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
_FOREIGN = {
    ".msgpack": "Flax weights of transformers",
    ".h5": "TensorFlow weights",
    ".gguf": "GGUF weights",
    ".onnx": "an ONNX graph",
    ".ckpt": "a training checkpoint",
}

T = TypeVar("T")


class CheckpointError(ValueError):
    """Weights that cannot be used as they are; the message lists every fault that was found."""

    def __init__(self, subject: str, faults: Sequence[str] = ()):
        """Join faults to one message.

        Args:
            subject: a whole sentence where `faults` is empty, else what the faults belong to (a file).
            faults: one sentence each, with what was expected and what was found.
        """
        self.faults = tuple(faults)
        if not faults:
            message = subject
        elif len(faults) == 1:
            message = f"{subject}: {faults[0]}"
        else:
            message = "\n  - ".join([f"{subject}: {len(faults)} faults", *faults])
        super().__init__(message)


def weights_in(folder: Path) -> Path:
    """Returns the weights that are read in a folder: of `WEIGHT_FILES` the first that exists, or `orbax_params`.

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
        sentences.append(f"{shards[0]} is a shard: the .index.json that belongs to it is missing")
    elif other := [name for name in names if name.endswith(WEIGHT_SUFFIXES)]:
        sentences.append(f"If {other[0]} holds the weights, pass the path of that file")
    return ". ".join(sentences)


def model_files(folder: Path) -> tuple[str, ...]:
    """Returns the names of config.json and all that a reader may take for weights of a folder, for `Change.install`."""
    return (CONFIG_FILE, ORBAX, *WEIGHT_FILES, *_shards(folder), *_left_by_0_1_0(folder))


def _shards(folder: Path) -> list[str]:
    """Returns what the indices in a folder name, if it has the name of a shard."""
    found: set[str] = set()
    for name in WEIGHT_FILES:
        if name.endswith(".index.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
                found |= set(parse_json((folder / name).read_bytes())["weight_map"].values())
    return sorted(name for name in found if _SHARD.fullmatch(name))


def _left_by_0_1_0(folder: Path) -> list[str]:
    """Returns the temporary names of weights whose save was killed."""
    names = {entry.name: staged_name(entry.name) for entry in folder.iterdir()}
    return sorted(name for name, of in names.items() if of and (of in WEIGHT_FILES or _SHARD.fullmatch(of)))


def read_whole(folder: str | os.PathLike[str], read: Callable[[], T]) -> T:
    """Returns what a function reads in a checkpoint's folder, all of it from before or from after any save there.

    Raises:
        OSError: see `whole.read_whole`.
    """
    return whole.read_whole(Path(folder), (CONFIG_FILE, ORBAX, *WEIGHT_FILES, *PROCESSOR_FILES), read)
