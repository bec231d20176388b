"""The index of a checkpoint that is cut into shards: which tensor is in which file."""

from collections.abc import Collection, Mapping
from pathlib import Path

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.files.staging import is_plain_name
from altclip_jax.weights.file_kind import open_regular
from altclip_jax.weights.stored import MAX_CATALOGUE_BYTES
from altclip_jax.weights.strict_json import load_object

INDEX_SUFFIX = ".index.json"


def read_index(path: Path) -> dict[str, str]:
    """Read the map from tensors to shards, which are plain names of files beside the index.

    A link of such a name may lead anywhere: the cache of the Hugging Face hub consists of links.

    Raises:
        CheckpointError: not a sound index, or a shard that is no plain file name; all of them are listed.
    """
    file = open_regular(path)
    try:
        if file.size > MAX_CATALOGUE_BYTES:
            raise CheckpointError(f"{path} has {file.size} bytes; at most {MAX_CATALOGUE_BYTES} are read")
        content = load_object(file.read_bytes(0, file.size), str(path))
    finally:
        file.close()
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} should have a weight_map from names of tensors to names of files")
    suffix = Path(path.name.removesuffix(INDEX_SUFFIX)).suffix
    faults = []
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            faults.append(f"{name!r} should be in a file, found a {type(shard).__name__} instead of its name")
        elif not is_plain_name(shard) or not shard.endswith(suffix):
            faults.append(f"{name!r} should be in a file *{suffix} beside the index, found {shard!r}")
    if faults:
        raise CheckpointError(str(path), faults)
    return weight_map


def placement_faults(weight_map: Mapping[str, str], shards: Mapping[str, Collection[str]]) -> list[str]:
    """List where the index and the shards disagree.

    Args:
        weight_map: name of the tensor -> name of the shard.
        shards: name of the shard -> the tensors in it, for each shard that could be opened.
    """
    holders: dict[str, list[str]] = {}
    for shard, names in shards.items():
        for name in names:
            holders.setdefault(name, []).append(shard)
    faults = []
    for name, expected in weight_map.items():
        found = holders.get(name, [])
        if not found and expected in shards:
            faults.append(f"{name!r} should be in {expected}, which lacks it")
        elif len(found) > 1:
            faults.append(f"{name!r} is in more than one shard: {', '.join(found)}")
        elif found and found[0] != expected:
            faults.append(f"{name!r} should be in {expected}, found in {found[0]}")
    faults += [
        f"{name!r} is in {', '.join(found)} but not in the index"
        for name, found in holders.items()
        if name not in weight_map
    ]
    return faults
