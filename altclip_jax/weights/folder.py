"""Load and save a folder or hub repository for a model class that is handed in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from altclip_jax.files import hub
from altclip_jax.files.checkpoint_folder import (
    CONFIG_FILE,
    ORBAX,
    PROCESSOR_FILES,
    WEIGHT_FILES,
    model_files,
    read_whole,
    weights_in,
)
from altclip_jax.files.json_file import json_bytes
from altclip_jax.files.ownership import refuse_ours
from altclip_jax.files.whole import Change
from altclip_jax.machine import default_device
from altclip_jax.quantization.files import (
    KEY,
    METADATA,
    check_description,
    check_reach,
    check_scales,
    describe_leaves,
    find_forms,
    read_description,
    say_counts,
)
from altclip_jax.quantization.leaves import is_part, join_leaves, shape_leaves, split_leaves
from altclip_jax.quantization.narrowing import NarrowingError, reaches_further, refuse_infinite, too_large
from altclip_jax.quantization.rules import Form, QuantizationRule, choose_forms
from altclip_jax.weights import rules
from altclip_jax.weights.convert import (
    Params,
    check_params,
    flatten,
    params_from_tensors,
    tensor_sources,
    unflatten,
)
from altclip_jax.weights.readers import Checkpoint, open_checkpoint
from altclip_jax.weights.safetensors_file import TensorSource, add_weights

CONFIG = hub.Files(CONFIG_FILE, ((CONFIG_FILE,),))
_SHARDS = {
    "model.safetensors.index.json": "model-*.safetensors",
    "pytorch_model.bin.index.json": "pytorch_model-*.bin",
}
WEIGHTS = hub.Files("weights", tuple((name, *filter(None, [_SHARDS.get(name)])) for name in WEIGHT_FILES))


def load(
    model_class: Any,
    source: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    quantize: str | Sequence[QuantizationRule] | None = None,
    place: Callable[[Params], Params] | None = None,
    **fields: Any,
) -> tuple[Any, Params]:
    """Reads config.json and the weights beside it; see `PretrainedModel.from_pretrained`.

    `place` gives the shardings of a tree of shapes; None puts all parameters on one device.
    """
    stored, compute = dtypes(dtype, param_dtype)
    folder = hub.fetch(
        source, CONFIG, WEIGHTS, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir
    )
    return read_whole(folder, lambda: _load(model_class, folder, stored, compute, quantize, place, fields))


def _load(
    model_class: Any,
    folder: Path,
    stored: Any,
    compute: Any,
    quantize: str | Sequence[QuantizationRule] | None,
    place: Callable[[Params], Params] | None,
    fields: Mapping[str, Any],
) -> tuple[Any, Params]:
    config = model_class.config_class.from_json(folder)
    model = model_class(config, dtype=compute, param_dtype=stored, **fields)
    shapes = flatten(model.param_shapes())
    described = read_description(folder)
    forms = {} if quantize is None else _forms_to_make(folder, described, quantize, shapes, model.params_prefix)

    def place_all(forms: Mapping[str, Form]) -> Params | None:
        return None if place is None else place(unflatten(shape_leaves(shapes, forms)))

    weights = weights_in(folder)
    if weights.name == ORBAX:
        has = stored_forms(folder, model, None)
        expected = unflatten(shape_leaves(shapes, has))
        params = load_orbax(weights, expected, place_all(has), dtype=stored)
    else:
        with open_checkpoint(weights) as checkpoint:
            has = stored_forms(folder, model, checkpoint)
            params = params_from_tensors(
                checkpoint.infos,
                checkpoint.read,
                unflatten(shape_leaves(shapes, has)),
                table=model_class.rule_table,
                prefix=model_class.params_prefix,
                dtype=stored,
                subject=_subject(folder, checkpoint),
                shardings=place_all(has | forms),
                forms=forms,
            )
    check_scales(flatten(params), str(folder))
    check_reach(flatten(params), str(folder))
    return model, params


def _forms_to_make(
    folder: Path,
    described: Mapping[str, Any] | None,
    quantize: str | Sequence[QuantizationRule],
    shapes: Mapping[str, Any],
    prefix: str,
) -> dict[str, Form]:
    if described is not None:
        raise ValueError(
            f"{folder} is quantized already ({say_counts(described.get('tensors'))}): leave out quantize={quantize!r},"
            " or start from the float checkpoint."
        )
    forms = choose_forms(shapes, quantize, prefix)
    if weights_in(folder).name == ORBAX:
        raise ValueError(
            f"{folder} is an orbax checkpoint, which is not quantized while it is read: make safetensors of it with"
            " `altclip convert` and quantize these."
        )
    return forms


def stored_forms(folder: Path, model: Any, checkpoint: Checkpoint | None) -> dict[str, Form]:
    """Returns the form of each parameter of a model that a folder stores in few bits.

    Args:
        folder: The folder, with config.json and weights.
        model: The model whose parameters are meant.
        checkpoint: The open weights; None for an orbax checkpoint.

    Raises:
        CheckpointError: this version cannot read them, or config.json and the weights disagree.
    """
    described, shapes = read_description(folder), flatten(model.param_shapes())
    if checkpoint is None:
        tree = flatten(orbax_shapes(folder / ORBAX))
        check_description(described, {path: leaf.dtype for path, leaf in tree.items()}, str(folder / ORBAX))
        return find_forms(tree, shapes)
    infos = checkpoint.infos
    dtypes = {name: info.dtype for name, info in infos.items()}
    check_description(described, dtypes, _subject(folder, checkpoint))
    make: Any = jax.ShapeDtypeStruct
    found: dict[str, Any] = {}
    for name, info in infos.items():
        rule = model.rule_table.path_of(model.rule_table.canonical_name(name)) if is_part(name) else None
        if rule is not None and rule[0].startswith(model.params_prefix):
            path = rule[0].removeprefix(model.params_prefix)
            found[path] = make(rules.param_shape(info.shape, rule[1]), info.dtype)
    return find_forms(found, shapes)


def _subject(folder: Path, checkpoint: Checkpoint) -> str:
    return str(checkpoint.files[0] if len(checkpoint.files) == 1 else folder)


def save(
    model: Any,
    folder: str | os.PathLike[str],
    params: Params,
    *,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = 5_000_000_000,
    processor: Mapping[str, bytes] | None = None,
    check: Callable[[Path], object] = lambda staged: None,
) -> None:
    """Writes weights and config.json as transformers does; see `PretrainedModel.save_pretrained`.

    Args:
        model: The model that the parameters are of.
        folder: The folder to write.
        params: The tree of parameters.
        dtype: Dtype of the floats in the file; None keeps theirs.
        max_shard_bytes: The most bytes in one file.
        processor: The files of a processor that take the place of the folder's in the same step; None: they stay.
        check: Called with a folder that holds all that is new; what it raises leaves everything as it was.
    """
    refuse_ours(Path(folder), "a model")
    sources = tensor_sources(
        params, model.param_shapes(), table=model.rule_table, prefix=model.params_prefix, dtype=dtype
    )
    described = describe_leaves(flatten(params).values())
    how = {} if described is None else {"metadata": METADATA}
    floats = [source.dtype for source in sources if not is_part(source.name)]
    widest = max(floats, key=lambda item: item.itemsize)
    with Change(folder) as change:
        try:
            add_weights(change, sources, max_shard_bytes=max_shard_bytes, **how)
        except NarrowingError:
            refuse_infinite("The file", list(_overflows(sources)))
            raise
        _install(change, _config_of(model, widest, described), processor, check)


def _overflows(sources: Iterable[TensorSource]) -> Iterator[str]:
    """Says of each tensor that does not fit into its dtype which number is too large."""
    for source in sources:
        try:
            source.load()
        except NarrowingError as error:
            yield f"{source.name} {error}"


def save_orbax(
    model: Any,
    folder: str | os.PathLike[str],
    params: Params,
    *,
    processor: Mapping[str, bytes] | None = None,
    check: Callable[[Path], object] = lambda staged: None,
) -> None:
    """Writes the parameter tree as orbax does, in `folder`/orbax_params, and config.json beside it; see `save`."""
    import orbax.checkpoint as ocp

    refuse_ours(Path(folder), "a model")
    check_params(params, model.param_shapes())
    leaves = list(flatten(params).values())
    with Change(folder) as change:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(change.staged.absolute() / ORBAX, split_leaves(params))
        _install(change, _config_of(model, np.dtype(leaves[0].dtype), describe_leaves(leaves)), processor, check)


def _install(
    change: Change, config: bytes, processor: Mapping[str, bytes] | None, check: Callable[[Path], object]
) -> None:
    for name, data in {CONFIG_FILE: config, **(processor or {})}.items():
        change.add(name, [data])
    check(change.staged)
    change.install(model_files(change.folder) + (() if processor is None else PROCESSOR_FILES))


def orbax_shapes(folder: Path) -> Any:
    """Returns the tree in an orbax checkpoint as shapes and dtypes; no array is read.

    Raises:
        FileNotFoundError: the checkpoint has no description of its arrays.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        metadata: Any = checkpointer.metadata(folder.absolute())
    metadata = getattr(metadata, "item_metadata", metadata)  # older orbax gives the tree's directly
    if metadata is None:
        raise FileNotFoundError(f"no description of the arrays in {folder}")
    return metadata.tree


