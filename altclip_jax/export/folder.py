"""A folder from which a server runs a model: programs, weights, tokenizer, and a manifest that tells of them all."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.export
import numpy as np

from altclip_jax.export.executables import check_sizes, compile_program, fingerprint
from altclip_jax.export.programs import PictureForm, Program, limits, lower, programs_of
from altclip_jax.files.ownership import refuse_others
from altclip_jax.files.whole import Change, settle
from altclip_jax.inference.encoder import length_buckets
from altclip_jax.inference.pipeline import AltCLIP
from altclip_jax.processing.processor import AltCLIPProcessor
from altclip_jax.version import __version__
from altclip_jax.weights.safetensors_file import TensorSource, safetensors_blocks

MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
FORMAT, VERSION = "altclip_jax.programs", 1
_OF_EARLIER_EXPORTS = re.compile(r"(text|image|both)\.jax_export|(text|image)-[\dx]+\.executable|weights\.safetensors")


def export_program(
    clip: AltCLIP,
    folder: str | os.PathLike[str],
    *,
    programs: Sequence[str] = ("text", "image"),
    normalize: bool = True,
    pictures: PictureForm = "float32",
    weights: Literal["beside", "inside"] = "beside",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    executables: Sequence[tuple[int, ...]] = (),
) -> dict[str, Any]:
    """Writes a model as programs that run without this library, and returns the manifest that stands beside them.

    The number of texts and of pictures and the length of texts are left open. The folder gets the processor's files,
    too. All files are written, or none; those of an earlier export there are replaced.

    Args:
        clip: The model, its parameters (which may be in few bits) and its processor.
        folder: Where to: new, empty, or with programs.
        programs: "text", "image", and "both" for one program of both towers, which also gives logits_per_image.
        normalize: Give embeddings of unit length; False: as the projections give them, and no logits.
        pictures: How the image programs take them: "float32", as `AltCLIPProcessor` prepares them, or "uint8", resized
            and cropped, (images, height, width, 3), which they rescale and normalise themselves.
        weights: "beside" the programs, once for all, or "inside" each of them.
        platforms: What they run on: "cpu", "cuda", "rocm", "tpu"; none needs to be here.
        executables: (texts, length) or (images,) for which the programs "text" and "image" are also written as compiled
            here; they run only where jax, its version, and the processor or chip are the same.

    Raises:
        ValueError: an argument that makes no sense, a processor that does not fit the model, more weights than a
            program can have inside.
        FileExistsError: the folder holds something else than programs.
        OSError: the file system refused.
    """
    if weights not in ("beside", "inside"):
        raise ValueError(f"weights={weights!r} is neither 'beside' nor 'inside'.")
    folder, inside = Path(folder), weights == "inside"
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} is the folder of a model or a run: name another one for the programs.")
    processor, sizes = clip.processor, limits(clip.model)
    wanted = [check_sizes(tuple(shape), sizes) for shape in executables]
    made = programs_of(clip.model, clip.params, processor.image_processor, programs, unit=normalize, pictures=pictures)
    for shape in wanted:
        if _program_for(shape) not in programs:
            raise ValueError(f"An executable for {shape} is one of the program {_program_for(shape)!r}: export that.")
    settle(folder)
    refuse_others(folder, "programs")
    with Change(folder) as change:
        files = _Files(change)
        described: dict[str, Any] = {}
        compiled_ones = []
        for program in made:
            exported = lower(program, sizes, platforms, inside=inside)
            described[program.name] = {
                **files.add(f"{program.name}.jax_export", [bytes(exported.serialize())]),
                "weights": [] if inside else sorted(program.weights),
                "inputs": [given._asdict() for given in program.inputs],
                "outputs": [given._asdict() for given in program.outputs],
            }
            for shape in wanted:
                if _program_for(shape) == program.name:
                    name = f"{program.name}-{'x'.join(map(str, shape.values()))}.executable"
                    written = files.add(name, [compile_program(program, exported, shape, inside=inside)])
                    compiled_ones.append({"program": program.name, "sizes": shape, **written})
        manifest = {
            **_origin(clip, exported, normalize, pictures),
            "axes": {name: {"min": least, "max": most} for name, (least, most) in sizes.items()},
            "programs": described,
            "weights": None if inside else files.add(WEIGHTS, _weight_blocks(made)),
            "executables": {"machine": fingerprint(), "files": compiled_ones} if compiled_ones else None,
            "texts": _texts(clip, files),
        }
        change.add(MANIFEST, [(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()])
        earlier = sorted(path.name for path in folder.iterdir() if _OF_EARLIER_EXPORTS.fullmatch(path.name))
        change.install([MANIFEST, *earlier])
    return manifest


class _Files:
    """Adds files to a change, and tells what a manifest says of each."""

    def __init__(self, change: Change):
        self._change = change

    def add(self, name: str, blocks: Iterable[bytes | memoryview]) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0

        def count() -> Iterator[bytes | memoryview]:
            nonlocal size
            for block in blocks:
                digest.update(block)
                size += len(block)
                yield block

        self._change.add(name, count())
        return {"file": name, "bytes": size, "sha256": digest.hexdigest()}


def _program_for(sizes: dict[str, int]) -> str:
    return "text" if "texts" in sizes else "image"


def _weight_blocks(programs: Sequence[Program]) -> Iterator[bytes | memoryview]:
    leaves = {name: leaf for program in programs for name, leaf in program.weights.items()}

    def source(name: str, leaf: Any) -> TensorSource:
        return TensorSource(name, tuple(leaf.shape), np.dtype(leaf.dtype), lambda: np.asarray(leaf))

    return safetensors_blocks([source(name, leaf) for name, leaf in leaves.items()], {"format": FORMAT})


def _origin(clip: AltCLIP, exported: jax.export.Exported, normalize: bool, pictures: PictureForm) -> dict[str, Any]:
    config: Any = jax.config
    scale = float(np.exp(np.asarray(clip.params["logit_scale"], np.float32)))
    return {
        "format": FORMAT,
        "version": VERSION,
        "made_by": {"altclip_jax": __version__, "jax": jax.__version__},
        "calling_convention_version": exported.calling_convention_version,
        "model": clip.name,
        "platforms": list(exported.platforms),
        "matmul_precision": config.jax_default_matmul_precision or "default",
        "dtype": np.dtype(clip.model.dtype).name,
        "normalized": normalize,
        "logit_scale": scale,
        "pictures": pictures,
    }


def _texts(clip: AltCLIP, files: _Files) -> dict[str, Any]:
    """Adds the processor's files, and returns how texts become ids."""
    pictures = clip.processor.image_processor.orient("exif")  # as AltCLIP does, and so that the file says it
    there = AltCLIPProcessor(pictures, clip.processor.tokenizer).files()
    for name, data in sorted(there.items()):
        files.add(name, [data])
    tokenizer, limit = clip.processor.tokenizer, clip.text_limit
    prefix, suffix = tokenizer.around
    return {
        "tokenizer": "tokenizer.json" if "tokenizer.json" in there else None,
        "max_length": limit,
        "padded_to": length_buckets(limit),
        "vocabulary": clip.model.config.text_config.vocab_size,
        "prefix": prefix,
        "suffix": suffix,
        "padding": tokenizer.pad_token_id,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }
