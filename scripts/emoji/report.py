r"""Train the students that docs/emoji.md compares, and write its tables.

    python -m scripts.emoji.report train --data build/emoji --runs runs/emoji_report
    python -m scripts.emoji.report report --data build/emoji --runs runs/emoji_report \
        --keep docs/emoji_report.json --output docs/emoji_report.json --document docs/emoji.md

`train` makes what is not there yet, run after run, and can be interrupted: three seeds of both stages, of what they are
without pairs of keywords in the parallel text, and of contrastive learning without teacher learning, and all again with
captions in other languages than English for a part of the concepts; `--only` makes the named families of runs.
`report` measures every finished model on the design and the concepts that nothing was trained or tuned on; `--keep`
takes those that are not there from an earlier report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from altclip_jax.assets import default_checkpoint
from altclip_jax.evaluation.retrieval import chance
from altclip_jax.files.json_file import read_json_object, write_bytes, write_json
from scripts.emoji.measuring import TestSet, measure, pixel_neighbour

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "emoji" / "full"
LANGUAGES = ("en", "zh", "es", "fr", "ru", "ar", "ja", "ko", "it", "de", "hi")
SEEDS = (0, 1, 2)
PERCENTS = (0, 1, 5, 10, 100)
NINE = LANGUAGES[:9]
TITLES = {
    "teacher": "teacher",
    "learned": "stage 1",
    "both-100": "stages 1, 2",
    "names-learned": "stage 1 of names",
    "names-both-100": "stages 1, 2 of names",
    "names-both-keywords-100": "stage 1 of names, stage 2 with keywords",
    "alone-100": "contrastive alone",
    "alone-keywords-100": "contrastive alone, with keywords",
    "bootstrap": "former default",
}
TASKS = {  # -> a title, and what guessing reaches
    "seen": ("Pictures of seen concepts, in the unseen design, to their names among all", "seen"),
    "seen_without_flags": ("The same without flags", "seen"),
    "held_out": ("Pictures of held-out concepts to their names among the 190", "held_out"),
    "text_to_image": ("Names of seen concepts to their pictures", "text_to_image"),
    "categories": ("Categories by their labels", "categories"),
}
CARD = ("name of a seen concept", "without flags", "name of a held-out one", "picture of a name", "category")  # TASKS
MARKS = ("<!-- written by scripts/emoji/report.py -->", "<!-- end of what it writes -->")


def contrastive(steps: int, rate: float, *, every: int) -> list[str]:
    """Return the settings of a contrastive run that is not the recipe's."""
    rates = [f"steps={steps}", f"optimizer.learning_rate={rate}"]
    return [*rates, f"checkpoints.every={every}", f"evaluation.every={every}"]


CURVE = ("both", "names-both-keywords", "alone-keywords")
PARALLEL = '{{path="{}/{}",weight={}}}'
NAMES = (("parallel_train.tsv", 3), ("parallel_locales.tsv", 1))  # stage 1 without pairs of keywords

# Each with what was best on validation. Alone, contrastive learning has as many steps as both stages have together.
CONTRASTIVE = {
    "both": [],  # the recipe
    "both-keywords": contrastive(1_000, 1e-3, every=500),
    "alone": contrastive(3_300, 2e-3, every=550),
    "alone-keywords": contrastive(4_000, 2e-3, every=1_000),
}


def main() -> None:
    """Train or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "report"])
    parser.add_argument("--data", type=Path, default=ROOT / "build/emoji", help="of scripts/emoji/dataset.py")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/emoji_report")
    parser.add_argument("--teacher", type=Path, default=ROOT / "recipes/emoji/teacher")
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help="of train: learned both-100 both-5, say")
    parser.add_argument("--bootstrap", type=Path, help="the first embedded model, to compare with")
    parser.add_argument("--keep", type=Path, metavar="JSON", help="an earlier report, for runs that are not there")
    parser.add_argument("--output", type=Path, help="of the report, as JSON")
    parser.add_argument("--document", type=Path, help="Markdown with marks, between which the tables are put")
    parser.add_argument("--card", type=Path, help="the same, for the numbers of the embedded model")
    options = parser.parse_args()
    if options.what == "train":
        for name, command in runs(options):
            if (options.runs / name / "export").exists() or (options.only and family(name) not in options.only):
                continue
            print(f"== {name}", flush=True)
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"{name} did not end; run the same again to go on")
        return
    result = report(options)
    if options.output:
        write_json(options.output, result)
    if options.document:
        write_tables(options.document, tables(result))
    if options.card:
        write_tables(options.card, card(result))
    print(tables(result))


def runs(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Yield each run's name and command, in an order in which what one starts from is there."""
    for percent in PERCENTS[:-1]:
        write_part(options.data, percent)
    without = f"data.train=[{','.join(PARALLEL.format(options.data.resolve(), *source) for source in NAMES)}]"
    for seed in SEEDS:
        yield run(options, f"learned-{seed}", "1_teacher_learning", seed, [])
        yield second(options, "both", 100, seed)
        yield run(options, f"names-learned-{seed}", "1_teacher_learning", seed, [without])
        for kind in ("names-both", "names-both-keywords", "alone-keywords"):
            yield second(options, kind, 100, seed)
    yield second(options, "alone", 100, 0)
    for percent in PERCENTS[:-1]:
        for kind in CURVE:
            yield second(options, kind, percent, 0)


def second(options: argparse.Namespace, kind: str, percent: int, seed: int) -> tuple[str, list[str]]:
    """Return name and command of a contrastive run with captions in other languages for a part of the concepts."""
    path = options.data.resolve() / ("train.jsonl" if percent == 100 else f"train_{percent}.jsonl")
    captions = [f'{{path="{path}",caption_key="names",weight=3}}']
    if kind.endswith("keywords"):
        captions.append(f'{{path="{path}",weight=1}}')
    settings = [f"data.train=[{','.join(captions)}]", *CONTRASTIVE[kind.removeprefix("names-")]]
    if kind.startswith("alone"):
        settings += [f"model.source={(ROOT / 'build/emoji_student').resolve()}", 'model.fresh=["text_model"]']
    else:
        start = f"names-learned-{seed}" if kind.startswith("names-") else f"learned-{seed}"
        settings.append(f"model.source={(options.runs / start / 'export').resolve()}")
    return run(options, f"{kind}-{percent}-{seed}", "2_contrastive", seed, settings)


def run(
    options: argparse.Namespace, name: str, recipe: str, seed: int, settings: Sequence[str]
) -> tuple[str, list[str]]:
    """Return a run's name and command."""
    command = [sys.executable, "-m", "altclip_jax", "train", str(RECIPES / f"{recipe}.toml"), f"seed={seed}"]
    return name, [*command, f"folder={options.runs / name}", *settings]


def family(name: str) -> str:
    """Return a run's name without its seed."""
    return name.rpartition("-")[0] or name


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


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Return what each finished model does, and what there is to compare it with."""
    test = TestSet(options.data)
    models = {path.parent.name: path for path in sorted(options.runs.glob("*/export"))}
    models["embedded"] = default_checkpoint()
    if options.bootstrap:
        models["bootstrap"] = options.bootstrap
    found = {"teacher": measure(options.teacher, test, ("en",))} if options.teacher.exists() else {}
    found |= {name: measure(folder, test, LANGUAGES) for name, folder in models.items()}
    if options.keep:
        earlier = read_json_object(options.keep)["models"]
        found = {name: earlier[name] for name in earlier if name not in found} | found
    return {
        "pictures": {"seen": len(test.seen), "held_out": len(test.held), "without_flags": int((~test.flags).sum())},
        "names": len(test.names("en")),
        "chance": {
            "seen": chance(len(test.names("en")), (1, 5)),
            "held_out": chance(len(test.held), (1, 5)),
            "text_to_image": chance(len(test.seen), (1, 5)),
            "categories": {1: 1 / len(test.categories)},
        },
        "pixel_neighbour": pixel_neighbour(test),
        "models": found,
    }


def tables(result: dict[str, Any]) -> str:
    """Return the report's tables in Markdown."""
    models, guessing = result["models"], result["chance"]
    columns = {name: sorted(key for key in models if family(key) == name) for name in TITLES}
    columns = {name: keys for name, keys in columns.items() if keys}
    parts = [goals(result), ""]
    for task, (title, chances) in TASKS.items():
        guess = " / ".join(f"{100 * value:.2g} %" for value in list(guessing[chances].values())[:2])
        parts += [f"### {title}", "", f"Guessing: {guess}.{neighbour(result, task)}", ""]
        parts += ["| | " + " | ".join(TITLES[name] for name in columns) + " |", "|" + "---|" * (len(columns) + 1)]
        for language in (*LANGUAGES, "mean"):
            cells = [cell(models, names, task, language) for names in columns.values()]
            parts.append(f"| {language} | " + " | ".join(cells) + " |")
        parts.append("")
    parts += [
        "### Captions in other languages than English for a part of the concepts",
        "",
        "Pictures of seen concepts to their names, mean of the ten other languages:",
        "",
        "| concepts with such captions | " + " | ".join(TITLES[f"{kind}-100"] for kind in CURVE) + " |",
        "|" + "---|" * (len(CURVE) + 1),
    ]
    for percent in PERCENTS:
        names = [[key for key in models if family(key) == f"{kind}-{percent}"] for kind in CURVE]
        if any(names):
            cells = [cell(models, found, "seen", "others") if found else "" for found in names]
            parts.append(f"| {percent} % | " + " | ".join(cells) + " |")
    return "\n".join(parts)


def card(result: dict[str, Any]) -> str:
    """Return a table of what the embedded model does, by language."""
    guesses = [list(result["chance"][task].values())[:2] for _, task in TASKS.values()]
    rows = [["", *CARD], ["---"] * (len(TASKS) + 1)]
    rows += [
        [language, *(cell(result["models"], ["embedded"], task, language) for task in TASKS)]
        for language in (*LANGUAGES, "mean")
    ]
    rows += [["guessing", *(" / ".join(f"{100 * value:.2g}" for value in guess) for guess in guesses)]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def neighbour(result: dict[str, Any], task: str) -> str:
    """Return what the nearest picture says of a task, if anything."""
    found = result["pixel_neighbour"].get(task)
    return "" if found is None else f" The concept of the most similar training picture: {100 * found:.1f} %."


def goals(result: dict[str, Any]) -> str:
    """Return the goals that were set beforehand, and what was reached, the mean over seeds."""
    models = result["models"]

    def mean(name: str, task: str, languages: Sequence[str]) -> float:
        own = [model for key, model in models.items() if family(key) == name]
        return float(np.mean([next(iter(model[language][task].values())) for model in own for language in languages]))

    teacher = mean("teacher", "seen", ("en",))
    neighbour = result["pixel_neighbour"]["seen"]
    shares = [mean(name, "seen", NINE) / teacher for name in ("learned", "both-100")]
    rows = [
        (
            "teacher, English, pictures of seen concepts",
            "55 %, and more than the nearest picture",
            f"{100 * teacher:.1f} %",
        ),
        ("the nearest picture", "", f"{100 * neighbour:.1f} %"),
        ("stage 1, mean of nine languages, of the teacher's", "85 %", f"{100 * shares[0]:.1f} %"),
        ("stage 2, the same", "95 %", f"{100 * shares[1]:.1f} %"),
        ("stage 2, held-out concepts among 190", "18 %", f"{100 * mean('both-100', 'held_out', NINE):.1f} %"),
        ("stage 2, categories", "60 %", f"{100 * mean('both-100', 'categories', NINE):.1f} %"),
    ]
    lines = ["| | goal | reached |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def write_tables(document: Path, text: str) -> None:
    """Put the tables where a document has its marks."""
    before, rest = document.read_text(encoding="utf-8").split(MARKS[0])
    write_bytes(document, f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}".encode())


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