def load_orbax(
    folder: Path, expected: Params, shardings: Params | None = None, *, dtype: DTypeLike = jnp.float32
) -> Params:
    """Reads a parameter tree that `save_orbax` wrote, in the dtypes of `expected`, onto one device or as placed.

    Quantized leaves give back arrays of `dtype`.
    """
    import orbax.checkpoint as ocp

    wanted, stored = split_leaves(expected), orbax_shapes(folder)
    check_params(stored, wanted)
    with ocp.StandardCheckpointer() as checkpointer:
        # without an explicit place orbax would restore onto the devices that wrote the checkpoint
        device = jax.sharding.SingleDeviceSharding(default_device())
        places = jax.tree.map(lambda leaf: device, wanted) if shardings is None else split_leaves(shardings)
        abstract: Any = jax.ShapeDtypeStruct
        target = jax.tree.map(lambda leaf, at: abstract(leaf.shape, leaf.dtype, sharding=at), wanted, places)
        params: Params = checkpointer.restore(folder.absolute(), target)
    _refuse_narrowed(folder, flatten(params), flatten(stored), flatten(places))
    return join_leaves(params, dtype)


def _refuse_narrowed(
    folder: Path, params: Mapping[str, Any], stored: Mapping[str, Any], places: Mapping[str, Any]
) -> None:
    """Raises CheckpointError naming parameters that orbax made infinite; those that are infinite in the files stay.

    orbax changes dtypes while it reads, so a parameter with infinite numbers is read again in the dtype of the files.
    """
    import orbax.checkpoint as ocp

    faults = []
    for path, leaf in params.items():
        if not reaches_further(stored[path].dtype, leaf.dtype) or not jnp.isinf(leaf).any():
            continue
        abstract: Any = jax.ShapeDtypeStruct
        wanted = unflatten({path: abstract(leaf.shape, stored[path].dtype, sharding=places[path])})
        how = ocp.args.PyTreeRestore(
            item=wanted, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)
        )
        with ocp.PyTreeCheckpointer() as checkpointer:
            values = jnp.abs(flatten(checkpointer.restore(folder.absolute(), args=how))[path])
        lost = jnp.where(jnp.isinf(leaf) & jnp.isfinite(values), values, 0).max()
        if lost > 0:
            faults.append(f"{path} {too_large(float(lost), leaf.dtype)}")
    refuse_infinite(str(folder), faults)


def dtypes(dtype: DTypeLike | None, param_dtype: DTypeLike | None) -> tuple[Any, Any]:
    """Returns (stored, compute) dtypes, each float32 for None.

    Raises:
        ValueError: one of them is not a floating-point dtype this library computes in.
    """
    return _float_dtype("param_dtype", param_dtype), _float_dtype("dtype", dtype)


def _float_dtype(name: str, value: DTypeLike | None) -> Any:
    try:
        dtype = jnp.dtype(jnp.float32 if value is None else value)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"{name}={value!r} must be 'float32', 'bfloat16' or 'float16'.")
    return dtype


def _config_of(model: Any, stored: np.dtype[Any], quantized: Mapping[str, Any] | None) -> bytes:
    """Returns a config.json with what a save decides: the architecture, and the dtype or few bits of the weights."""
    extra = {key: value for key, value in model.config.extra.items() if key not in ("torch_dtype", KEY)}
    extra |= {"architectures": [type(model).__name__], "dtype": stored.name}
    if quantized is not None:
        extra[KEY] = dict(quantized)
    return json_bytes(model.config.replace(extra=extra).to_dict())
