"""`altclip evaluate` on the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from altclip_jax import AltCLIP, cli, sweep
from altclip_jax.assets import PICTURES
from altclip_jax.evaluation.retrieval import retrieval

ROOT = Path(__file__).parents[2]

NAMES = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
KEYS = sorted(NAMES)


def run(capsys, *arguments):
    code = cli.main(["evaluate", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def table(tmp_path):
    """The pictures of both designs, each on two lines: its name in two languages."""
    lines = [
        f"{PICTURES / f'{key}_{design}.png'}\t{NAMES[key][language]}\t{language}"
        for key in KEYS
        for language in ("en", "zh")
        for design in ("noto", "fxemoji")
    ]
    path = tmp_path / "pictures.tsv"
    path.write_text("\n".join(["image\tcaption\tlanguage", *lines]), encoding="utf-8")
    return path


def test_retrieval_says_what_the_pipeline_and_a_sort_say(capsys, table):
    code, out, err = run(capsys, "retrieval", str(table), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["pictures"], told["captions"], list(told["languages"])) == (36, 72, ["en", "zh"])
    clip = AltCLIP.from_pretrained()
    files = [PICTURES / f"{key}_{design}.png" for key in KEYS for design in ("noto", "fxemoji")]
    for language in ("en", "zh"):
        names = [NAMES[key][language] for key in KEYS]
        cosines = clip.similarity(files, names)
        # two pictures have the same name, so the right one is behind the other or before it, and a tie is a failure
        ranks = [np.sum(np.repeat(row, 2) >= row[place // 2] - 1e-6) - 1 for place, row in enumerate(cosines)]
        numbers = told["languages"][language]
        assert numbers["image_to_text"] == {str(k): pytest.approx(np.mean(np.array(ranks) < k)) for k in (1, 5, 10)}
        assert numbers["image_to_text"]["1"] == 0
        assert numbers["chance"]["text_to_image"]["1"] == pytest.approx(1 / 36)
    assert told["mean"]["mean_recall"] == pytest.approx(
        np.mean([numbers["mean_recall"] for numbers in told["languages"].values()])
    )


def test_retrieval_prints_a_table(capsys, table):
    code, out, _ = run(capsys, "retrieval", str(table), "--language", "zh")
    assert code == 0
    assert "36 pictures, 36 captions in 1 language" in out
    assert [line.split("│")[1].strip() for line in out.splitlines() if "│" in line] == ["zh", "guessing"]


def test_a_picture_that_cannot_be_read_is_left_out_and_told(capsys, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    lines = [f"{PICTURES / f'{key}_noto.png'},{key}" for key in KEYS[:5]]
    (tmp_path / "set.csv").write_text("\n".join(["image,caption", *lines, "bad.png,bad"]))
    code, out, _ = run(capsys, "retrieval", str(tmp_path / "set.csv"))
    assert code == 0
    assert "5 pictures, 5 captions in 1 language" in out
    assert "bad.png" in out.splitlines()[-1]
    (tmp_path / "none.csv").write_text("image,caption\nbad.png,bad\n")
    code, out, err = run(capsys, "retrieval", str(tmp_path / "none.csv"))
    assert (code, out) == (1, "")
    assert "No caption is left" in err


@pytest.fixture(scope="module")
def categories(tmp_path_factory):
    """Pictures of held-out emoji in a folder for each category, and the names of these."""
    folder = tmp_path_factory.mktemp("emoji")
    shards = sorted((ROOT / "recipes" / "emoji" / "data").glob("eval_held_out-twemoji-*.tar"))
    command = [sys.executable, "-m", "scripts.emoji.layouts", *shards, "--output", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_zero_shot_says_what_the_pipeline_says(capsys, categories, tmp_path):
    (tmp_path / "templates.json").write_text(json.dumps({"en": ["{}", "a picture of {}"]}))
    options = ["--classes", str(categories / "categories.json"), "--templates", str(tmp_path / "templates.json")]
    pictures = str(categories / "categories")
    code, out, err = run(capsys, "zero-shot", pictures, *options, "--language", "ko", "en", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["pictures"], told["classes"], list(told["languages"])) == (126, 14, ["ko", "en"])
    clip = AltCLIP.from_pretrained()
    classes = json.loads((categories / "categories.json").read_text(encoding="utf-8"))
    files = sorted((categories / "categories").rglob("*.webp"))
    right = np.array([list(classes).index(file.parent.name) for file in files])
    for language, templates in (("ko", ["{}"]), ("en", ["{}", "a picture of {}"])):
        labels = [names[language] for names in classes.values()]
        probabilities = clip.classify(files, labels, templates=templates)
        hits = probabilities.argmax(axis=1) == right
        numbers = told["languages"][language]
        assert numbers["top1"] == pytest.approx(hits.mean())
        assert numbers["mean_per_class"] == pytest.approx(np.mean([hits[right == place].mean() for place in {*right}]))
        bins = np.ceil(probabilities.max(axis=1) * 15)
        gaps = [abs(np.sum((hits - probabilities.max(axis=1))[bins == place])) for place in range(16)]
        assert numbers["calibration_error"] == pytest.approx(sum(gaps) / len(files), abs=1e-6)
        assert (numbers["templates"], numbers["chance"]["top1"]) == (len(templates), 1 / 14)


def test_zero_shot_embeds_the_pictures_once(capsys, categories, monkeypatch):
    decoded = []
    original = sweep.Pixels.__call__

    def counted(*arguments):
        decoded.append(arguments[1])
        return original(*arguments)

    monkeypatch.setattr(sweep.Pixels, "__call__", counted)
    code, out, _ = run(
        capsys, "zero-shot", str(categories / "categories"), "--classes", str(categories / "categories.json")
    )
    assert code == 0
    assert len(decoded) == len(set(decoded)) == 126
    rows = [line.split("│")[1].strip() for line in out.splitlines() if "│" in line]
    assert rows[:11] == ["ar", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "ru", "zh"]


def test_a_language_that_names_only_some_classes_is_measured_on_these(capsys, categories, tmp_path):
    classes = json.loads((categories / "categories.json").read_text(encoding="utf-8"))
    names = {"classes": list(classes), "en": [own["en"] for own in classes.values()]}
    names["de"] = [own["de"] if place < 4 else "" for place, own in enumerate(classes.values())]
    (tmp_path / "some.json").write_text(json.dumps(names))
    _, out, _ = run(
        capsys, "zero-shot", str(categories / "categories"), "--classes", str(tmp_path / "some.json"), "--json"
    )
    german = json.loads(out)["languages"]["de"]
    expected = sum(len(list((categories / "categories" / key).iterdir())) for key in list(classes)[:4])
    assert (german["classes"], german["pictures"]) == (4, expected)


@pytest.mark.parametrize("task", ["retrieval", "zero-shot"])
def test_a_report_takes_no_place_of_what_is_measured(capsys, tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    for name in ("data.csv", "classes.json"):
        (tmp_path / name).write_text("precious")
    arguments = ("--classes", "classes.json") if task == "zero-shot" else ()
    for name in ("data.csv", "classes.json")[: 1 + bool(arguments)]:
        assert cli.main(["evaluate", task, "data.csv", *arguments, "--html", name]) == 1
        assert f"{name} is read, and is to be written" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_a_batch_has_at_least_one_row(size):
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", "retrieval", "none.csv", "--batch-size", size])
    assert caught.value.code == 2


def test_training_may_ask_for_the_same_numbers_by_embeddings():
    clip = AltCLIP.from_pretrained()
    images = clip.encode_images([PICTURES / f"{key}_noto.png" for key in KEYS])
    texts = clip.encode_text([NAMES[key][language] for language in ("en", "zh") for key in KEYS])
    ids = np.arange(len(KEYS))
    found = retrieval(images, ids, texts, np.tile(ids, 2), ["en"] * len(KEYS) + ["zh"] * len(KEYS))
    assert found["en"].text_to_image[1] > 0.8
    assert found["zh"].text_to_image[1] > 0.8
