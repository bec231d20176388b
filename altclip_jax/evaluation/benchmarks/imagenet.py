"""ImageNet and the sets made after it: a folder for each class, and names and prompts in files beside them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from altclip_jax.evaluation.classes import Classes, Templates, read_classes, read_templates
from altclip_jax.evaluation.labelled import Labelled, folder_pictures


class Classification(NamedTuple):
    """Pictures of classes, and what these are called."""

    labelled: list[Labelled]
    classes: Classes
    templates: Templates


def imagenet(pictures: Path, names: Path) -> Classification:
    """Reads a folder whose sub-folders are WordNet ids (ImageNet, -A, -R, -Sketch) or numbers (-V2).

    Only classes that have a folder are candidates: 1,000, or the 200 of ImageNet-A and -R.

    Args:
        pictures: The folder.
        names: Has classes.json or classes.toml with the WordNet ids in the order of the numbers, and perhaps
            templates.json or templates.toml.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file holds something else, or folders are no class.
    """
    files = {stem: _one(names, stem) for stem in ("classes", "templates")}
    if files["classes"] is None:
        raise FileNotFoundError(
            f"{names} has no classes.json or classes.toml: expected the names of the classes of {pictures}, as for"
            " --classes."
        )
    classes, labelled = read_classes(files["classes"]), folder_pictures(pictures)
    if not labelled:
        raise ValueError(f"{pictures} holds no picture in a sub-folder: expected one sub-folder for each class.")
    labels = [label for _, label in labelled]
    indices = classes.indices(labels)
    present = sorted({*indices})
    limited = Classes(
        tuple(classes.keys[index] for index in present),
        {language: tuple(column[index] for index in present) for language, column in classes.names.items()},
    )
    templates = read_templates(files["templates"]) if files["templates"] is not None else {}
    keyed = [Labelled(picture, classes.keys[index]) for (picture, _), index in zip(labelled, indices, strict=True)]
    return Classification(keyed, limited, templates)


def _one(folder: Path, stem: str) -> Path | None:
    files = (folder / f"{stem}{ending}" for ending in (".json", ".toml"))
    return next((file for file in files if file.is_file()), None)
