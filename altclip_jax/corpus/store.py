"""Embeddings in a folder, in parts that are there whole or not at all.

    store.json                   what the embeddings are of, by which a run that goes on knows that it is the same
    part-00000.images.npy        unit embeddings, a row each; in .safetensors "embeddings"; .parquet has the next, too
    part-00000.images.jsonl      what each row is of: item, id, and a caption's text and language
    part-00000.texts.npy, .jsonl the same for captions; where a part has no row of a kind, it has not these files
    part-00000.unreadable.jsonl  items that have no row, and why
    part-00000.json              how many of each; a part is there when this is

Part number k has the items from k * part_items on, whoever makes it: so a run may end anywhere, and go on in any
number of processes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from altclip_jax.corpus.forms import Rows, files_of, json_lines, lines_in, names_of, values_in
from altclip_jax.files.json_file import parse_json, read_json_object, write_bytes, write_json
from altclip_jax.files.ownership import claim
from altclip_jax.files.staging import Staging, refusals_explained, staged_name
from altclip_jax.processing.image import Orientation

Kind = Literal["images", "texts"]
KINDS: tuple[Kind, ...] = ("images", "texts")
DESCRIPTION = "store.json"
_UNREADABLE = "unreadable.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What the embeddings of a store are of.

    Attributes:
        model: The name of the model, for people.
        fingerprint: Of its parameters.
        width: Numbers in an embedding.
        computed: The dtype that the towers compute in.
        stored: The dtype of the rows.
        form: "npy", "safetensors" or "parquet".
        corpus: The identity of the items.
        items: How many there are.
        part_items: How many a part has; the last may have fewer.
        kinds: What is embedded, "images" and "texts" or one of them.
        faults: What was found damaged beside the items: names and reasons.
        orientation: "exif" where pictures are turned as their camera says. Version 0.1.0 said nothing, and turned none.
    """

    model: str
    fingerprint: str
    width: int
    computed: str
    stored: str
    form: str
    corpus: str
    items: int
    part_items: int
    kinds: tuple[str, ...]
    faults: tuple[tuple[str, str], ...] = ()
    orientation: Orientation = "stored"

    def differences(self, other: Description) -> list[str]:
        """Returns a phrase for each thing that is another in the other one."""
        values, others = dataclasses.asdict(self), dataclasses.asdict(other)
        return [
            f"{name} was {values[name]!r} and is {others[name]!r}"
            for name in values
            if values[name] != others[name] and name not in ("model", "faults")
        ]


class Counts(NamedTuple):
    """How many rows of each kind, and items without."""

    images: int = 0
    texts: int = 0
    unreadable: int = 0


