"""Captions in a text file, one in each line, of which only the places are kept in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from altclip_jax.data.files import OpenFiles
from altclip_jax.data.samples import Caption, ImageText, SampleError, text_of

_BLOCK = 2**24


class CaptionLines:
    """A source of captions without pictures; empty lines are none."""

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
