"""JSONL, CSV and TSV files: records, of which only the places are kept in memory, as pictures or as pairs of texts."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from altclip_jax.data.files import NamedFiles, OpenFiles
from altclip_jax.data.samples import (
    ImageText,
    Picture,
    Roles,
    SampleError,
    TextPair,
    captions_of,
    image_text_roles,
    language_of,
    may_have,
    parse_fields,
    present_roles,
    text_of,
)

_BLOCK = 2**24
_DELIMITERS = {"csv": ",\t;|", "tsv": "\t"}
_REMEMBERED = 4096  # samples that are not parsed again: a small set is read every few steps
_PAIR = ("source", "target", "language")
_LONGEST_RECORD = 1000  # lines that one quoted record of a CSV may reach over


@dataclass(frozen=True)
class _Table:
    """What the header of a CSV or TSV says."""

    delimiter: str
    columns: dict[str, int]  # role -> place
    width: int | None  # of the header; without one, rows may leave out the last columns
    has_header: bool = True


class Records:
    """Records as {role: value}, where a role is what we want to know and may have one of several names in the file.

    In TSV files, and in CSV files with tabs, each line is a record and a quote is a character like others, unless a
    field is quoted as a whole; in other CSV files quoted fields may hold line breaks, as in RFC 4180.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        form: str,
        roles: Roles,
        required: Sequence[str],
        *,
        headless: Sequence[str] = (),
    ):
        """Finds the records.

        Args:
            paths: The files.
            form: "jsonl", "csv" or "tsv".
            roles: The names that each role may have.
            required: Roles that the header of a table must have.
            headless: The roles of the columns of a TSV whose first line is none; empty: it must have one.

        Raises:
            OSError: a file cannot be read.
            ValueError: a table without the columns.
        """
        self.paths, self._form, self._roles = list(paths), form, roles
        self._files = OpenFiles()
        self._tables: list[_Table] = []
        parts = []
        for place, path in enumerate(self.paths):
            starts, ends, lines = _nonblank_lines(path)
            if form != "jsonl" and starts.size:
                table = self._table(
                    path, self._files.read(path, int(starts[0]), int(ends[0] - starts[0])), required, headless
                )
                self._tables.append(table)
                if table.delimiter != "\t":
                    starts, ends, lines = self._join_lines(path, table, starts, ends, lines)
                kept = slice(1 if table.has_header else 0, None)
                starts, ends, lines = starts[kept], ends[kept], lines[kept]
            elif form != "jsonl":
                raise ValueError(f"{path} is empty: expected a line with the names of the columns.")
            parts.append((np.full(starts.size, place, np.int32), starts, (ends - starts).astype(np.uint32), lines))
        self._file, self._start, self._size, self._line = (np.concatenate(part) for part in zip(*parts, strict=True))

    def __len__(self) -> int:
        return len(self._start)

    def path(self, index: int) -> Path:
        """Returns the file of a record."""
        return self.paths[int(self._file[index])]

    def name(self, index: int) -> str:
        """Returns file:line."""
        return f"{self.path(index)}:{self._line[index]}"

    def read(self, index: int) -> dict[str, Any]:
        """Returns the fields that the record has.

        Raises:
            SampleError: it is damaged; the rest of the file is not affected.
        """
        name, path = self.name(index), self.path(index)
        data = self._files.read(path, int(self._start[index]), int(self._size[index]))
        try:
            text = data.decode("utf-8-sig" if self._start[index] == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise SampleError(name, f"it is not UTF-8 ({error.reason} at byte {error.start} of the record)") from None
        text = text.removesuffix("\n").removesuffix("\r")
        if self._form == "jsonl":
            return parse_fields(name, text, self._roles)
        return _from_row(name, text, self._tables[int(self._file[index])])

    def _table(self, path: Path, first_line: bytes, required: Sequence[str], headless: Sequence[str]) -> _Table:
        line = first_line.decode("utf-8-sig", "replace").removesuffix("\n").removesuffix("\r")
        for delimiter in _DELIMITERS[self._form]:
            try:
                header = [column.strip() for column in _split(line, delimiter)]
            except csv.Error:
                continue
            found = present_roles(self._roles, header)
            if all(role in found for role in required):
                return _Table(delimiter, {role: header.index(name) for role, name in found.items()}, len(header))
        if headless and self._form == "tsv":
            return _Table("\t", {role: place for place, role in enumerate(headless)}, None, has_header=False)
        wanted = "; ".join(f"{role} ({' or '.join(self._roles[role])})" for role in required)
        raise ValueError(
            f"{path} begins with the line {line[:200]!r}: expected the names of its columns, with one for each of"
            f" {wanted}. Say what they are called, for example with {required[0]}_key=."
        )

    def _join_lines(
        self, path: Path, table: _Table, starts: np.ndarray, ends: np.ndarray, lines: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Joins lines that are one record. Only lines with an odd number of quotes can begin and end such a record."""
        quotes = _positions(path, '"')[0]
        odd = np.flatnonzero(np.bincount(np.searchsorted(starts, quotes, "right") - 1, minlength=starts.size) % 2)
        first_of = np.arange(starts.size)  # the line that each line belongs to
        place = 0
        while place + 1 < odd.size:
            first, last = int(odd[place]), int(odd[place + 1])
            text = ""
            if last - first <= _LONGEST_RECORD:
                text = self._files.read(path, int(starts[first]), int(ends[last] - starts[first])).decode(
                    errors="replace"
                )
            if text and _is_one_record(text, table):
                first_of[first : last + 1] = first
                place += 1
            place += 1
        kept = np.unique(first_of)
        return starts[kept], ends[np.append(kept[1:], starts.size) - 1], lines[kept]


class ImageTextRecords:
    """A source of records that name one picture, or several of one thing, by paths relative to their file.

    JSONL has "image" (a path or a list), "caption" (a string or a list) and "captions" (an object of languages, each
    with a string or a list); CSV and TSV have columns for an image, a caption and perhaps its language.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        form: str,
        *,
        languages: Sequence[str] | None = None,
        image_key: str | None = None,
        caption_key: str | None = None,
        language_key: str | None = None,
    ):
        """Finds the records, and reads those of JSONL once for the number of their pictures.

        Raises:
            OSError: a file cannot be read.
            ValueError: a table without the columns.
        """
        roles = image_text_roles(image_key, caption_key, language_key)
        self.faults: tuple[SampleError, ...] = ()
        self.groups: tuple[int, ...] | None = None
        self._languages = None if languages is None else tuple(languages)
        self._files = NamedFiles()
        self._records = Records(paths, form, roles, required=("image", "caption"))
        self._kept: np.ndarray | None = None  # the records that are samples; None: all
        self._first: np.ndarray | None = None  # their first picture among all; None: each has one
        if form == "jsonl" or languages is not None:
            self._survey()
        self._remember()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_sample"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()

    def __len__(self) -> int:
        return len(self._records) if self._kept is None else len(self._kept)

    def first_picture(self, index: int) -> int:
        """Returns how many pictures the samples before this one have."""
        return index if self._first is None else int(self._first[index])

    def read(self, index: int) -> ImageText:
        """Returns a sample.

        Raises:
            SampleError: it cannot be used.
        """
        return self._sample(index)

    def _remember(self) -> None:
        self._sample = functools.lru_cache(_REMEMBERED)(self._parsed)

    def _parsed(self, index: int) -> ImageText:
        record = index if self._kept is None else int(self._kept[index])
        name, fields = self._records.name(record), self._records.read(record)
        captions = captions_of(name, fields, self._languages)
        folder = self._records.path(record).parent
        images = _images(fields)
        if not images or not all(isinstance(image, str) and image for image in images):
            raise SampleError(name, "it names no image: expected a path, or a list of paths")
        read = functools.partial(self._files.read, named_in=self._records.path(record))
        pictures = tuple(Picture(image, functools.partial(read, folder / image), folder / image) for image in images)
        return ImageText(name, captions, pictures)

    def _survey(self) -> None:
        """Counts pictures, and leaves out what is whole but in other languages."""
        kept, counts = [], []
        for record in range(len(self._records)):
            try:
                fields = self._records.read(record)
            except SampleError:
                fields = {}  # it is told when it is read as a sample
            if self._languages is None or may_have(fields, self._languages):
                kept.append(record)
                counts.append(max(1, len(_images(fields))))
        self._kept = None if len(kept) == len(self._records) else np.array(kept, np.int64)
        self._first = None if sum(counts) == len(counts) else np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


class TextPairRecords:
    """A source of pairs in JSONL, CSV or TSV, under the names source, target and, if there is one, language.

    A TSV may have no header; its columns are these three then, in this order.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        form: str,
        *,
        languages: Sequence[str] | None = None,
        source_key: str | None = None,
        target_key: str | None = None,
        language_key: str | None = None,
    ):
        """Finds the pairs.

        Args:
            paths: The files.
            form: "jsonl", "csv" or "tsv".
            languages: Only pairs in these.
            source_key: The name of the teacher's side in the file.
            target_key: The name of the student's.
            language_key: The name of the student's language.

        Raises:
            OSError: a file cannot be read.
            ValueError: a table without the columns.
        """
        keys = (source_key, target_key, language_key)
        roles = {role: (key or role,) for role, key in zip(_PAIR, keys, strict=True)}
        self.faults: tuple[SampleError, ...] = ()
        self.groups: tuple[int, ...] | None = None
        self._languages = None if languages is None else tuple(languages)
        self._records = Records(paths, form, roles, required=("source", "target"), headless=() if any(keys) else _PAIR)
        self._kept: np.ndarray | None = None  # the records that are samples; None: all
        if self._languages is not None:
            kept = [record for record in range(len(self._records)) if self._may_have(record, self._languages)]
            self._kept = np.array(kept, np.int64)

    def __len__(self) -> int:
        return len(self._records) if self._kept is None else len(self._kept)

    def read(self, index: int) -> TextPair:
        """Returns a pair.

        Raises:
            SampleError: it cannot be used.
        """
        record = index if self._kept is None else int(self._kept[index])
        name, fields = self._records.name(record), self._records.read(record)
        source, target = (text_of(name, side, fields.get(side)) for side in ("source", "target"))
        empty = " and ".join(side for side, text in (("source", source), ("target", target)) if not text)
        if empty:
            raise SampleError(name, f"its {empty} is empty")
        return TextPair(name, source, target, language_of(name, fields))

    def _may_have(self, record: int, languages: Sequence[str]) -> bool:
        try:
            return self._records.read(record).get("language") in languages
        except SampleError:
            return True  # it is told when it is read as a sample


def _nonblank_lines(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where the lines of a file start and end, their break included, and their numbers."""
    breaks, size = _positions(path, "\n")
    ends = breaks + 1
    if size and (not ends.size or ends[-1] < size):
        ends = np.append(ends, size)
    starts = np.concatenate([np.zeros(min(1, ends.size), np.int64), ends[:-1]])
    lines = np.arange(1, ends.size + 1, dtype=np.uint32)
    short = np.flatnonzero(ends - starts <= 2)  # "\n" or "\r\n": a line of white space is a damaged record
    with path.open("rb") as file:
        blank = [place for place in short if not _at(file, int(starts[place]), int(ends[place])).strip()]
    kept = np.delete(np.arange(ends.size), np.array(blank, np.int64))
    return starts[kept], ends[kept], lines[kept]


def _positions(path: Path, character: str) -> tuple[np.ndarray, int]:
    """Returns where a character stands in a file, and the size of the file."""
    found, offset = [np.zeros(0, np.int64)], 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord(character)) + offset)
            offset += len(block)
    return np.concatenate(found), offset


def _at(file: io.BufferedReader, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _from_row(name: str, text: str, table: _Table) -> dict[str, Any]:
    try:
        fields = _split(text, table.delimiter)
    except csv.Error as error:
        raise SampleError(name, f"its quotes do not fit ({error})") from None
    if table.width is not None and len(fields) != table.width:
        raise SampleError(name, f"it has {len(fields)} fields and the header {table.width}")
    return {role: fields[place] for role, place in table.columns.items() if place < len(fields)}


def _split(text: str, delimiter: str) -> list[str]:
    """Returns the fields of a record.

    Raises:
        csv.Error: quotes that do not fit.
    """
    if delimiter == "\t":
        return [_unquoted(field) for field in text.split("\t")]
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])


def _unquoted(field: str) -> str:
    inner = field[1:-1]
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else field


def _is_one_record(text: str, table: _Table) -> bool:
    try:
        rows: Iterator[list[str]] = csv.reader(io.StringIO(text, newline=""), delimiter=table.delimiter, strict=True)
        return [len(row) for row in rows] == [table.width]
    except csv.Error:
        return False


def _images(fields: dict[str, Any]) -> list[Any]:
    image = fields.get("image")
    return image if isinstance(image, list) else [image] if image else []
