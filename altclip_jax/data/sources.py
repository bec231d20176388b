"""What a person writes about their data, opened: several sources as one mixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np

from altclip_jax.data.files import find_files
from altclip_jax.data.parquet import ParquetImages
from altclip_jax.data.records import ImageTextRecords, TextPairRecords
from altclip_jax.data.samples import ImageTextSource, SampleError, Source, TextPair
from altclip_jax.data.webdataset import WebDataset

Kind = Literal["image_text", "text_pairs"]
AnySource = TypeVar("AnySource", bound=Source[Any], covariant=True)

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".tar": "tar", ".parquet": "parquet"}
_RECORDS = ("jsonl", "csv", "tsv")
_OPENERS: dict[tuple[Kind, str], Callable[..., Any]] = {
    **{("image_text", form): ImageTextRecords for form in _RECORDS},
    **{("text_pairs", form): TextPairRecords for form in _RECORDS},
    ("image_text", "tar"): WebDataset,
    ("image_text", "parquet"): ParquetImages,
}
_KEYS: dict[Callable[..., Any], tuple[str, ...]] = {
    ImageTextRecords: ("image_key", "caption_key", "language_key"),
    WebDataset: ("caption_key", "language_key"),
    ParquetImages: ("image_key", "caption_key", "language_key"),
    TextPairRecords: ("source_key", "target_key", "language_key"),
}


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One data set, in one file or many.

    Attributes:
        path: A file, or a pattern such as `shards/{00000..00012}.tar` or `shards/*.tar`.
        weight: Its share among the samples that are seen, relative to the other sources.
        format: "jsonl", "csv", "tsv", "tar" or "parquet"; None: what the suffix says.
        languages: Only what is in these.
        image_key: The name under which a picture stands; the others likewise. None: the usual ones.
    """

    path: str
    weight: float = 1.0
    format: str | None = None
    languages: Sequence[str] | None = None
    image_key: str | None = None
    caption_key: str | None = None
    source_key: str | None = None
    target_key: str | None = None
    language_key: str | None = None


@dataclass(frozen=True)
class Mixture(Generic[AnySource]):
    """Opened sources; a sample has an id over all of them, in their order."""

    sources: tuple[AnySource, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    @property
    def first_ids(self) -> tuple[int, ...]:
        """The id of the first sample of each source."""
        return tuple(np.cumsum([0, *map(len, self.sources)])[:-1].tolist())

    @property
    def faults(self) -> tuple[SampleError, ...]:
        """What was found damaged when the sources were opened, beside the samples."""
        return tuple(fault for source in self.sources for fault in source.faults)


@overload
def open_sources(specs: Sequence[SourceSpec], kind: Literal["image_text"]) -> Mixture[ImageTextSource]: ...
@overload
def open_sources(specs: Sequence[SourceSpec], kind: Literal["text_pairs"]) -> Mixture[Source[TextPair]]: ...
def open_sources(specs: Sequence[SourceSpec], kind: Kind) -> Mixture[Any]:
    """Opens sources of one kind: reads where their samples lie, and no sample.

    Raises:
        FileNotFoundError: files do not exist; all are named.
        OSError: a file cannot be read.
        ValueError: a format, a table or an option that does not fit, nothing in a source, or parquet without pyarrow;
            all are named.
    """
    sources, problems, missing = [], [], []
    for spec in specs:
        if not 0 < spec.weight < math.inf:
            problems.append(f"{spec.path}: weight={spec.weight} must be a number above 0")
        try:
            source = _open_one(spec, kind)
        except FileNotFoundError as error:
            missing.append(str(error))
        except ValueError as error:
            problems.append(str(error))
        else:
            sources.append(source)
            if not len(source):
                found = "".join(f" {fault}." for fault in source.faults[:3])
                within = f" in {', '.join(spec.languages)}" if spec.languages is not None else ""
                problems.append(f"{spec.path} holds no samples{within}.{found}")
    if problems:
        raise ValueError("\n".join([*problems, *missing]))
    if missing:
        raise FileNotFoundError("\n".join(missing))
    if not sources:
        raise ValueError("There are no sources: expected at least one.")
    return Mixture(tuple(sources), tuple(spec.weight for spec in specs))


def _open_one(spec: SourceSpec, kind: Kind) -> Any:
    paths = find_files(spec.path)
    forms = {spec.format or _FORMATS.get(path.suffix.lower(), path.suffix) for path in paths}
    form = forms.pop()
    opener = _OPENERS.get((kind, form))
    known = sorted(form for known_kind, form in _OPENERS if known_kind == kind)
    if forms or opener is None:
        others = "".join(f" and {other!r}" for other in forms)
        raise ValueError(
            f"{spec.path} has the format {form!r}{others}: expected one of {', '.join(known)}; say which with format=."
        )
    allowed = _KEYS[opener]
    given = {key: value for key in _all_keys() if (value := getattr(spec, key)) is not None}
    unused = sorted(set(given) - set(allowed))
    if unused:
        raise ValueError(f"{spec.path}: {', '.join(unused)} has no meaning here; {form} takes {', '.join(allowed)}.")
    return opener(paths, *([form] if form in _RECORDS else []), languages=spec.languages, **given)


def _all_keys() -> list[str]:
    return sorted({key for keys in _KEYS.values() for key in keys})
