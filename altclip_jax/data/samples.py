"""What sources give: samples that can be named, errors that name them, and how a record becomes a sample."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from jaxtyping import Int64

from altclip_jax.files.json_file import parse_json

Roles = Mapping[str, Sequence[str]]  # what we want to know -> the names that it may have


class SampleError(ValueError):
    """A sample that cannot be used."""

    def __init__(self, name: str, reason: str):
        """Takes what a person finds the sample by, and what is wrong with it."""
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Caption(NamedTuple):
    """A text about a picture; `language` is None where the data does not say it."""

    text: str
    language: str | None


class Picture(NamedTuple):
    """A picture that is read when it is asked for; `file` is None where it lies in a file among others."""

    name: str
    read: Callable[[], bytes]
    file: Path | None = None


@dataclass(frozen=True)
class ImageText:
    """One thing: its pictures, and what is said of them."""

    name: str
    captions: tuple[Caption, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class TextPair:
    """A text that the teacher reads, and its translation, which the student reads."""

    name: str
    source: str
    target: str
    language: str | None


Sample = TypeVar("Sample", covariant=True)


class Source(Protocol[Sample]):
    """A data set; may be pickled and shared between threads."""

    faults: tuple[SampleError, ...]  # what was found damaged when it was opened, beside the samples
    groups: tuple[int, ...] | None  # the sizes of the groups that samples are read in, if not each by itself

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Returns a sample.

        Raises:
            SampleError: it cannot be used.
        """
        ...


class ImageTextSource(Source[ImageText], Protocol):
    """A source of pictures with captions."""

    def first_picture(self, index: int) -> int:
        """Returns how many pictures the samples before this one have; index may be the number of samples."""
        ...


def image_text_roles(image_key: str | None, caption_key: str | None, language_key: str | None) -> Roles:
    """Returns the names of the fields of pictures with captions: those given, or the usual ones.

    A caption's name that is given is the only one: it may hold what "captions" may.
    """
    return {
        "image": (image_key,) if image_key else ("image", "filepath", "file_name"),
        "caption": (caption_key,) if caption_key else ("caption", "title", "text"),
        "language": (language_key,) if language_key else ("language",),
        "captions": () if caption_key else ("captions",),
    }


def present_roles(roles: Roles, names: Collection[str]) -> dict[str, str]:
    """Returns the name of each role that is among `names`."""
    found = {role: next((name for name in choices if name in names), None) for role, choices in roles.items()}
    return {role: name for role, name in found.items() if name is not None}


def captions_of(name: str, fields: Mapping[str, Any], languages: Sequence[str] | None) -> tuple[Caption, ...]:
    """Returns the captions in a record, at least one: those under "caption", a string or several, and "captions".

    Args:
        name: The sample's.
        fields: "caption" is in the language that "language" names, if any; "captions" has languages as keys, and so may
            "caption".
        languages: Only those in these.

    Raises:
        SampleError: there is none, or something else in its place.
    """
    plain, by_language = fields.get("caption"), fields.get("captions")
    if not isinstance(by_language, Mapping | None):
        raise SampleError(name, f"captions is a {type(by_language).__name__}, expected an object of languages")
    found = []
    if not isinstance(plain, Mapping):
        language = language_of(name, fields)
        found = [Caption(text, language) for text in _texts(name, "caption", plain)]
    for field, own in (("caption", plain), ("captions", by_language)):
        for language, texts in own.items() if isinstance(own, Mapping) else ():
            found += [Caption(text, language) for text in _texts(name, f"{field}.{language}", texts)]
    if not found:
        raise SampleError(name, "it has no caption, or only empty ones")
    if languages is not None:
        found = [caption for caption in found if caption.language in languages]
        if not found:
            raise SampleError(name, f"it has no caption in {', '.join(languages)}")
    return tuple(found)


def may_have(fields: Mapping[str, Any], languages: Sequence[str]) -> bool:
    """Tells whether a record has captions in these languages, or is too damaged to tell."""
    try:
        captions = captions_of("", fields, None)
    except SampleError:
        return True  # it is told when it is read as a sample
    return any(caption.language in languages for caption in captions)


def select_languages(
    count: int, read: Callable[[int], Mapping[str, Any]], languages: Sequence[str]
) -> Int64[np.ndarray, " kept"]:
    """Returns which records may have captions in these languages, with those that are too damaged to tell.

    Args:
        count: Of records.
        read: Gives the fields of one, or raises SampleError.
        languages: Those that are wanted.
    """

    def may(record: int) -> bool:
        try:
            return may_have(read(record), languages)
        except SampleError:
            return True

    return np.array([record for record in range(count) if may(record)], np.int64)


def parse_fields(name: str, text: str, roles: Roles, *, within: bool = False) -> dict[str, Any]:
    """Returns the fields of a JSON object by our names.

    Args:
        name: The sample's.
        text: The object.
        roles: The names that each role may have.
        within: The text is a part of the sample, not the whole of it.

    Raises:
        SampleError: it is no JSON, or no object.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise SampleError(name, f"its json is damaged ({error})" if within else f"it is not JSON ({error})") from None
    if not isinstance(values, dict):
        what = "its json is a" if within else "it is a JSON"
        raise SampleError(name, f"{what} {type(values).__name__}, expected an object")
    return {role: values[key] for role, key in present_roles(roles, values).items()}


def text_of(name: str, field: str, value: Any) -> str:
    """Returns a text without the white space around it, which may leave nothing.

    Raises:
        SampleError: it is no string, or none that can be written in UTF-8.
    """
    if not isinstance(value, str):
        raise SampleError(name, f"{field} is a {type(value).__name__}, expected a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SampleError(name, f"{field} holds half of a surrogate pair, which is no text") from None
    return value.strip()


def language_of(name: str, fields: Mapping[str, Any]) -> str | None:
    """Returns what stands under "language", if anything does.

    Raises:
        SampleError: it is no string.
    """
    return text_of(name, "language", fields.get("language") or "") or None


def _texts(name: str, field: str, value: Any) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [text for text in (text_of(name, field, item) for item in values) if text]
