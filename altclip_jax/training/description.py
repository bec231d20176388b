"""What a run leaves written of itself, and whether it may go on with what it is told today.

A description has every setting, the files that are learned from, and what wrote it. It stands in each checkpoint, and
as config.json in the run's folder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from altclip_jax.data.files import find_files, match_names, name_within
from altclip_jax.training.config import RunConfig, SourceSettings
from altclip_jax.version import __version__

Files = list[list[Any]]  # of a source, in order: [name, bytes]

FORMAT = 2  # of a description; release 0.1.0 said no number, and named files by their absolute paths
# Settings that came after release 0.1.0, and what a run did before there were any. It stays so whatever the default
# becomes: with it a run that says nothing of a setting goes on. Every new setting gets its row.
BEFORE: dict[str, Any] = {
    "data.orientation": "stored",
    "data.use_fast": False,
    "evaluation.retrieval": {},
    "evaluation.zero_shot": {},
}
# What may change between the halves of an interrupted run: nothing that decides the numbers.
_FREE_TO_CHANGE = (
    "written_by",
    "folder",
    "data.threads",
    "data.prefetch",
    "data.max_bad_share",
    "data.evaluate",
    "checkpoints",
    "logging",
    "mesh",
    "evaluation",
)
_MODELS = ("model.source", "teacher.source")


def files_of(sources: Sequence[SourceSettings]) -> list[Files]:
    """Returns for each source the files that it names and their bytes.

    Raises:
        FileNotFoundError: some of them do not exist; all are named.
    """
    found: list[list[Path]] = []
    missing = []
    for source in sources:
        try:
            found.append(find_files(source.path))
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing:
        raise FileNotFoundError("\n".join(missing))
    return [name_within([[path, path.stat().st_size] for path in paths]) for paths in found]


def describe(config: RunConfig, files: Sequence[Files]) -> dict[str, Any]:
    """Returns a description, as JSON can say it.

    Args:
        config: What the run is.
        files: From `files_of`, of `data.train`: they are looked at once, when the run starts.
    """
    by = {"altclip_jax": __version__, "format": FORMAT}
    return {"written_by": by, **config.to_dict(), "files": list(files)}


def read_description(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a description that any release wrote as this one would have written it.

    Raises:
        ValueError: a later release wrote it, or none did.
    """
    values = copy.deepcopy(dict(found))
    by = values.setdefault("written_by", {"altclip_jax": "0.1.0", "format": 1})
    if not isinstance(by, dict) or not isinstance(by.get("format"), int) or "altclip_jax" not in by:
        raise ValueError(f"The run says that it was written by {by!r}: expected the altclip_jax and the format.")
    if by["format"] > FORMAT:
        raise ValueError(
            f"The run was written by altclip_jax {by['altclip_jax']} in a form that this release does not know (form"
            f" {by['format']}): go on with that release, or a later one."
        )
    for name, value in BEFORE.items():
        table, key = _table_of(values, name)
        table.setdefault(key, copy.copy(value))
    if by["format"] == 1 and "files" in values:
        sizes = values["files"]
        values["files"] = [
            name_within([[path, sizes[path]] for path in match_names(source["path"], sizes)])
            for source in values["data"]["train"]
        ]
    return values


def config_of(found: Mapping[str, Any], subject: str) -> RunConfig:
    """Returns the configuration in a description.

    Raises:
        ValueError: it is none, or a later release wrote it.
    """
    values = read_description(found)
    return RunConfig.from_values({name: values[name] for name in values if name in RunConfig.model_fields}, subject)


def keep_own_past(config: RunConfig, found: Mapping[str, Any]) -> RunConfig:
    """Returns what a run goes on with: what came after release 0.1.0 and is not said today is as the run did it.

    Args:
        config: What is said today.
        found: From `read_description`.
    """
    values = config.to_dict()
    for name in BEFORE:
        if not config.says(name) and not _is_free(name):
            (ours, key), (theirs, _) = _table_of(values, name), _table_of(found, name)
            if key in theirs:  # not in a table that this stage has not
                ours[key] = theirs[key]
    return RunConfig.from_values(values)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Returns "setting: theirs -> ours" for what decides the numbers of a run and is not the same in both.

    Where a file or a model lies is no difference: files are the same by their names within their source, their bytes
    and their order, and a model by the name of its folder. Where one of the two knows no files, their paths tell.

    Args:
        ours: A description.
        theirs: Another one, from `read_description`.
    """
    unread = "path" if "files" in ours and "files" in theirs else "files"
    our, their = flatten_description(ours), flatten_description(theirs)
    lines = []
    for name in sorted({*our, *their}):
        was, now = their.get(name, "absent"), our.get(name, "absent")
        of_source = name.split(".")[3] if name.startswith("data.train.") else None
        if of_source == unread or _is_free(name) or _are_same(name, was, now):
            continue
        if of_source == "files" and isinstance(was, list):  # in another order: the first that differs tells it
            place = next(place for place, (one, other) in enumerate(zip(was, now, strict=True)) if one != other)
            name, was, now = f"{name}, place {place}", was[place], now[place]
        lines.append(f"{name}: {was!r} -> {now!r}")
    return lines


def flatten_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a description by dotted names, those of its sources and their files among them."""
    values = _flat({name: value for name, value in description.items() if name != "files"})
    for place, source in enumerate(values.pop("data.train", [])):
        values |= _flat(source, f"data.train.{place}.")
    for place, files in enumerate(description.get("files", [])):
        here = f"data.train.{place}.files"
        values |= {f"{here}.{name}": size for name, size in files}
        values[here] = [name for name, _ in files]
    return values


def features_of(sources: Sequence[SourceSettings], **settings: Any) -> dict[str, Any]:
    """Returns what features are computed of, wherever it lies.

    A file is another one if its name within its source, its bytes or the time of its last change is another.

    Args:
        sources: With the files.
        settings: What matters beside, by dotted names.
    """
    described = []
    for source in sources:
        files = [[path, (state := path.stat()).st_size, state.st_mtime_ns] for path in find_files(source.path)]
        described.append(_without_place({**source.model_dump(mode="json"), "files": files}))
    return {"sources": described, **settings}


def read_features_of(found: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `features_of` gives today for what any release wrote.

    Args:
        found: What it wrote.
        settings: What matters today. Release 0.1.0 did not say by which teacher its features were computed: it is taken
            for today's, and some features are computed again and compared before all are believed.
    """
    before = {name: BEFORE.get(name, value) for name, value in settings.items()}
    return {**before, **found, "sources": [_without_place(source) for source in found["sources"]]}


def _without_place(source: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in source.items() if name not in ("path", "weight")}
    return {**kept, "files": name_within(source["files"])}


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in _FREE_TO_CHANGE)


def _are_same(name: str, was: Any, now: Any) -> bool:
    if name.endswith(".files") and name.startswith("data.train."):
        return was == now or sorted(was) != sorted(now)  # what is not in both is told by its own name
    if name in _MODELS and any(PurePath(str(place)).is_absolute() for place in (was, now)):
        return PurePath(str(was)).name == PurePath(str(now)).name
    return bool(was == now)


def _table_of(values: Any, name: str) -> tuple[dict[str, Any], str]:
    """Returns the table that a dotted name lies in, made if need be, and its last part; for null a table of nobody."""
    *parents, last = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if values is None:
            return {}, last
    return values, last


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested values by dotted names."""
    if isinstance(values, Mapping) and values:
        return {name: leaf for key, value in values.items() for name, leaf in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): list(values) if isinstance(values, tuple) else values}
