"""What `altclip info` and `altclip convert` do: tell what is in a checkpoint, and turn one form into another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from altclip_jax.config import is_flagai
from altclip_jax.files import hub
from altclip_jax.files.checkpoint_folder import ORBAX, CheckpointError, read_whole, weights_in
from altclip_jax.files.json_file import read_json_object
from altclip_jax.pretrained import (
    AltCLIPModel,
    AltCLIPTextModel,
    AltCLIPVisionModel,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionModel,
    PretrainedModel,
)
from altclip_jax.processing.processor import IMAGE_PROCESSOR, TOKENIZER
from altclip_jax.quantization.files import read_description
from altclip_jax.quantization.leaves import dequantize as dequantize_params
from altclip_jax.quantization.leaves import is_part, shape_leaves, split_leaves
from altclip_jax.quantization.rules import QuantizationRule
from altclip_jax.weights import folder as weights_folder
from altclip_jax.weights.convert import Params, flatten, match_names, unflatten
from altclip_jax.weights.readers import open_checkpoint

Part = Literal["full", "text", "vision"]
Family = Literal["altclip", "clip"]
Form = Literal["safetensors", "orbax"]

MODEL_CLASSES: dict[tuple[Family, Part], type[PretrainedModel]] = {
    ("altclip", "full"): AltCLIPModel,
    ("altclip", "text"): AltCLIPTextModel,
    ("altclip", "vision"): AltCLIPVisionModel,
    ("clip", "full"): CLIPModel,
    ("clip", "text"): CLIPTextModel,
    ("clip", "vision"): CLIPVisionModel,
}
_PROCESSOR_PARTS: dict[Part, tuple[hub.Files, ...]] = {
    "full": (IMAGE_PROCESSOR, TOKENIZER),
    "text": (TOKENIZER,),
    "vision": (IMAGE_PROCESSOR,),
}


class FileSummary(NamedTuple):
    """One file of weights."""

    name: str
    bytes: int
    tensors: int
    dtypes: tuple[str, ...]


class Description(NamedTuple):
    """What a checkpoint is, told by its config.json and the headers of its files."""

    source: str
    part: Part
    config: dict[str, Any]
    parameters: dict[str, int]  # by part of the model, and "total"
    files: tuple[FileSummary, ...]
    quantization: dict[str, Any] | None = None  # the quantization_config of weights in few bits


def kind_of(folder: Path) -> tuple[Family, Part]:
    """Returns which model a config.json, or that of a folder, describes, as a key of `MODEL_CLASSES`."""
    unknown: tuple[Family, Part] = ("altclip", "full")  # reading it as one gives the error that says what is wrong
    try:
        found = read_json_object(folder if folder.is_file() else folder / "config.json")
    except (FileNotFoundError, ValueError):
        return unknown
    if is_flagai(found):
        return "altclip", "full"
    kinds = {kind.config_class.model_type: key for key, kind in MODEL_CLASSES.items()}
    return kinds.get(str(found.get("model_type")), unknown)


def describe(source: str | os.PathLike[str], **where: Any) -> Description:
    """Reads config.json and file headers; no tensor data.

    Raises:
        CheckpointError: the file headers do not fit the configuration, or a file is damaged.
        OSError: there is no such folder, file or repository.
    """
    folder = hub.fetch(source, weights_folder.CONFIG, weights_folder.WEIGHTS, **where)
    return read_whole(folder, lambda: _describe(str(source), folder))


def _describe(source: str, folder: Path) -> Description:
    family, part = kind_of(folder)
    model_class: Any = MODEL_CLASSES[family, part]
    model = model_class(model_class.config_class.from_json(folder))
    shapes = model.param_shapes()
    counts: dict[str, int] = {}
    for path, leaf in flatten(shapes).items():
        top = path.split("/")[0] if part == "full" else f"{part}_model"
        counts[top] = counts.get(top, 0) + int(np.prod(leaf.shape))
    counts["total"] = sum(counts.values())
    files = _summaries(folder, shapes, model)
    return Description(source, part, model.config.to_dict(), counts, files, read_description(folder))


def _summaries(folder: Path, shapes: Params, model: PretrainedModel) -> tuple[FileSummary, ...]:
    weights = weights_in(folder)
    if weights.name == ORBAX:
        weights_folder.stored_forms(folder, model, None)
        size = sum(file.stat().st_size for file in weights.rglob("*") if file.is_file())
        return (FileSummary(weights.name, size, len(flatten(shapes)), ()),)
    with open_checkpoint(weights) as checkpoint:
        forms = weights_folder.stored_forms(folder, model, checkpoint)
        table, prefix = model.rule_table, model.params_prefix
        expected = unflatten(shape_leaves(flatten(shapes), forms))
        match_names(checkpoint.infos, expected, table=table, prefix=prefix, subject=str(folder))
        return tuple(
            FileSummary(
                file.name,
                file.stat().st_size,
                sum(info.file == file for info in checkpoint.infos.values()),
                tuple(sorted({info.dtype.name for info in checkpoint.infos.values() if info.file == file})),
            )
            for file in checkpoint.files
        )


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    part: Part | None = None,
    dtype: DTypeLike | None = None,
    form: Form = "safetensors",
    max_shard_bytes: int = 5_000_000_000,
    quantize: str | Sequence[QuantizationRule] | None = None,
    dequantize: bool = False,
    **where: Any,
) -> Description:
    """Writes a checkpoint in another form, with its processor's files, and reads it back to compare every value.

    A quantized one stays quantized unless `dequantize` is set.

    Args:
        source: A folder or hub id.
        target: The new folder.
        part: "full", "text" or "vision"; None for what the source is.
        dtype: Dtype of the new weights; None keeps the source's if all its tensors share one, else takes float32.
        form: "safetensors", which transformers reads, or "orbax".
        max_shard_bytes: Above this, safetensors are written as several files and an index.
        quantize: "int8", "int4" or rules: store kernels and tables in few bits, as `from_pretrained` does.
        dequantize: Write the float weights that a quantized source gives back, which transformers reads. What
            quantization took from the original stays lost.
        **where: revision, local_files_only, cache_dir of a hub repository.

    Raises:
        ValueError: source and target are the same folder, a tower has no part of that name, or the source cannot be
            quantized or dequantized.
        CheckpointError: the source is damaged, or what was read back differs.
    """
    found, target = hub.find(source, **where), Path(target)
    folder = found.fetch(weights_folder.CONFIG)
    if target.exists() and target.resolve() == folder.resolve():
        raise ValueError(f"{target} is the checkpoint itself: name another folder for the converted one.")
    family, have = kind_of(folder)
    part = have if part is None else part
    if have not in ("full", part):
        raise ValueError(f"{source} holds the {have} tower alone, so no {part} model can be made of it.")
    if dequantize and (quantize is not None or read_description(folder) is None):
        raise ValueError(f"{source} cannot be dequantized: its weights are float, or are to be quantized.")
    found.fetch(weights_folder.WEIGHTS, *_PROCESSOR_PARTS[part])
    stored = _shared_dtype(folder) if dtype is None else dtype
    model_class = MODEL_CLASSES[family, part]

    def read() -> tuple[PretrainedModel, Params, dict[str, bytes]]:
        names = [name for files in _PROCESSOR_PARTS[part] for name in files.names()]
        processor = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
        return *model_class.from_pretrained(folder, param_dtype=stored, quantize=quantize), processor

    model, params, processor = read_whole(folder, read)
    params = dequantize_params(params) if dequantize else params

    def verify(staged: Path) -> None:
        _verify(model_class, staged, stored, params)

    if form == "orbax":
        weights_folder.save_orbax(model, target, params, processor=processor, check=verify)
    else:
        weights_folder.save(model, target, params, max_shard_bytes=max_shard_bytes, processor=processor, check=verify)
    return describe(target)


def _shared_dtype(folder: Path) -> DTypeLike:
    weights = weights_in(folder)
    if weights.name == ORBAX:
        return np.float32
    with open_checkpoint(weights) as checkpoint:
        infos = checkpoint.infos
        floats = {info.dtype for name, info in infos.items() if info.dtype.kind in "fV" and not is_part(name)}
    return np.float32 if len(floats) != 1 or np.dtype(np.float64) in floats else floats.pop()


def _verify(model_class: type[PretrainedModel], target: Path, dtype: DTypeLike, params: Any) -> None:
    _, again = model_class.from_pretrained(target, param_dtype=dtype)
    written, read = flatten(split_leaves(params)), flatten(split_leaves(again))
    different = sorted(written.keys() ^ read.keys()) or [
        path for path in written if np.asarray(written[path]).tobytes() != np.asarray(read[path]).tobytes()
    ]
    if different:
        raise CheckpointError(f"{target} differs from what was written", [f"{path} differs" for path in different])
