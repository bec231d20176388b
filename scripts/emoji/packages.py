"""The public npm packages of emoji pictures and names: what they are, and how they are fetched and read."""

from __future__ import annotations

import json
import subprocess
import tarfile
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIST = "emoji-datasource-google@16.0.0"  # emoji.json: which emoji there are, beside the pictures of Noto
NAMES = "cldr-annotations-full@48.2.0"
DERIVED_NAMES = "cldr-annotations-derived-full@48.2.0"  # of flags and sequences
LABELS = "cldr-misc-full@48.2.0"  # of categories
LOCALE_NAMES = "cldr-localenames-full@48.2.0"  # of territories and languages
LANGUAGES = ("en", "zh", "es", "fr", "ru", "ar", "ja", "ko", "it", "de", "hi")


@dataclass(frozen=True)
class Concept:
    """One emoji, of which the skin tones are no concepts of their own."""

    code: str  # its code points in lower case, 1f469-200d-1f680
    name: str  # in English
    unicode_name: str
    category: str
    subcategory: str
    captions: dict[str, list[str]]  # language -> the name, then keywords


class Packages:
    """A folder of package files, as `npm pack` leaves them there."""

    def __init__(self, folder: Path, tell: Callable[[str], None]):
        """Takes the folder, and what is called with each thing that takes time."""
        self._folder, self._tell = folder, tell

    def fetch(self, packages: Collection[str]) -> None:
        """Calls `npm pack` for what is not there.

        Raises:
            OSError: npm is not installed, or could not fetch a package.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for package in packages:
            if self._file(package).is_file():
                continue
            self._tell(f"npm pack {package}")
            command = ["npm", "pack", package, "--loglevel", "error", "--pack-destination", str(self._folder.resolve())]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode or not self._file(package).is_file():
                raise OSError(f"npm pack {package} did not leave {self._file(package)}: {run.stderr.strip()}")

    def members(self, package: str, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """Returns the files of a package whose path, without its first folder, is wanted."""
        self._tell(f"reading {package}")
        found = {}
        with tarfile.open(self._file(package), "r:gz") as tar:
            for member in tar:
                path = member.name.partition("/")[2]
                if member.isfile() and wanted(path):
                    file = tar.extractfile(member)
                    assert file is not None
                    found[path] = file.read()
        return found

    def json(self, package: str, *paths: str) -> list[Any]:
        """Returns what is in the JSON files of a package.

        Raises:
            ValueError: the package has no such file.
        """
        found = self.members(package, paths.__contains__)
        missing = [path for path in paths if path not in found]
        if missing:
            raise ValueError(f"{package} has no {', '.join(missing)}: expected the package as it is published.")
        return [json.loads(found[path]) for path in paths]

    def _file(self, package: str) -> Path:
        name, _, version = package.rpartition("@")
        return self._folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def read_concepts(packages: Packages, languages: Sequence[str]) -> list[Concept]:
    """Returns all emoji in the order of the Unicode charts, with name and keywords in every language that has them."""
    (listed,) = packages.json(LIST, "emoji.json")
    read = list(dict.fromkeys(["en", *languages]))
    paths = [f"annotations/{language}/annotations.json" for language in read]
    plain = packages.json(NAMES, *paths)
    derived = packages.json(DERIVED_NAMES, *(path.replace("annotations/", "annotationsDerived/", 1) for path in paths))
    names = {
        language: {**ours["annotationsDerived"]["annotations"], **theirs["annotations"]["annotations"]}
        for language, theirs, ours in zip(read, plain, derived, strict=True)
    }
    concepts = []
    for entry in sorted(listed, key=lambda entry: entry["sort_order"]):
        if entry["category"] == "Component":
            continue
        code = entry["unified"].lower()
        text = "".join(chr(int(point, 16)) for point in bare(code).split("-"))
        captions = {language: _captions(names[language][text]) for language in read if text in names[language]}
        name = captions["en"][0]
        if "en" not in languages:
            del captions["en"]
        concepts.append(Concept(code, name, entry["name"] or "", entry["category"], entry["subcategory"], captions))
    return concepts


def read_labels(packages: Packages, languages: Sequence[str], keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns what a category is called: key -> language -> label."""
    files = packages.json(LABELS, *(f"main/{language}/characterLabels.json" for language in languages))
    labels = {
        language: file["main"][language]["characterLabels"] for language, file in zip(languages, files, strict=True)
    }
    return {key: {language: labels[language][key] for language in languages} for key in keys}


def read_locale_names(packages: Packages, languages: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Returns what territories, languages and scripts are called: (code, in English, language, in that language)."""
    kinds = ("territories", "languages", "scripts")
    paths = {(language, kind): f"main/{language}/{kind}.json" for language in ("en", *languages) for kind in kinds}
    files = dict(zip(paths, packages.json(LOCALE_NAMES, *paths.values()), strict=True))
    found = []
    for (language, kind), file in files.items():
        english = files["en", kind]["main"]["en"]["localeDisplayNames"][kind]
        for code, text in file["main"][language]["localeDisplayNames"][kind].items():
            if code in english and "-alt-" not in code and text != code:  # a code stands where there is no name
                found.append((code, english[code], language, text))
    return found


def flag_of(territory: str) -> str:
    """Returns the code points of a territory's flag."""
    return "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):x}" for letter in territory if letter.isalpha()).lower()


def bare(code: str) -> str:
    """Returns code points without the variation selector, which packages write or leave out as they like."""
    return "-".join(point for point in code.split("-") if point != "fe0f")


def fold(text: str) -> str:
    """Returns what two captions have in common if they read the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _captions(annotation: dict[str, list[str]]) -> list[str]:
    """Returns the name and then the keywords, each once."""
    texts: dict[str, str] = {}
    for text in (*annotation["tts"], *annotation.get("default", [])):
        texts.setdefault(fold(text), " ".join(text.split()))
    return list(texts.values())
