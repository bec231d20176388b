"""Readers of the retrieval benchmarks: Flickr30k, MSCOCO and XTD, with their captions in other languages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from altclip_jax.data.samples import Caption, Picture
from altclip_jax.evaluation.collection import Collection
from altclip_jax.files.json_file import parse_json

_LANGUAGES = {"jp": "ja"}  # XTD's name for Japanese
_COCO_FOLDERS = ("train2014", "val2014", "val2017")
# image.jpg#zhm#0 caption, image#0<tab>caption, image.jpg,caption
_LINE = re.compile(r"(?P<image>[^\s#,]+?)(?:\.jpg)?(?:#(?:zh[a-z]#)?\d+|,|(?=\s))\s*(?P<caption>\S.*)")

Pair = tuple[Path, str, str]  # file, caption, language


def karpathy(annotations: Path, images: Path, split: str = "test") -> Collection:
    """Reads dataset_flickr30k.json or dataset_coco.json of the Karpathy splits (Karpathy and Fei-Fei 2015).

    Args:
        annotations: The file.
        images: The folder of the pictures, or of the folders that the file names with them.
        split: "test", "val", "train" or "restval".

    Raises:
        OSError: the file cannot be read.
        ValueError: it is of another form, or has nothing in this split.
    """

    def pairs() -> Iterator[Pair]:
        for image in _json(annotations)["images"]:
            if image["split"] == split:
                file = images / image.get("filepath", "") / image["filename"]
                yield from ((file, sentence["raw"], "en") for sentence in image["sentences"])

    return _collection(annotations, pairs(), f"pictures of the split {split!r}")


def coco_captions(annotations: Path, images: Path) -> Collection:
    """Reads captions_val2014.json or captions_val2017.json of MSCOCO, all of their pictures.

    Args:
        annotations: The file.
        images: The folder of the pictures.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is of another form.
    """

    def pairs() -> Iterator[Pair]:
        values = _json(annotations)
        files = {image["id"]: images / image["file_name"] for image in values["images"]}
        for caption in values["annotations"]:
            yield files[caption["image_id"]], caption["caption"], "en"

    return _collection(annotations, pairs(), "pictures with captions")


def flickr30k_cn(captions: Path, images: Path) -> Collection:
    """Reads the Chinese captions of the Flickr30k test set, a line each: `NAME.jpg#zhm#0 CAPTION` or `NAME#0 CAPTION`.

    Args:
        captions: The file.
        images: The folder of the pictures.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is of another form.
    """
    pairs = ((images / f"{name}.jpg", caption, "zh") for name, caption in _lines(captions))
    return _collection(captions, pairs, "captions")


def coco_cn(folder: Path, captions: str, coco: Path) -> Collection:
    """Reads the test set of COCO-CN (Li et al. 2019), whose pictures are MSCOCO's.

    Args:
        folder: Has coco-cn_test.txt and the captions.
        captions: Their file: "imageid.human-written-caption.txt", or "imageid.manually-translated-caption.txt".
        coco: Has train2014 and val2014.

    Raises:
        OSError: a file cannot be read.
        ValueError: a line is of another form.
    """
    test = {*(folder / "coco-cn_test.txt").read_text(encoding="utf-8").split()}
    pairs = (
        (coco_file(coco, f"{name}.jpg"), caption, "zh") for name, caption in _lines(folder / captions) if name in test
    )
    return _collection(folder / captions, pairs, "captions of the test set")


def xtd(folder: Path, coco: Path) -> Collection:
    """Reads XTD (Aggarwal and Kale 2020): test_image_names.txt and a test_1kcaptions_LANGUAGE.txt for each language.

    Args:
        folder: Has the files.
        coco: Has train2014 and val2014.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file has not one caption for each picture.
    """
    images = [coco_file(coco, name) for name in _nonblank(folder / "test_image_names.txt")]

    def pairs() -> Iterator[Pair]:
        for file in sorted(folder.glob("test_1kcaptions_*.txt")):
            code = file.stem.removeprefix("test_1kcaptions_")
            captions = _nonblank(file)
            if len(captions) != len(images):
                raise ValueError(f"{file} has {len(captions)} captions for {len(images)} pictures.")
            language = _LANGUAGES.get(code, code)
            yield from ((image, caption, language) for image, caption in zip(images, captions, strict=True))

    return _collection(folder, pairs(), "test_1kcaptions_LANGUAGE.txt")


def coco_file(coco: Path, name: str) -> Path:
    """Returns where a picture of MSCOCO lies, which its name tells: COCO_val2014_000000391895.jpg."""
    return coco / next((folder for folder in _COCO_FOLDERS if f"_{folder}_" in name), "val2017") / name


def _collection(where: Path, pairs: Iterable[Pair], expected: str) -> Collection:
    places: dict[Path, int] = {}
    captions: list[Caption] = []
    ids: list[int] = []
    try:
        for file, text, language in pairs:
            ids.append(places.setdefault(file, len(places)))
            captions.append(Caption(text.strip(), language))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is not in the form that is published ({type(error).__name__}: {error}).") from None
    if not captions:
        raise ValueError(f"{where} holds nothing: expected {expected}.")
    return Collection(
        tuple(Picture(str(file), file.read_bytes, file) for file in places),
        np.arange(len(places)),
        tuple(captions),
        np.array(ids, np.int64),
        np.arange(len(places)),
    )


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in _nonblank(path):
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{path} has the line {line[:100]!r}: expected NAME#NUMBER CAPTION.")
        if line != "image,caption":
            yield found["image"], found["caption"]


def _nonblank(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
