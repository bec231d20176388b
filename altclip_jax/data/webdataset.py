"""Pictures and captions in tar files, as img2dataset and webdataset write them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from altclip_jax.data.fields import Roles, captions_of, image_text_roles, may_have, present_roles
from altclip_jax.data.samples import ImageText, Picture, SampleError
from altclip_jax.data.shards import IMAGE, Shards
from altclip_jax.files.json_file import parse_json


class WebDataset:
    """A source of tar shards with key.jpg (or .jpeg, .png, .webp, .gif, .bmp) and key.txt or key.json.

    The JSON holds "caption" or "captions", and perhaps "language"; the text stands in for it if it holds neither.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        languages: Sequence[str] | None = None,
        caption_key: str | None = None,
        language_key: str | None = None,
    ):
        """Reads the headers of all shards; of a cut one, what is complete counts and the rest is a fault.

        Raises:
            OSError: a shard cannot be read.
            ValueError: a shard is compressed.
        """
        self._languages = None if languages is None else tuple(languages)
        self._roles = image_text_roles(None, caption_key, language_key)
        self._shards = Shards(paths, {"txt": "text", "json": "json"})
        self.faults = self._shards.faults
        self.groups: tuple[int, ...] | None = None
        self._kept: np.ndarray | None = None  # the samples that are in the languages; None: all
        if languages is not None:
            kept = [index for index in range(len(self._shards)) if self._may_have(index, languages)]
            self._kept = np.array(kept, np.int64)

    def __len__(self) -> int:
        return len(self._shards) if self._kept is None else len(self._kept)

    def first_picture(self, index: int) -> int:
        """Returns how many pictures the samples before this one have."""
        return index

    def read(self, index: int) -> ImageText:
        """Returns a sample.

        Raises:
            SampleError: it cannot be used.
        """
        place = index if self._kept is None else int(self._kept[index])
        name = self._shards.name(place)
        captions = captions_of(name, sample_fields(self._shards, place, self._roles), self._languages)
        if not self._shards.has(place, IMAGE):
            raise SampleError(name, "it has no picture beside its caption")
        return ImageText(name, captions, (Picture(name, partial(self._shards.read, place, IMAGE)),))

    def _may_have(self, place: int, languages: Sequence[str]) -> bool:
        try:
            return may_have(sample_fields(self._shards, place, self._roles), languages)
        except SampleError:
            return True  # it is told when it is read as a sample


def sample_fields(shards: Shards, place: int, roles: Roles) -> dict[str, Any]:
    """Returns the caption and what else the sample says, by our names.

    Args:
        shards: With members of the kinds "json" and "text".
        place: Of the sample.
        roles: The names that each role may have in its JSON.

    Raises:
        SampleError: it is not UTF-8, or not JSON.
    """
    name = shards.name(place)
    fields: dict[str, Any] = {}
    try:
        if shards.has(place, "json"):
            fields = _parse(name, shards.read(place, "json").decode(), roles)
        if not fields.get("caption") and not fields.get("captions") and shards.has(place, "text"):
            fields["caption"] = shards.read(place, "text").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(name, f"its caption is not UTF-8 ({error.reason} at byte {error.start})") from None
    return fields


def _parse(name: str, text: str, roles: Roles) -> dict[str, Any]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise SampleError(name, f"its json is damaged ({error})") from None
    if not isinstance(values, dict):
        raise SampleError(name, f"its json is a {type(values).__name__}, expected an object")
    return {role: values[key] for role, key in present_roles(roles, values).items()}
