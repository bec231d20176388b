"""What a person names on the command line, opened as one numbered list of items: pictures, captions, or both."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from altclip_jax.data.files import NamedFiles, OpenFiles, find_files
from altclip_jax.data.records import Records
from altclip_jax.data.samples import (
    Caption,
    ImageText,
    Picture,
    Roles,
    SampleError,
    captions_of,
    image_text_roles,
    text_of,
)
from altclip_jax.data.sources import SourceSpec, open_sources
from altclip_jax.data.webdataset import IMAGE, Shards, sample_fields
from altclip_jax.processing.image_files import PICTURE_SUFFIXES

_TABLES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
_BLOCK = 2**24  # bytes of a file of captions that are looked at together


class Items(Protocol):
    """A numbered list of items, which may be read by many threads; an item may lack pictures or captions, not both."""

    faults: tuple[SampleError, ...]  # what was found damaged when it was opened, beside the items

    def __len__(self) -> int: ...

    def read(self, index: int) -> ImageText:
        """Returns an item.

        Raises:
            SampleError: it cannot be used.
        """
        ...


class Corpus:
    """All items of several sources, numbered through.

    Attributes:
        identity: A hash of what the numbers stand for: the names of pictures; names, sizes and times of other files.
        faults: What was found damaged when the sources were opened, beside the items.
        files: Lists, shards and files of captions, and the folders of pictures.
    """

    def __init__(self, sources: Sequence[Items], identity: str, files: Sequence[str] = ()):
        """Joins sources, at least one."""
        self._sources, self.identity, self.files = tuple(sources), identity, tuple(files)
        self._ends = np.cumsum([len(source) for source in sources])
        self.faults = tuple(fault for source in sources for fault in source.faults)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> ImageText:
        """Returns an item.

        Raises:
            SampleError: it cannot be used.
        """
        place = int(np.searchsorted(self._ends, index, "right"))
        source = self._sources[place]
        return source.read(index - int(self._ends[place]) + len(source))


def open_corpus(
    inputs: Sequence[str],
    *,
    image_key: str | None = None,
    caption_key: str | None = None,
    language_key: str | None = None,
) -> Corpus:
    """Opens folders of pictures, files and patterns of files, in their order; reads where items lie, and no item.

    Args:
        inputs: Folders, pictures, JSONL, CSV and TSV lists, webdataset tars, parquet, and .txt with a caption a line.
        image_key: The name under which lists have a picture; the others likewise. None: the usual ones.
        caption_key: Of captions.
        language_key: Of their language.

    Raises:
        FileNotFoundError: something does not exist.
        ValueError: something of another kind, or nothing at all.
    """
    roles = image_text_roles(image_key, caption_key, language_key)
    openers: dict[str, Callable[[Path], Items]] = {
        **{suffix: partial(_ListItems, form=form, roles=roles) for suffix, form in _TABLES.items()},
        ".tar": partial(_TarItems, roles=roles),
        ".txt": CaptionLines,
        ".parquet": partial(_parquet, image_key=image_key, caption_key=caption_key, language_key=language_key),
    }
    sources: list[Items] = []
    read: dict[str, None] = {}
    digest = hashlib.sha256(repr(sorted(roles.items())).encode())
    for suffix, run in itertools.groupby(_files(inputs), key=_kind):
        paths = list(run)
        if suffix == "picture":
            sources.append(_PictureFiles(paths))
            read |= dict.fromkeys(os.path.dirname(path) or "." for path in paths)  # noqa: PTH120 - millions of them
            digest.update("\n".join(paths).encode("utf-8", "surrogateescape"))
            continue
        if suffix not in openers:
            raise ValueError(
                f"{paths[0]}: expected a folder of pictures, pictures ({' '.join(PICTURE_SUFFIXES)}), lists (.jsonl"
                " .csv .tsv), webdataset shards (.tar), .parquet, or captions (.txt, a line each)."
            )
        for path in map(Path, paths):
            state = path.stat()
            digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
            sources.append(openers[suffix](path))
            read[str(path)] = None
    if not any(map(len, sources)):
        raise ValueError(f"There is nothing to embed in {', '.join(inputs) or 'no input'}.")
    return Corpus(sources, digest.hexdigest(), list(read))


def _files(inputs: Iterable[str]) -> Iterator[str]:
    for given in inputs:
        if not Path(given).is_dir():
            yield from map(str, find_files(given))
            continue
        found = sorted(str(file) for file in Path(given).rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
        if not found:
            raise FileNotFoundError(
                f"{given}: no picture there ({' '.join(PICTURE_SUFFIXES)}). Lists, shards and captions are named by"
                f" their files or a pattern, such as '{Path(given) / '*.tar'}'."
            )
        yield from found


def _kind(path: str) -> str:
    suffix = Path(path).suffix.lower()
    return "picture" if suffix in PICTURE_SUFFIXES else suffix


class _PictureFiles:
    """Pictures in files, with a caption where NAME.txt stands beside NAME.jpg."""

    def __init__(self, paths: list[str]):
        self.faults: tuple[SampleError, ...] = ()
        self._paths, self._files = paths, NamedFiles()

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> ImageText:
        path = Path(self._paths[index])
        captions: tuple[Caption, ...] = ()
        try:
            text = path.with_suffix(".txt").read_bytes().decode("utf-8-sig").strip()
            captions = (Caption(text, None),) if text else ()
        except FileNotFoundError:
            pass
        except (PermissionError, IsADirectoryError) as error:
            raise SampleError(str(path), f"its caption cannot be read ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise SampleError(str(path), f"its caption is not UTF-8 ({error.reason} at byte {error.start})") from None
        return ImageText(str(path), captions, (Picture(str(path), partial(self._files.read, path), path),))


class _ListItems:
    """Records that name pictures by paths relative to their file, hold captions, or both."""

    def __init__(self, path: Path, *, form: str, roles: Roles):
        self.faults: tuple[SampleError, ...] = ()
        self._files = NamedFiles()
        try:
            self._records = Records([path], form, roles, required=("image",))
        except ValueError:
            try:
                self._records = Records([path], form, roles, required=("caption",))
            except ValueError:
                names = " or ".join([*roles["image"], *roles["caption"]])
                raise ValueError(
                    f"{path} has no column of pictures and none of captions: expected one called {names} in its first"
                    " line, or say what they are called with --image-key and --caption-key."
                ) from None

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> ImageText:
        name, fields = self._records.name(index), self._records.read(index)
        listed, image = self._records.path(index), fields.get("image")
        images = image if isinstance(image, list) else [image] if image else []
        if not all(isinstance(image, str) and image for image in images):
            raise SampleError(name, "its image is no path, and no list of paths")
        files = [listed.parent / image for image in images]
        pictures = tuple(Picture(str(file), partial(self._files.read, file, listed), file) for file in files)
        return _item(name, fields, pictures)


class _TarItems:
    """Samples of a tar file: a picture, a .txt or .json beside it, or one of the two alone."""

    def __init__(self, path: Path, *, roles: Roles):
        self._roles = roles
        self._shards = Shards([path], {"txt": "text", "json": "json"})
        self.faults = self._shards.faults

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, index: int) -> ImageText:
        name = self._shards.name(index)
        there = self._shards.has(index, IMAGE)
        pictures = (Picture(name, partial(self._shards.read, index, IMAGE)),) if there else ()
        return _item(name, sample_fields(self._shards, index, self._roles), pictures)


def _parquet(path: Path, **keys: Any) -> Items:
    return open_sources([SourceSpec(path=str(path), **keys)], "image_text").sources[0]


def _item(name: str, fields: dict[str, Any], pictures: tuple[Picture, ...]) -> ImageText:
    """Returns an item; without a caption if it has none and a picture.

    Raises:
        SampleError: it has neither, or a caption that is none.
    """
    given = (fields.get("caption"), fields.get("captions"))
    said = any(value.strip() if isinstance(value, str) else value for value in given)
    if not said and not pictures:
        raise SampleError(name, "it has neither a picture nor a caption")
    return ImageText(name, captions_of(name, fields, None) if said else (), pictures)


class CaptionLines:
    """Captions in a text file, one a line, of which only the places are kept in memory; empty lines are none."""

    def __init__(self, path: Path):
        """Finds the lines.

        Raises:
            OSError: the file cannot be read.
        """
        self.faults: tuple[SampleError, ...] = ()
        self._path, self._files = path, OpenFiles()
        starts, ends, offset = [np.zeros(1, np.int64)], [], 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                breaks = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + offset
                starts.append(breaks + 1)
                ends.append(breaks)
                offset += len(block)
        first, last = np.concatenate(starts), np.concatenate([*ends, [offset]])
        single = np.flatnonzero(last - first == 1)  # "\r" alone is empty, too
        empty = [place for place in single if self._files.read(path, int(first[place]), 1) == b"\r"]
        self._lines = np.setdiff1d(np.flatnonzero(last > first), np.array(empty, np.int64), assume_unique=True)
        self._starts, self._ends = first[self._lines], last[self._lines]

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, index: int) -> ImageText:
        """Returns a caption.

        Raises:
            SampleError: it is not UTF-8, or white space.
        """
        start, end = int(self._starts[index]), int(self._ends[index])
        name = f"{self._path}:{self._lines[index] + 1}"
        try:
            text = self._files.read(self._path, start, end - start).decode("utf-8-sig" if start == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise SampleError(name, f"it is not UTF-8 ({error.reason} at byte {error.start} of the line)") from None
        text = text_of(name, "the line", text)
        if not text:
            raise SampleError(name, "the line holds only white space")
        return ImageText(name, (Caption(text, None),), ())
