"""Names of classes, and prompts, per language: read from JSON or TOML files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altclip_jax.evaluation.collection import UNKNOWN
from altclip_jax.files.json_file import parse_json, parse_toml
from altclip_jax.sentences import list_some

Names = tuple[str, ...]  # of one class in one language; empty: it has none
Templates = Mapping[str, Sequence[str]]
_BARE = ("{}",)


@dataclass(frozen=True)
class Classes:
    """Classes and what they are called.

    Attributes:
        keys: What the data may call each.
        names: By language, the names of each class, all of which count the same.
    """

    keys: tuple[str, ...]
    names: Mapping[str, tuple[Names, ...]]

    def indices(self, labels: Sequence[str]) -> list[int]:
        """Returns the class of each label: one with this key, or else of this number from 0, or else of this name.

        Raises:
            ValueError: labels that are none of these, or the name of several classes; all are named.
        """
        known: dict[str, int] = {}
        several: set[str] = set()
        for names in self.names.values():
            for index, own in enumerate(names):
                several |= {name for name in own if known.setdefault(name, index) != index}
        certain = {str(index): index for index in range(len(self.keys))}
        certain |= {key: index for index, key in enumerate(self.keys)}
        known |= certain
        several -= certain.keys()
        wrong = sorted({label for label in labels if label not in known or label in several})
        if wrong:
            shown = list_some(list(map(repr, wrong)))
            raise ValueError(
                f"The data have the label{'s' * (len(wrong) > 1)} {shown}, which the classes do not tell apart:"
                f" expected their keys ({', '.join(self.keys[:3])}, ...), their numbers from 0 to"
                f" {len(self.keys) - 1}, or names that one class has."
            )
        return [known[label] for label in labels]

    def limited(self, languages: Sequence[str] | None) -> Classes:
        """Returns the classes with their names in these languages only.

        Raises:
            ValueError: there are none in one of them.
        """
        if languages is None:
            return self
        missing = [language for language in languages if language not in self.names]
        if missing:
            raise ValueError(f"There are no class names in {', '.join(missing)}, only in {', '.join(self.names)}.")
        return Classes(self.keys, {language: self.names[language] for language in languages})


def read_classes(path: Path) -> Classes:
    """Reads a file of classes in one of two forms.

    By class: {"n01440764": {"en": "tench", "zh": ["丁鲷"]}, ...}. By language: {"en": ["tench", ...], "zh": [...]},
    with the keys of the classes in one more list, "classes", if the data do not number or name them. Instead of a name
    there may be a list of names, and "" where a class has none in a language.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    values = _read(path)
    if all(isinstance(value, Mapping) for value in values.values()):
        languages = dict.fromkeys(language for value in values.values() for language in value)
        names = {language: [value.get(language, ()) for value in values.values()] for language in languages}
        keys = list(values)
    elif all(isinstance(value, list) for value in values.values()):
        names = {language: value for language, value in values.items() if language != "classes"}
        keys = values.get("classes") or [str(number) for number in range(max(map(len, names.values()), default=0))]
    else:
        raise ValueError(
            f"{path}: expected an object of classes, each with its names by language, or of languages, each with a list"
            " of names."
        )
    uneven = [f"{language} {len(own)}" for language, own in names.items() if len(own) != len(keys)]
    if uneven:
        raise ValueError(f"{path}: there are {len(keys)} classes, and names of another number: {', '.join(uneven)}.")
    if not names or not keys or len(set(keys)) < len(keys) or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{path}: expected at least one language, and classes with different keys that are strings.")
    return Classes(
        tuple(keys),
        {language: tuple(_names(path, language, own) for own in column) for language, column in names.items()},
    )


def read_templates(path: Path) -> dict[str, tuple[str, ...]]:
    """Reads {"en": ["a photo of a {}.", ...], ...}; a list instead of the object is for all languages.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else, or a template without exactly one {}.
    """
    values = _read(path, lists=True)
    by_language = {UNKNOWN: values} if isinstance(values, list) else values
    for language, templates in by_language.items():
        if not isinstance(templates, list) or not templates or not all(isinstance(item, str) for item in templates):
            raise ValueError(f"{path}: {language} has {templates!r}, expected a list of templates.")
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"{path}: a template has exactly one {{}} where the name goes, got {template!r}.")
    return {language: tuple(templates) for language, templates in by_language.items()}


def templates_for(templates: Templates, language: str) -> Sequence[str]:
    """Returns the templates of a language: its own, those of all languages, or the bare name."""
    return templates.get(language) or templates.get(UNKNOWN) or _BARE


def _read(path: Path, *, lists: bool = False) -> Any:
    text = path.read_text(encoding="utf-8")
    try:
        values = parse_toml(text) if path.suffix.lower() == ".toml" else parse_json(text)
    except ValueError as error:
        form = "TOML" if path.suffix.lower() == ".toml" else "JSON"
        raise ValueError(f"{path} is not valid {form} ({error}).") from None
    if not isinstance(values, Mapping) and not (lists and isinstance(values, list)):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected an object.")
    return values


def _names(path: Path, language: str, value: Any) -> Names:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: a class has the name {value!r} in {language}, expected a string or a list of them.")
    return tuple(name.strip() for name in names if name.strip())
