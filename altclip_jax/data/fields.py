"""What a record says of a picture, under whatever names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from altclip_jax.data.samples import Caption, SampleError

Roles = Mapping[str, Sequence[str]]  # what we want to know -> the names that it may have


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
