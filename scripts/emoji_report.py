"""Train the students that docs/emoji.md compares, and write its tables.

    python scripts/emoji_report.py train --data build/emoji --runs runs/emoji_report
    python scripts/emoji_report.py report --data build/emoji --runs runs/emoji_report --output docs/emoji_report.json

`train` makes what is not there yet, run after run, and can be interrupted: three seeds of both stages and of a locked
image tower without teacher learning, and both again with captions in other languages than English for a part of the
concepts. `report` measures every finished model on the design and the concepts that nothing was trained or tuned on.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from altclip_jax import AltCLIP
from altclip_jax.evaluation.embedding import embed_texts
from altclip_jax.evaluation.retrieval import chance, recall
from altclip_jax.evaluation.zero_shot import classify
from altclip_jax.json_file import read_json_object, write_bytes, write_json

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes" / "emoji" / "full"
LANGUAGES = ("en", "zh", "es", "fr", "ru", "ar", "ja", "ko", "it", "de", "hi")
SEEDS = (0, 1, 2)
PERCENTS = (0, 1, 5, 10, 100)
STEPS = {"learned": 2_000, "contrastive": 500}
PIXELS = 16  # of a side, for the nearest neighbour


def main() -> None:
    """Train or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "report"])
    parser.add_argument("--data", type=Path, default=ROOT / "build/emoji", help="of scripts/emoji_dataset.py")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/emoji_report")
    parser.add_argument("--teacher", type=Path, default=ROOT / "recipes/emoji/teacher")
    parser.add_argument("--bootstrap", type=Path, help="the first embedded model, to compare with")
    parser.add_argument("--output", type=Path, help="of the report, as JSON")
    options = parser.parse_args()
    if options.what == "train":
        for name, command in runs(options):
            if (options.runs / name / "export").exists():
                continue
            print(f"== {name}", flush=True)
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"{name} did not end; run the same again to go on")
        return
    result = report(options)
    if options.output:
        write_json(options.output, result)
    print(tables(result))


def runs(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Yield each run's name and command, in an order in which what one starts from is there."""
    for percent in PERCENTS[:-1]:
        write_part(options.data, percent)
    for seed in SEEDS:
        yield run(options, f"learned-{seed}", "1_teacher_learning", seed, [])
        yield run(options, f"both-100-{seed}", "2_contrastive", seed, [after(options, seed)])
        yield run(options, f"locked-100-{seed}", "2_contrastive", seed, alone(options))
    for percent in PERCENTS[:-1]:
        path = f"{options.data.resolve()}/train_{percent}.jsonl"
        data = f'data.train=[{{path="{path}",caption_key="names",weight=3}},{{path="{path}",weight=1}}]'
        yield run(options, f"both-{percent}-0", "2_contrastive", 0, [after(options, 0), data])
        yield run(options, f"locked-{percent}-0", "2_contrastive", 0, [*alone(options), data])


def run(
    options: argparse.Namespace, name: str, recipe: str, seed: int, settings: Sequence[str]
) -> tuple[str, list[str]]:
    """Return a run's name and command."""
    command = [sys.executable, "-m", "altclip_jax", "train", str(RECIPES / f"{recipe}.toml"), f"seed={seed}"]
    return name, [*command, f"folder={options.runs / name}", *settings]


def after(options: argparse.Namespace, seed: int) -> str:
    """Return the setting that starts stage 2 from stage 1."""
    return f"model.source={(options.runs / f'learned-{seed}' / 'export').resolve()}"


def alone(options: argparse.Namespace) -> list[str]:
    """Return the settings of contrastive learning without teacher learning: as many steps as both stages."""
    return [
        f"model.source={(ROOT / 'build/emoji_student').resolve()}",
        'model.fresh=["text_model"]',
        f"steps={STEPS['learned'] + STEPS['contrastive']}",
        "optimizer.learning_rate=1e-3",
    ]


def write_part(data: Path, percent: int) -> None:
    """Write the training set in which so many of a hundred concepts keep their captions in other languages."""
    target = data / f"train_{percent}.jsonl"
    if target.exists():
        return
    entries = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = set(np.random.default_rng(0).permutation(len(entries))[: round(len(entries) * percent / 100)].tolist())
    for place, entry in enumerate(entries):
        if place not in kept:
            entry["captions"] = {"en": entry["captions"]["en"]}
            entry["names"] = {"en": entry["names"]["en"]}
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    write_bytes(target, "".join(lines).encode())


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


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Return what each finished model does, and what there is to compare it with."""
    test = TestSet(options.data)
    models = {path.parent.name: path for path in sorted(options.runs.glob("*/export"))}
    if options.bootstrap:
        models["bootstrap"] = options.bootstrap
    found = {"teacher": measured(options.teacher, test, ("en",))} if options.teacher.exists() else {}
    found |= {name: measured(folder, test, LANGUAGES) for name, folder in models.items()}
    return {
        "pictures": {"seen": len(test.seen), "held_out": len(test.held), "without_flags": int((~test.flags).sum())},
        "names": len(test.names("en")),
        "chance": {
            "seen": chance(len(test.names("en")), (1, 5)),
            "held_out": chance(len(test.held), (1, 5)),
            "text_to_image": chance(len(test.seen), (1, 5)),
            "categories": 1 / len(test.categories),
        },
        "pixel_neighbour": pixel_neighbour(test),
        "models": found,
    }


def measured(folder: Path, test: TestSet, languages: Sequence[str]) -> dict[str, dict[str, Any]]:
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


def tables(result: dict[str, Any]) -> str:
    """Return the report's tables in Markdown."""
    models = result["models"]
    several = [name for name in ("learned", "both-100", "locked-100") if f"{name}-0" in models]
    columns = {
        **({"teacher": ["teacher"]} if "teacher" in models else {}),
        **{name: sorted(key for key in models if key.startswith(f"{name}-")) for name in several},
    }
    if "bootstrap" in models:
        columns["bootstrap"] = ["bootstrap"]
    parts = []
    for task in ("seen", "seen_without_flags", "held_out", "text_to_image", "categories"):
        parts += [f"### {task}", "", "| language | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
        for language in (*LANGUAGES, "mean"):
            cells = [cell(models, names, task, language) for names in columns.values()]
            parts.append(f"| {language} | " + " | ".join(cells) + " |")
        parts.append("")
    parts += [
        "### captions in other languages",
        "",
        "| of the concepts | both stages | contrastive alone |",
        "|---|---|---|",
    ]
    for percent in PERCENTS:
        names = [[key for key in models if key.startswith(f"{kind}-{percent}-")] for kind in ("both", "locked")]
        if all(names):
            cells = [cell(models, found, "seen", "others") for found in names]
            parts.append(f"| {percent} % | " + " | ".join(cells) + " |")
    return "\n".join(parts)


def cell(models: dict[str, Any], names: Sequence[str], task: str, language: str) -> str:
    """Return top-1 and top-5 in percent, the mean over seeds and their range."""
    values = []
    for name in names:
        own = models[name]
        asked = {"mean": list(own), "others": [key for key in own if key != "en"]}.get(language, [language])
        if not all(key in own for key in asked) or not asked:
            return ""
        values.append(
            [
                100 * np.mean([list(own[key][task].values())[place] for key in asked])
                for place in range(len(own[asked[0]][task]))
            ]
        )
    means = np.mean(values, axis=0)
    spread = f" ± {np.ptp([value[0] for value in values]) / 2:.1f}" if len(values) > 1 else ""
    return " / ".join(f"{mean:.1f}" for mean in means) + spread


if __name__ == "__main__":
    main()
