"""Pictures that are files, with captions in JSONL, CSV or TSV."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from altclip_jax.data.fields import captions_of, image_text_roles, may_have
from altclip_jax.data.files import NamedFiles
from altclip_jax.data.records import Records
from altclip_jax.data.samples import ImageText, Picture, SampleError

_REMEMBERED = 4096  # samples that are not parsed again: a small set is read every few steps


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


def _images(fields: dict[str, Any]) -> list[Any]:
    image = fields.get("image")
    return image if isinstance(image, list) else [image] if image else []
