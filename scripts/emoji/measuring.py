"""What a model does with emoji that it has not seen, for docs/emoji.md: the test set and how it is measured."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from altclip_jax import AltCLIP
from altclip_jax.evaluation.retrieval import recall
from altclip_jax.evaluation.zero_shot import classify
from altclip_jax.files.json_file import read_json_object
from altclip_jax.sweep import embed_texts

PIXELS = 16  # of a side, for the nearest neighbour


class TestSet:
    """The test design: pictures of seen and of held-out concepts, and all names."""

    def __init__(self, data: Path):
        """Read lists, no pictures."""
        self.data = data
        self.seen, self.held = (lines(data / f"{name}.jsonl") for name in ("eval_seen", "eval_held_out"))
        self.flags = np.array([entry["category"] == "Flags" for entry in self.seen])
        second: dict[str, dict[str, str]] = {}
        with (data / "parallel_validation.tsv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                second.setdefault(row["source"], {})[row["language"]] = row["target"]
        self.second = list(second.values())
        self.categories = read_json_object(data / "categories.json")

    def pictures(self, entries: Sequence[dict[str, Any]]) -> list[Path]:
        """Return the files of the first picture of each entry."""
        return [self.data / entry["image"][0] for entry in entries]

    def names(self, language: str) -> list[str]:
        """Return all names, those of the seen concepts first, then of the held-out ones, in the order of entries."""
        own = [entry["names"][language] for entry in [*self.seen, *self.held]]
        return [*own, *(names[language] for names in self.second)]

    def category_pictures(self) -> tuple[list[int], list[int]]:
        """Return which pictures, of seen and then held-out concepts, are in a category, and in which."""
        codes = {entry["concept"]: place for place, entry in enumerate([*self.seen, *self.held])}
        pairs = [
            (codes[code], number)
            for number, category in enumerate(self.categories.values())
            for code in category["concepts"]
            if code in codes
        ]
        return [place for place, _ in pairs], [number for _, number in pairs]


def measure(folder: Path, test: TestSet, languages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a model's numbers by language."""
    print(f"measuring {folder}", file=sys.stderr, flush=True)
    clip = AltCLIP.from_pretrained(folder)
    images = clip.encode_images([on_white(path) for path in test.pictures([*test.seen, *test.held])])
    seen, held = len(test.seen), len(test.held)
    places, right = test.category_pictures()
    found = {}
    for language in languages:
        texts = embed_texts(clip, test.names(language))
        labels = embed_texts(clip, [category["labels"][language] for category in test.categories.values()])
        own = np.arange(seen)
        zero_shot = classify(images[places], np.array(right), labels, 1.0)
        found[language] = {
            "seen": recall(images[:seen], texts, own, (1, 5)),
            "seen_without_flags": recall(images[:seen][~test.flags], texts, own[~test.flags], (1, 5)),
            "held_out": recall(images[seen:], texts[seen : seen + held], np.arange(held), (1, 5)),
            "text_to_image": recall(texts[:seen], images[:seen], own, (1, 5)),
            "categories": {1: zero_shot.top(1)},
        }
    return found


def pixel_neighbour(test: TestSet) -> dict[str, float]:
    """Return how often the nearest training picture, by the cosine of its pixels on white, shows the same concept."""
    train = lines(test.data / "train.jsonl")
    rows = [(entry["concept"], test.data / path) for entry in train for path in entry["image"]]
    known = np.stack([small(path) for _, path in rows])
    asked = np.stack([small(path) for path in test.pictures(test.seen)])
    nearest = (asked @ known.T).argmax(axis=1)
    right = np.array([rows[place][0] == entry["concept"] for place, entry in zip(nearest, test.seen, strict=True)])
    return {
        "seen": float(right.mean()),
        "seen_without_flags": float(right[~test.flags].mean()),
        "training_pictures": len(rows),
    }


def small(path: Path) -> np.ndarray:
    """Return a picture's pixels as a unit vector."""
    picture = on_white(path).resize((PIXELS, PIXELS), Image.Resampling.BOX)
    pixels = np.asarray(picture, np.float32).reshape(-1)
    unit: np.ndarray = pixels / np.linalg.norm(pixels)
    return unit


def on_white(path: Path) -> Image.Image:
    """Return a picture without its transparency."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
