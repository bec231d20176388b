"""The files of a checkpoint's folder: which there are for what, which one is read, and what a save replaces.

Of the weights the first that is there is read; only `orbax_params` is refused beside another form, since nothing that
this library writes leaves them both. Of an XLM-RoBERTa's vocabularies sentencepiece.bpe.model is read before
tokenizer.json, of a CLIP's tokenizer.json before the others. A save removes what it does not write of its own kind.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from altclip_jax.files import whole
from altclip_jax.files.json_file import parse_json
from altclip_jax.files.staging import staged_name

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
# Later versions of transformers keep the settings of pictures in the first, and prefer them.
IMAGE_FILES_REPLACED = ("processor_config.json", *IMAGE_FILES)
PROCESSOR_FILES = (*TOKENIZER_FILES, *IMAGE_FILES_REPLACED)

T = TypeVar("T")


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
