"""How a folder says that its weights are quantized, and how the form of each parameter is found in them.

config.json has, beside what every model's has,

    "quantization_config": {"quant_method": "altclip_jax", "version": 1, "group_sizes": [128],
                            "tensors": {"int4": 144, "int8": 8}}

and the weights hold, in the place of NAME, the parts NAME.codes, NAME.scales and for int4 NAME.zero_points, in
PyTorch's layout: see docs/quantization.md.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.files.json_file import read_json_object
from altclip_jax.quantization.leaves import Int4Array, QuantizedArray
from altclip_jax.quantization.narrowing import largest_number, reaches_further, refuse_infinite, too_large
from altclip_jax.quantization.rules import Form

KEY = "quantization_config"
METHOD = "altclip_jax"
VERSION = 1
# in the header of the weights, where transformers reads only "pt": it would fill what it does not find with noise
METADATA = {"format": METHOD}
_SCHEMES = {"int8": "int8", "uint8": "int4"}  # by the dtype of the codes


def read_description(folder: Path) -> dict[str, Any] | None:
    """Returns the quantization_config of a folder, or None where the weights are float.

    Raises:
        CheckpointError: the weights are in a form that this version cannot read.
    """
    found = read_json_object(folder / "config.json").get(KEY)
    if found is None:
        return None
    where = f"{KEY} in {folder / 'config.json'}"
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} is not a JSON object but {found!r}")
    if found.get("quant_method") != METHOD:
        raise CheckpointError(
            f"{where} has quant_method {found.get('quant_method')!r}: such weights are not read here, get the float"
            " ones and quantize them with `altclip convert --quantize`"
        )
    version = found.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"{where} has version {version!r}, and this altclip_jax reads version {VERSION}: install the one that wrote"
            " it, or a later one"
        )
    return found


def refuse_quantized(folder: Path, doing: str) -> None:
    """Raises ValueError where the weights of a folder are quantized and something needs float ones."""
    if read_description(folder) is not None:
        raise ValueError(
            f"{folder} is quantized, and {doing} needs float weights: start from the checkpoint it was made of, or make"
            " one of it with `altclip convert --dequantize`, which is lossy."
        )


def describe_leaves(leaves: Iterable[Any]) -> dict[str, Any] | None:
    """Returns the quantization_config of parameters, or None where all are float."""
    quantized = [leaf for leaf in leaves if isinstance(leaf, QuantizedArray)]
    if not quantized:
        return None
    groups = sorted({leaf.group_size for leaf in quantized if isinstance(leaf, Int4Array)})
    counts = dict(sorted(collections.Counter(leaf.scheme for leaf in quantized).items()))
    described: dict[str, Any] = {"quant_method": METHOD, "version": VERSION, "tensors": counts}
    return described | ({"group_sizes": groups} if groups else {})


def check_description(described: Mapping[str, Any] | None, dtypes: Mapping[str, Any], subject: str) -> None:
    """Compares what config.json says with the parts that the weights hold.

    Args:
        described: From `read_description`.
        dtypes: {name or path: dtype} of all that the weights hold.
        subject: What the error message calls them.

    Raises:
        CheckpointError: they are those of different checkpoints.
    """
    codes = [np.dtype(dtype).name for name, dtype in dtypes.items() if name.endswith("codes")]
    held = dict(sorted(collections.Counter(_SCHEMES.get(name, name) for name in codes).items()))
    said = {} if described is None else described.get("tensors")
    if held != said:
        raise CheckpointError(
            f"config.json says that {say_counts(said)} are quantized, and {subject} holds {say_counts(held)}: the"
            " two are of different checkpoints, or one is damaged"
        )


def find_forms(found: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Form]:
    """Returns the form of each parameter that is stored in few bits.

    Args:
        found: {path: shape and dtype} of the parts in the weights.
        shapes: {path: shape and dtype} of the parameters of a model.
    """
    forms: dict[str, Form] = {}
    for path, leaf in shapes.items():
        codes, scales = found.get(f"{path}/codes"), found.get(f"{path}/scales")
        if codes is None or len(leaf.shape) < 2:
            continue
        forms[path] = Form("int8")
        if np.dtype(codes.dtype) == np.uint8 and path.endswith("/kernel") and len(leaf.shape) == 2:
            width, groups = leaf.shape[0], scales.shape[0] if scales is not None and scales.shape else 0
            # one group where none fits: a shape that is not the file's, which is then named
            forms[path] = Form("int4", width // groups if groups and width % groups == 0 else width)
    return forms


def check_scales(params: Mapping[str, Any], subject: str) -> None:
    """Raises CheckpointError naming quantized parameters whose scales or zero points are damaged."""
    faults = []
    for path, leaf in params.items():
        if not isinstance(leaf, QuantizedArray):
            continue
        if not all(np.isfinite(piece).all() and (piece > 0).all() for piece in _pieces(leaf.scales)):
            faults.append(f"the scales of {path} are not all positive numbers")
        if isinstance(leaf, Int4Array) and not all(np.isfinite(piece).all() for piece in _pieces(leaf.zero_points)):
            faults.append(f"the zero points of {path} are not all finite")
    if faults:
        raise CheckpointError(f"{subject} is damaged", faults)


def check_reach(params: Mapping[str, Any], subject: str) -> None:
    """Raises CheckpointError naming quantized parameters whose values are infinite in the dtype of their leaf."""
    faults = []
    for path, leaf in params.items():
        if not isinstance(leaf, QuantizedArray) or not reaches_further(np.float32, leaf.dtype):
            continue
        # with jnp, since all processes must go the same way
        bound = 128 * float(jnp.max(leaf.scales))
        if isinstance(leaf, Int4Array):
            bound += float(jnp.abs(leaf.zero_points).max())
        if bound > largest_number(leaf.dtype):
            values = jnp.abs(dataclasses.replace(leaf, dtype=np.dtype(np.float32)).dequantize())
            if jnp.isinf(values.astype(leaf.dtype)).any():
                faults.append(f"{path} {too_large(float(values.max()), leaf.dtype)}")
    refuse_infinite(subject, faults)


def _pieces(array: Any) -> Iterable[Any]:
    return (np.asarray(shard.data, np.float32) for shard in array.addressable_shards)


def say_counts(tensors: Any) -> str:
    """Says in words how many tensors have which scheme."""
    if not isinstance(tensors, dict):
        return repr(tensors)
    return " and ".join(f"{count} {scheme} tensors" for scheme, count in tensors.items()) or "no tensor"
