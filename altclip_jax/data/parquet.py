"""Pictures and captions embedded in parquet files, as Hugging Face datasets store them; needs the extra "parquet"."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from altclip_jax.data.files import gone_told
from altclip_jax.data.order import WINDOW
from altclip_jax.data.samples import (
    ImageText,
    Picture,
    Roles,
    SampleError,
    captions_of,
    image_text_roles,
    present_roles,
    select_languages,
)


class ParquetImages:
    """A source of rows with an image (a struct of bytes and path, or bytes), and captions as in JSONL.

    A row is read with its whole row group. So the groups are shuffled, and the samples among the few groups that are
    kept in memory, sixteen of them: give files with row groups of some tens of megabytes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        languages: Sequence[str] | None = None,
        image_key: str | None = None,
        caption_key: str | None = None,
        language_key: str | None = None,
    ):
        """Reads the footers.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is damaged, or without the columns, or pyarrow is missing.
        """
        self._languages = None if languages is None else tuple(languages)
        roles = image_text_roles(image_key, caption_key, language_key)
        self.faults: tuple[SampleError, ...] = ()
        self._paths = list(paths)
        self._forget()
        self._columns: list[dict[str, str]] = []  # of each file: role -> name
        groups: list[tuple[int, int, int]] = []  # file, group in the file, rows
        for place, path in enumerate(self._paths):
            file = self._file(place)
            self._columns.append(_columns(path, file.schema_arrow.names, roles))
            counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            groups += [(place, group, count) for group, count in enumerate(counts) if count]
        self._groups = groups
        self._before = [sum(rows for file, _, rows in groups if file < place) for place in range(len(self._paths))]
        sizes = np.array([count for _, _, count in groups], np.int64)
        self._ends = np.cumsum(sizes)
        self._kept: np.ndarray | None = None  # the rows that are in the languages; None: all
        if languages is not None and groups:
            self._kept = select_languages(int(self._ends[-1]), self._read_fields, languages)
            sizes = np.bincount(np.searchsorted(self._ends, self._kept, "right"), minlength=len(groups))
        self.groups: tuple[int, ...] | None = tuple(int(size) for size in sizes if size)

    def __len__(self) -> int:
        return sum(self.groups or ())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_open", "_cache", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def first_picture(self, index: int) -> int:
        """Returns how many pictures the samples before this one have."""
        return index

    def read(self, index: int) -> ImageText:
        """Returns a sample.

        Raises:
            SampleError: it cannot be used.
        """
        row = index if self._kept is None else int(self._kept[index])
        fields, name = self._read_fields(row), self._name(row)
        return ImageText(name, captions_of(name, fields, self._languages), (Picture(name, lambda: self._image(row)),))

    def _read_fields(self, row: int) -> dict[str, Any]:
        number, place = self._find(row)
        roles = {role: column for role, column in self._columns[self._groups[number][0]].items() if role != "image"}
        table = self._group(number, tuple(roles.values()))
        try:
            return {role: table.column(column)[place].as_py() for role, column in roles.items()}
        except UnicodeDecodeError as error:
            reason = f"its caption is not UTF-8 ({error.reason} at byte {error.start})"
            raise SampleError(self._name(row), reason) from None

    def _image(self, row: int) -> bytes:
        number, place = self._find(row)
        column = self._columns[self._groups[number][0]]["image"]
        image = self._group(number, (column,)).column(column)[place].as_py()
        data = image.get("bytes") if isinstance(image, Mapping) else image
        if not isinstance(data, bytes):
            where = image.get("path") if isinstance(image, Mapping) else None
            outside = f": the file {where} is outside" if where else ""
            raise SampleError(self._name(row), f"it holds no picture{outside}")
        return data

    def _find(self, row: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._ends, row, "right"))
        return number, row - int(self._ends[number]) + self._groups[number][2]

    def _name(self, row: int) -> str:
        file = self._groups[self._find(row)[0]][0]
        return f"{self._paths[file]}:row {row - self._before[file]}"

    def _forget(self) -> None:
        self._open: dict[int, Any] = {}
        self._cache: dict[tuple[int, tuple[str, ...]], Any] = {}
        self._lock = threading.Lock()

    def _file(self, place: int) -> Any:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ValueError(
                f"{self._paths[place]} needs pyarrow to be read: install it with pip install 'altclip-jax[parquet]'."
            ) from None
        if place not in self._open:
            try:
                # not mapped: a file whose disk goes would end the process, without a word
                self._open[place] = pyarrow.parquet.ParquetFile(self._paths[place])
            except pyarrow.ArrowInvalid as error:
                raise ValueError(f"{self._paths[place]} is no parquet file that can be read ({error}).") from None
        return self._open[place]

    def _group(self, number: int, columns: tuple[str, ...]) -> Any:
        """Returns columns of a row group, of which enough are kept for two windows of the order."""
        with self._lock:
            key = number, columns
            if key not in self._cache:
                file, group, _ = self._groups[number]
                with gone_told(self._paths[file]):
                    self._cache[key] = self._file(file).read_row_group(group, columns=list(columns))
                if len(self._cache) > 4 * WINDOW:  # captions and pictures are read apart
                    del self._cache[next(iter(self._cache))]
            return self._cache[key]


def _columns(path: Path, present: Sequence[str], roles: Roles) -> dict[str, str]:
    found = present_roles(roles, present)
    if "image" not in found or not {"caption", "captions"} & set(found):
        raise ValueError(
            f"{path} has the columns {', '.join(present)}: expected an image ({' or '.join(roles['image'])}) and a"
            f" caption ({' or '.join((*roles['caption'], 'captions'))}); say what they are called with image_key= and"
            " caption_key=."
        )
    return found
