"""Load and save a folder or hub repository for a model class that is handed in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from altclip_jax import hub
from altclip_jax.weights.convert import Params, check_params, params_from_tensors, tensor_sources
from altclip_jax.weights.readers import WEIGHT_FILES, open_checkpoint
from altclip_jax.weights.writers import save_sharded

ORBAX_FOLDER = "orbax_params"
_SHARDS = ("model-*.safetensors", "pytorch_model-*.bin")


def load(
    model_class: Any,
    source: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    place: Callable[[Params], Params] | None = None,
    **fields: Any,
) -> tuple[Any, Params]:
    """Reads config.json and the weights beside it; see `PretrainedModel.from_pretrained`.

    `place` gives the shardings of a tree of shapes; without it all parameters are on one device.
    """
    stored, compute = dtypes(dtype, param_dtype)
    folder = fetch(source, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir)
    config = model_class.config_class.from_json(folder)
    model = model_class(config, dtype=compute, param_dtype=stored, **fields)
    expected = model.param_shapes()
    shardings = None if place is None else place(expected)
    if (folder / ORBAX_FOLDER).is_dir():
        return model, load_orbax(folder / ORBAX_FOLDER, expected, shardings)
    with open_checkpoint(folder) as checkpoint:
        params = params_from_tensors(
            checkpoint.infos,
            checkpoint.read,
            expected,
            table=model_class.rule_table,
            prefix=model_class.params_prefix,
            dtype=stored,
            subject=str(checkpoint.files[0] if len(checkpoint.files) == 1 else folder),
            shardings=shardings,
        )
    return model, params


def save(
    model: Any,
    folder: str | os.PathLike[str],
    params: Params,
    *,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes weights and config.json as transformers does; see `PretrainedModel.save_pretrained`."""
    sources = tensor_sources(
        params, model.param_shapes(), table=model.rule_table, prefix=model.params_prefix, dtype=dtype
    )
    save_sharded(folder, sources, max_shard_bytes=max_shard_bytes)
    widest = max((source.dtype for source in sources), key=lambda item: item.itemsize)
    write_config(model, folder, widest)


def save_orbax(model: Any, folder: str | os.PathLike[str], params: Params, *, dtype: DTypeLike | None = None) -> None:
    """Writes the parameter tree as an orbax checkpoint in `folder`/orbax_params, and config.json beside it.

    Raises:
        FileExistsError: the folder holds such a checkpoint already; orbax does not replace one atomically.
    """
    import orbax.checkpoint as ocp

    check_params(params, model.param_shapes())
    if dtype is not None:
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    target = Path(folder).absolute() / ORBAX_FOLDER
    if target.exists():
        raise FileExistsError(f"{target} exists already: remove it or choose another folder.")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target, params)
    write_config(model, folder, np.dtype(jax.tree.leaves(params)[0].dtype))


def orbax_shapes(folder: Path) -> Any:
    """Returns the tree in an orbax checkpoint as shapes and dtypes; no array is read.

    Raises:
        FileNotFoundError: it does not say.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        metadata: Any = checkpointer.metadata(folder.absolute())
    metadata = getattr(metadata, "item_metadata", metadata)  # older orbax gives the tree's directly
    if metadata is None:
        raise FileNotFoundError(f"no description of the arrays in {folder}")
    return metadata.tree


def load_orbax(folder: Path, expected: Params, shardings: Params | None = None) -> Params:
    """Reads a parameter tree that `save_orbax` wrote, in the dtypes of `expected`, onto one device or as placed."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        check_params(orbax_shapes(folder), expected)
        # without an explicit place orbax would restore onto the devices that wrote the checkpoint
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda leaf: device, expected) if shardings is None else shardings
        abstract: Any = jax.ShapeDtypeStruct
        target = jax.tree.map(lambda leaf, at: abstract(leaf.shape, leaf.dtype, sharding=at), expected, shardings)
        params: Params = checkpointer.restore(folder.absolute(), target)
    return params


def fetch(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Returns the folder of a checkpoint, downloaded when `source` is a hub id: safetensors if there are any."""
    return hub.fetch(
        source,
        [("config.json",), *((name, *_shards_of(name)) for name in WEIGHT_FILES)],
        revision=revision,
        local_files_only=local_files_only,
        cache_dir=cache_dir,
    )


def _shards_of(name: str) -> tuple[str, ...]:
    if not name.endswith(".index.json"):
        return ()
    return (_SHARDS[0],) if "safetensors" in name else (_SHARDS[1],)


def dtypes(dtype: DTypeLike | None, param_dtype: DTypeLike | None) -> tuple[Any, Any]:
    """Returns (stored, compute) dtypes: `dtype` sets both, `param_dtype` overrides the stored one.

    Raises:
        ValueError: one of them is not a floating-point dtype this library computes in.
    """
    compute = _float_dtype("dtype", jnp.float32 if dtype is None else dtype)
    return _float_dtype("param_dtype", compute if param_dtype is None else param_dtype), compute


def _float_dtype(name: str, value: DTypeLike) -> Any:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"{name}={value!r} must be 'float32', 'bfloat16' or 'float16'.")
    return dtype


def write_config(model: Any, folder: str | os.PathLike[str], stored: np.dtype[Any]) -> None:
    """Writes config.json with what this save decided: the architecture and the dtype of the weights."""
    extra = {key: value for key, value in model.config.extra.items() if key != "torch_dtype"}
    extra |= {"architectures": [type(model).__name__], "dtype": stored.name}
    model.config.replace(extra=extra).save(folder)