class Store:
    """A folder of parts.

    Attributes:
        folder: Where it is.
        description: What it is of.
    """

    def __init__(self, folder: Path, description: Description):
        """Takes a store that is there; see `begin` and `open`."""
        self.folder, self.description = folder, description

    @classmethod
    def begin(cls, folder: Path, description: Description, *, resume: bool) -> Store:
        """Makes a store, or goes on with the one that is there.

        Raises:
            FileExistsError: there is one, and `resume` is not set; or something else is there.
            ValueError: it is of something else; what differs is named.
        """
        claim(folder, "store")
        if not (folder / DESCRIPTION).exists():
            values = {name: _plain(value) for name, value in dataclasses.asdict(description).items()}
            write_json(folder / DESCRIPTION, values)
            return cls(folder, description)
        if not resume:
            raise FileExistsError(
                f"{folder} holds embeddings already: go on with them (--resume), or choose another folder."
            )
        store = cls.open(folder)
        if differences := store.description.differences(description):
            raise ValueError(
                f"{folder} holds embeddings of something else: {'; '.join(differences)}. Choose another folder, or"
                " begin again after removing this one."
            )
        return store

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Opens a store, complete or not.

        Raises:
            FileNotFoundError: there is none.
            ValueError: its description is damaged.
        """
        path = folder / DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}: expected a folder that `altclip embed` has written.")
        values = read_json_object(path)
        try:
            values["kinds"] = tuple(values["kinds"])
            values["faults"] = tuple((str(name), str(reason)) for name, reason in values["faults"])
            return cls(folder, Description(**values))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not what `altclip embed` writes ({error}).") from None

    @property
    def parts(self) -> int:
        """How many parts there are in the end."""
        return -(-self.description.items // self.description.part_items)

    def items_of(self, part: int) -> range:
        """Returns the numbers of a part's items."""
        size = self.description.part_items
        return range(part * size, min((part + 1) * size, self.description.items))

    def missing(self) -> list[int]:
        """Returns the numbers of the parts that are not there."""
        there = {path.name for path in self.folder.glob("part-*.json")}
        return [part for part in range(self.parts) if f"{_stem(part)}.json" not in there]

    def write(self, part: int, rows: Mapping[Kind, Rows], unreadable: Sequence[Mapping[str, Any]]) -> None:
        """Writes a part: when this returns it is on disk, and if it does not the part is not there.

        Args:
            part: Its number.
            rows: By kind, in the order of the items.
            unreadable: What has no row, and why.

        Raises:
            OSError: the file system refused.
        """
        stem, form = _stem(part), self.description.form
        counts = Counts(**{kind: len(found.of) for kind, found in rows.items()}, unreadable=len(unreadable))
        with Staging(self.folder) as staging:
            for kind, found in rows.items():
                for name, blocks in files_of(f"{stem}.{kind}", found, form) if found.of else ():
                    staging.add(name, blocks)
            if unreadable:
                staging.add(f"{stem}.{_UNREADABLE}", json_lines(unreadable))
            items = self.items_of(part)
            told = {"items": [items.start, items.stop], **counts._asdict()}
            staging.add(f"{stem}.json", [(json.dumps(told) + "\n").encode()])
            staging.install()

    def clear(self) -> None:
        """Removes what tries that were killed have left of parts that are not there; nobody else may be at work."""
        stems = {_stem(part) for part in self.missing()}
        endings = {_UNREADABLE, *(name for kind in KINDS for name in names_of(kind, self.description.form))}
        with refusals_explained(self.folder):
            for path in list(self.folder.iterdir()):
                temporary_of = staged_name(path.name)
                stem, _, ending = (temporary_of or path.name).partition(".")
                if stem in stems and (ending in endings or (ending == "json" and temporary_of)):
                    path.unlink(missing_ok=True)

    def counts(self, part: int) -> Counts:
        """Returns how many rows a part has."""
        told = read_json_object(self.folder / f"{_stem(part)}.json")
        return Counts(*(int(told[name]) for name in Counts._fields))

    def total(self) -> Counts:
        """Returns how many rows all parts have that are there."""
        missing = set(self.missing())
        counts = [self.counts(part) for part in range(self.parts) if part not in missing]
        return Counts(*(sum(column) for column in zip(*counts, strict=True))) if counts else Counts()

    def values(self, part: int, kind: Kind) -> Float[np.ndarray, "rows width"]:
        """Returns the embeddings of a part, mapped from the file where its form allows it."""
        if not getattr(self.counts(part), kind):
            return np.zeros((0, self.description.width), self.description.stored)
        return values_in(self.folder, f"{_stem(part)}.{kind}", self.description.form)

    def told(self, part: int, kind: Kind) -> Iterator[dict[str, Any]]:
        """Yields what each row of a part is of."""
        if getattr(self.counts(part), kind):
            for line in self.lines(part, kind).splitlines():
                yield parse_json(line)

    def lines(self, part: int, kind: Kind) -> bytes:
        """Returns the same as lines of JSON, of a part that has rows of the kind."""
        return lines_in(self.folder, f"{_stem(part)}.{kind}", self.description.form)

    def list_unreadable(self) -> Path | None:
        """Writes unreadable.jsonl, all that has no row, if every part is there; returns it if there is any."""
        if self.missing():
            return None
        lines = list(json_lines({"id": name, "reason": reason} for name, reason in self.description.faults))
        for part in range(self.parts):
            path = self.folder / f"{_stem(part)}.{_UNREADABLE}"
            lines += [path.read_bytes()] if self.counts(part).unreadable else []
        path = self.folder / _UNREADABLE
        if lines:
            write_bytes(path, b"".join(lines))
        return path if lines else None


def _stem(part: int) -> str:
    return f"part-{part:05}"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
