"""Build a multilingual image-text data set out of public npm packages of emoji pictures and CLDR names.

    python -m scripts.emoji.dataset --packages build/npm --output build/emoji
    python -m scripts.emoji.dataset --packages build/npm --output recipes/emoji/data --sample

Needs npm, and the `emoji` extra to draw SVG. The same packages, Pillow and resvg-py give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from altclip_jax.files.json_file import read_json_object, write_bytes, write_json
from scripts.emoji.designs import DESIGNS
from scripts.emoji.keywords import aligned_keywords
from scripts.emoji.output import encode, write_notice, write_pairs, write_records, write_shards
from scripts.emoji.packages import (
    DERIVED_NAMES,
    LABELS,
    LANGUAGES,
    LIST,
    LOCALE_NAMES,
    NAMES,
    Concept,
    Packages,
    flag_of,
    fold,
    read_concepts,
    read_labels,
    read_locale_names,
)

SPLIT = Path(__file__).parents[2] / "recipes" / "emoji" / "split.json"
TRAIN_DESIGNS = ("noto", "fluent-flat", "fluent-3d", "noto-v1", "emojione")
SAMPLE_DESIGNS = ("fluent-flat", "noto")  # the second for what the first does not have
SAMPLE_SIZE = 32
SAMPLE_VALIDATION = 250

Pictures = dict[str, dict[str, bytes]]  # design -> concept -> WebP
Captions = dict[str, dict[str, list[str]]]  # concept -> language -> name, keywords
Roles = dict[str, list[Concept]]


def main() -> None:
    """Build it and print what came out."""
    options = _options()
    start = time.perf_counter()
    try:
        summary = build(
            options, (lambda message: None) if options.json else (lambda message: print(message, flush=True))
        )
    except (OSError, ValueError) as error:
        sys.exit(f"emoji_dataset: {error}")
    if options.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    print(f"\n{options.output} after {time.perf_counter() - start:.0f} s")
    for name, count in summary["designs"].items():
        print(f"  design {name:12} {count['concepts']:5} concepts, {count['held_out']:3} of them held out")
    for name, count in summary["files"].items():
        print(f"  {name:28} {count:6}")
    for name, left_out in summary["left_out"].items():
        print(f"  left out: {len(left_out)} {name}" + (f" ({', '.join(left_out)})" if len(left_out) < 20 else ""))


def build(options: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    """Builds the data set; returns what is in it.

    Raises:
        OSError: a package could not be fetched, or a file not be written.
        ValueError: a package is not what it was, or there are files already.
    """
    designs = {name: DESIGNS[name] for name in (*options.designs, options.validation_design, options.test_design)}
    if options.output.is_dir() and any(options.output.iterdir()):
        raise ValueError(
            f"{options.output} is not empty: expected a new folder, so that nothing old stays among the data."
        )
    packages = Packages(options.packages, tell)
    texts = {NAMES, DERIVED_NAMES, LABELS, *(() if options.sample else (LOCALE_NAMES,))}
    packages.fetch({LIST, *texts, *(design.package for design in designs.values())})
    split = read_json_object(SPLIT)
    concepts = read_concepts(packages, options.languages)
    roles = _roles(concepts, {code.lower() for code in split["test_concepts"]}, options.second_tenth)
    kept_out = {concept.code for concept in roles["second"] + roles["held_out"]}

    pictures: Pictures = {}
    for name, design in designs.items():
        drawn = design.pictures(packages, design.package, concepts, options.size)
        tell(f"drawing {len(drawn)} pictures of {name}")
        pictures[name] = {code: encode(draw()) for code, draw in drawn.items()}
    counts = {
        name: {"concepts": len(drawn), "held_out": sum(concept.code in drawn for concept in roles["held_out"])}
        for name, drawn in pictures.items()
    }
    left_out = {
        f"concepts that {name} does not draw": [concept.name for concept in concepts if concept.code not in drawn]
        for name, drawn in pictures.items()
    }
    twins = _drop_twins({name: pictures[name] for name in options.designs}, kept_out, pictures)
    left_out["pictures for training that are also a kept-out concept's"] = [
        f"{concept.name} in {name}" for name, code in twins for concept in concepts if concept.code == code
    ]
    captions, repeated = _captions(concepts, kept_out, names_only=options.sample)
    left_out["keywords for training that are also a kept-out concept's name"] = repeated

    files = _write_texts(options, packages, roles, captions, split["categories"])
    files |= (_write_sample if options.sample else _write_all)(options, roles, captions, pictures)
    licence = packages.members(NAMES, "LICENSE".__eq__)["LICENSE"].decode()
    write_notice(options.output / "NOTICE.txt", designs, options.size, licence)
    return {
        "concepts": {role: len(members) for role, members in roles.items()},
        "designs": counts,
        "files": files,
        "left_out": {name: texts for name, texts in left_out.items() if texts},
    }


def _roles(concepts: Sequence[Concept], held_out: set[str], second_tenth: bool) -> Roles:
    """Returns the concepts to train on, those kept out for tuning and those kept out for the end."""
    held = [concept for concept in concepts if concept.code in held_out]
    seen = [concept for concept in concepts if concept.code not in held_out]
    second = _spread(seen, len(held)) if second_tenth else []
    return {"train": [concept for concept in seen if concept not in second], "second": second, "held_out": held}


def _drop_twins(train: Pictures, kept_out: set[str], pictures: Pictures) -> list[tuple[str, str]]:
    """Takes away training pictures that are, to the last pixel, also those of a concept that is kept out."""
    shown = {data for drawn in pictures.values() for code, data in drawn.items() if code in kept_out}
    twins = [
        (name, code)
        for name, drawn in train.items()
        for code, data in drawn.items()
        if data in shown and code not in kept_out
    ]
    for name, code in twins:
        del train[name][code]
    return twins


def _captions(concepts: Sequence[Concept], kept_out: set[str], names_only: bool) -> tuple[Captions, list[str]]:
    """Returns the captions of each concept, and the keywords that would tell the name of a concept that is kept out."""
    names = {
        (language, fold(texts[0]))
        for concept in concepts
        for language, texts in concept.captions.items()
        if concept.code in kept_out
    }
    captions: Captions = {}
    repeated = []
    for concept in concepts:
        captions[concept.code] = {}
        for language, (name, *keywords) in concept.captions.items():
            if concept.code not in kept_out:
                repeated += [f"{text} ({language})" for text in keywords if (language, fold(text)) in names]
                keywords = [text for text in keywords if (language, fold(text)) not in names]
            captions[concept.code][language] = [name] if names_only else [name, *keywords]
    return captions, repeated


def _write_texts(
    options: argparse.Namespace,
    packages: Packages,
    roles: Roles,
    captions: Captions,
    categories: dict[str, list[str]],
) -> dict[str, int]:
    """Writes parallel text and the labels of categories."""
    counts = {}
    for role, file in {
        "train": "parallel_train.tsv",
        "second": "parallel_validation.tsv",
        "held_out": "parallel_eval.tsv",
    }.items():
        pairs = [
            (concept.name, texts[0], language)
            for concept in roles[role]
            for language, texts in captions[concept.code].items()
        ]
        if role == "train":
            pairs += [
                (text, text, "en") for concept in roles[role] for text in captions[concept.code].get("en", [])[1:]
            ]
        if pairs:
            counts[file] = write_pairs(options.output / file, pairs)
    if not options.sample:
        kept_out = roles["second"] + roles["held_out"]
        names = {fold(text) for concept in kept_out for texts in concept.captions.values() for text in texts}
        flags = {concept.code for concept in kept_out}
        pairs = [
            (english, text, language)
            for code, english, language, text in read_locale_names(packages, options.languages)
            if flag_of(code) not in flags and not {fold(english), fold(text)} & names
        ]
        counts["parallel_locales.tsv"] = write_pairs(options.output / "parallel_locales.tsv", pairs)
        aligned = aligned_keywords(captions[concept.code] for concept in roles["train"])
        counts["parallel_keywords.tsv"] = write_pairs(options.output / "parallel_keywords.tsv", aligned)
    labels = read_labels(packages, options.languages, list(categories))
    write_json(
        options.output / "categories.json",
        {
            key: {"labels": labels[key], "concepts": [code.lower() for code in codes]}
            for key, codes in categories.items()
        },
    )
    return counts | {"categories.json": len(categories)}


def _write_all(options: argparse.Namespace, roles: Roles, captions: Captions, pictures: Pictures) -> dict[str, int]:
    """Writes every picture as a file and JSONL, or tar shards of each design."""
    validation, test = (options.validation_design,), (options.test_design,)
    counts = {}
    for part, role, designs in (
        ("train", "train", options.designs),
        ("validation", "train", validation),
        ("validation_held_out", "second", validation),
        ("eval_seen", "train", test),
        ("eval_held_out", "held_out", test),
    ):
        if options.shards:
            for design in designs if roles[role] else ():
                name = f"{part}-{design}"
                counts[f"{name}-*.tar"] = write_shards(options.output, name, roles[role], captions, pictures[design])
            continue
        images: dict[str, list[str]] = {}
        for concept in roles[role]:
            for design in designs:
                if concept.code in pictures[design]:
                    path = f"pictures/{design}/{concept.code}.webp"
                    write_bytes(options.output / path, pictures[design][concept.code])
                    images.setdefault(concept.code, []).append(path)
        if images:
            counts[f"{part}.jsonl"] = write_records(options.output, part, roles[role], captions, images)
    return counts


def _write_sample(options: argparse.Namespace, roles: Roles, captions: Captions, pictures: Pictures) -> dict[str, int]:
    """Writes tar shards: one picture of each concept to train on, and few to evaluate with."""
    validation, test = options.validation_design, options.test_design
    drawn = [concept for concept in roles["train"] if concept.code in pictures[validation]]
    parts = [("validation", _spread(drawn, SAMPLE_VALIDATION), validation), ("eval_held_out", roles["held_out"], test)]
    left = roles["train"]
    for design in options.designs:
        parts.append(("train", left, design))
        left = [concept for concept in left if concept.code not in pictures[design]]
    return {
        f"{part}-{design}-*.tar": write_shards(options.output, f"{part}-{design}", members, captions, pictures[design])
        for part, members, design in parts
    }


def _spread(concepts: Sequence[Concept], count: int) -> list[Concept]:
    """Returns some of the concepts from all over their order, which is by subcategory: one by lot from each stretch."""
    chosen = []
    for place in range(count):
        stretch = concepts[place * len(concepts) // count : (place + 1) * len(concepts) // count]
        chosen.append(min(stretch, key=lambda concept: hashlib.sha256(concept.code.encode()).digest()))
    return chosen


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="where npm packages lie, or are fetched to")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, help=f"to train on; default {' '.join(TRAIN_DESIGNS)}")
    parser.add_argument("--validation-design", choices=DESIGNS, default="fxemoji")
    parser.add_argument("--test-design", choices=DESIGNS, default="twemoji", help="and of the held-out concepts")
    parser.add_argument("--size", type=int, help="of a picture's side, in pixels; default 64, of the sample 32")
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES))
    parser.add_argument("--second-tenth", action="store_true", help="keep as many concepts again out, for tuning")
    parser.add_argument(
        "--sample", action="store_true", help="tar shards with one picture of each concept, its name, and few others"
    )
    parser.add_argument("--shards", action="store_true", help="tar shards of each design instead of files and JSONL")
    parser.add_argument("--json", action="store_true", help="print nothing but a summary in JSON")
    options = parser.parse_args()
    options.designs = options.designs or (SAMPLE_DESIGNS if options.sample else TRAIN_DESIGNS)
    options.size = options.size or (SAMPLE_SIZE if options.sample else 64)
    shared = {options.validation_design, options.test_design} & set(options.designs)
    if options.sample and options.shards:
        parser.error("--sample is in shards already: leave out --shards.")
    if shared or options.validation_design == options.test_design:
        parser.error(
            f"{', '.join(sorted(shared)) or options.test_design} is in two roles: expected designs of their own."
        )
    return options


if __name__ == "__main__":
    main()
