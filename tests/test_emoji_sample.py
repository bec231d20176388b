"""The committed sample of emoji pictures and names: what it promises to a training run, and to those who made it."""

import csv
import io
import json
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DATA = ROOT / "recipes" / "emoji" / "data"
LANGUAGES = {"en", "zh", "es", "fr", "ru", "ar", "ja", "ko", "it", "de", "hi"}
DESIGNS = {
    "fluent-flat": ("train", "MIT"),
    "noto": ("train", "Apache-2.0"),
    "fxemoji": ("validation", "CC-BY-4.0"),
    "twemoji": ("eval_held_out", "CC-BY-4.0"),
}
# In Noto these are, pixel for pixel, also pictures of held-out concepts, and fluent-flat does not draw them.
WITHOUT_PICTURE = {
    "family",
    "family: adult, adult, child",
    "family: adult, adult, child, child",
    "family: adult, child, child",
    "flag: Heard & McDonald Islands",
    "flag: Norway",
    "flag: Svalbard & Jan Mayen",
    "flag: United States",
}


@pytest.fixture(scope="module")
def samples():
    """Each sample as (part, design, concept, fields, picture bytes)."""
    found = []
    for path in sorted(DATA.glob("*.tar")):
        part, _, design = path.stem.rpartition("-")[0].partition("-")
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name in members:
            key, _, ending = name.rpartition(".")
            if ending == "json":
                found.append((part, design, key, json.loads(members[name]), members[f"{key}.webp"]))
            else:
                assert f"{key}.json" in members
    return found


@pytest.fixture(scope="module")
def split():
    return json.loads((ROOT / "recipes" / "emoji" / "split.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def held_out(split):
    return {code.lower() for code in split["test_concepts"]}


def pairs(name):
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def folded(text):
    return unicodedata.normalize("NFKC", text).casefold()


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGBA").tobytes()


def test_every_design_stands_in_its_own_part(samples):
    assert {(design, part) for part, design, *_ in samples} == {(name, part) for name, (part, _) in DESIGNS.items()}


def test_held_out_concepts_are_all_in_their_part_and_in_no_other(samples, held_out):
    for part in ("train", "validation", "eval_held_out"):
        codes = [code for kind, _, code, *_ in samples if kind == part]
        assert len(codes) == len(set(codes))
        assert set(codes) & held_out == (held_out if part == "eval_held_out" else set())
    assert len(held_out) == 190


def test_no_text_for_training_is_the_name_of_a_held_out_concept(samples, held_out):
    names = {
        (language, folded(text))
        for part, _, _, fields, _ in samples
        for language, texts in fields["captions"].items()
        for text in texts
        if part == "eval_held_out"
    }
    captions = {
        (language, folded(text))
        for part, _, _, fields, _ in samples
        for language, texts in fields["captions"].items()
        for text in texts
        if part == "train"
    }
    rows = pairs("parallel_train.tsv")
    targets = {(row["language"], folded(row["target"])) for row in rows}
    sources = {("en", folded(row["source"])) for row in rows}
    assert len(names) == len(held_out) * len(LANGUAGES)
    assert not names & (captions | targets | sources)
    assert names == {(row["language"], folded(row["target"])) for row in pairs("parallel_eval.tsv")}


def test_no_picture_for_training_is_one_to_evaluate_with(samples):
    shown = {pixels(data) for part, *_, data in samples if part != "train"}
    assert not [code for part, _, code, _, data in samples if part == "train" and pixels(data) in shown]


def test_every_seen_concept_has_a_picture_but_those_that_would_show_a_held_out_one(samples):
    names = {row["source"] for row in pairs("parallel_train.tsv")}
    drawn = {fields["captions"]["en"][0] for part, _, _, fields, _ in samples if part == "train"}
    assert len(names) == 1716
    assert names - drawn == WITHOUT_PICTURE
    assert drawn < names
    assert {fields["captions"]["en"][0] for part, _, _, fields, _ in samples if part == "validation"} < names


def test_every_concept_is_named_in_every_language(samples):
    for *_, code, fields, _ in samples:
        assert fields["concept"] == code
        assert fields["category"]
        assert fields["captions"].keys() == LANGUAGES
        assert all(text == text.strip() != "" for texts in fields["captions"].values() for text in texts)
    for name in ("parallel_train.tsv", "parallel_eval.tsv"):
        rows = pairs(name)
        assert all(row["source"] and row["target"] for row in rows)
        counts = Counter(row["language"] for row in rows)
        assert counts.keys() == LANGUAGES
        assert set(counts.values()) == {len({row["source"] for row in rows})}


def test_every_picture_is_32_pixels_wide_and_keeps_its_transparency(samples):
    see_through = Counter()
    for _, design, code, _, data in samples:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert (image.format, image.size) == ("WEBP", (32, 32)), code
            see_through[design] += image.mode == "RGBA" and image.getextrema()[3][0] == 0
            assert image.convert("RGBA").getextrema()[3][1] > 0, f"{code} in {design} is empty"
    counts = Counter(design for _, design, *_ in samples)
    assert all(see_through[design] > 0.8 * count for design, count in counts.items())


def test_categories_are_those_of_the_split_with_a_label_of_their_own_in_every_language(split):
    categories = json.loads((DATA / "categories.json").read_text(encoding="utf-8"))
    assert {name: values["concepts"] for name, values in categories.items()} == {
        name: [code.lower() for code in codes] for name, codes in split["categories"].items()
    }
    for language in LANGUAGES:
        labels = {values["labels"][language] for values in categories.values()}
        assert len(labels) == len(categories)


def test_every_design_is_credited_with_its_licence():
    notice = (DATA / "NOTICE.txt").read_text(encoding="utf-8")
    ours = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for design, (_, licence) in DESIGNS.items():
        assert f"Licence: {licence} " in notice.partition(f"\n{design}: ")[2].partition("From: ")[0]
    for owner in ("Google", "Microsoft", "Mozilla", "Twitter", "Unicode"):
        assert owner in notice
        assert owner in ours.partition("recipes/emoji/data")[2]
    for text in ("Permission is hereby granted, free of charge", "UNICODE LICENSE V3"):
        assert text in notice
    for unfree in ("BY-SA", "Apple", "Facebook", "OpenMoji"):
        assert unfree not in notice


def test_the_sample_is_small():
    sizes = {path.name: path.stat().st_size for path in DATA.iterdir()}
    assert sum(sizes.values()) < 6_000_000
    assert max(sizes.values()) < 1_400_000
    assert len(sizes) < 16
