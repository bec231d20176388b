"""Parallel text: what the teacher reads and what the student reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from altclip_jax.data.fields import language_of, text_of
from altclip_jax.data.records import Records
from altclip_jax.data.samples import SampleError, TextPair

_ROLES = ("source", "target", "language")


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
        roles = {role: (key or role,) for role, key in zip(_ROLES, keys, strict=True)}
        self.faults: tuple[SampleError, ...] = ()
        self.groups: tuple[int, ...] | None = None
        self._languages = None if languages is None else tuple(languages)
        self._records = Records(paths, form, roles, required=("source", "target"), headless=() if any(keys) else _ROLES)
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
