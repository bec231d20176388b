"""The numbers of an evaluation, on embeddings whose numbers are known."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from altclip_jax import cli
from altclip_jax.assets import PICTURES
from altclip_jax.data.records import TextPairRecords
from altclip_jax.data.samples import SampleError
from altclip_jax.training import stages
from altclip_jax.training.evaluate import image_text_metrics, text_pair_metrics
from altclip_jax.training.loop import train
from altclip_jax.training.losses import contrastive_loss

EYE = np.eye(4, dtype=np.float32)


def pairs(texts, languages, text_ids=(0, 1, 2, 3), image_ids=(0, 1, 2, 3), images=EYE, block=16):
    return image_text_metrics(
        images, np.array(image_ids), np.asarray(texts, np.float32), np.array(text_ids), languages, np.log(10.0), block
    )


def test_right_embeddings_are_found_and_turned_ones_are_not():
    metrics = pairs([*EYE, *EYE[[1, 2, 3, 0]]], ["en"] * 4 + ["fr"] * 4, text_ids=[0, 1, 2, 3] * 2)
    assert (metrics["en/text_to_image@1"], metrics["en/image_to_text@1"]) == (1, 1)
    assert (metrics["fr/text_to_image@1"], metrics["fr/image_to_text@1"]) == (0, 0)
    assert metrics["text_to_image@1"] == metrics["image_to_text@1"] == 0.5
    assert metrics["fr/text_to_image@5"] == 1
    assert metrics["chance@1"] == pytest.approx(1 / 4)
    assert metrics["mean_recall"] == pytest.approx(np.mean([1] * 6 + [0, 1, 1] * 2))


def test_one_of_several_texts_of_a_picture_is_enough():
    texts = [EYE[3], EYE[0], EYE[1], EYE[2]]
    metrics = pairs(texts, ["en"] * 4, text_ids=[0, 0, 1, 2], image_ids=[0, 1, 2], images=EYE[:3])
    assert metrics["image_to_text@1"] == 1
    assert metrics["text_to_image@1"] == 3 / 4


def test_the_loss_is_that_of_training():
    rng = np.random.default_rng(0)
    texts, images = (rng.standard_normal((6, 4)).astype(np.float32) for _ in range(2))
    texts, images = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (texts, images))
    metrics = pairs(texts, ["en"] * 6, text_ids=range(6), image_ids=range(6), images=images)
    expected = contrastive_loss(jnp.asarray(texts), jnp.asarray(images), jnp.log(10.0))
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-5)
    in_blocks = pairs(texts, ["en"] * 6, text_ids=range(6), image_ids=range(6), images=images, block=3)
    halves = [
        contrastive_loss(jnp.asarray(texts[rows]), jnp.asarray(images[rows]), jnp.log(10.0))
        for rows in (slice(3), slice(3, 6))
    ]
    assert in_blocks["loss"] == pytest.approx(float(np.mean(halves)), rel=1e-5)


def test_texts_whose_pictures_could_not_be_read_do_not_count():
    metrics = pairs([*EYE, EYE[0]], ["en"] * 4 + ["fr"], text_ids=[0, 1, 2, 3, 9])
    assert "fr/text_to_image@1" not in metrics
    assert metrics["mean_recall"] == 1
    with pytest.raises(ValueError, match="nothing to measure"):
        pairs(EYE, ["en"] * 4, text_ids=[9, 9, 9, 9])


def test_a_translation_is_looked_for_among_the_different_sentences_of_its_language():
    teachers = np.concatenate([EYE[[0, 1, 1]], EYE[[0, 1]]])
    students = np.concatenate([EYE[[0, 1, 1]], EYE[[1, 0]]])
    metrics = text_pair_metrics(students, teachers, np.array([0, 1, 1, 0, 1]), ["fr"] * 3 + ["zh"] * 2)
    assert (metrics["fr/text_to_teacher@1"], metrics["zh/text_to_teacher@1"]) == (1, 0)
    assert (metrics["fr/loss"], metrics["zh/loss"]) == (0, pytest.approx(0.5))  # 2 of 4 numbers are off by 1
    assert metrics["loss"] == pytest.approx(0.25)
    assert metrics["chance@1"] == 0.5


def test_the_length_of_a_state_matters_for_the_error_alone():
    metrics = text_pair_metrics(2 * EYE, EYE, np.arange(4), ["fr"] * 4)
    assert metrics["text_to_teacher@1"] == 1
    assert metrics["loss"] == pytest.approx(1 / 4)


def test_a_pair_that_one_of_two_passes_cannot_read_does_not_shift_the_others(settings, workshop, tmp_path, monkeypatch):
    held_out = tmp_path / "held_out.tsv"
    held_out.write_bytes((workshop / "parallel.tsv").read_bytes())
    compared = []
    plain_read, plain_metrics = TextPairRecords.read, stages.text_pair_metrics
    once = [None]

    def read(self, index):
        found = plain_read(self, index)
        if "held_out" in found.name and index == 3 and once:
            once.pop()
            raise SampleError(found.name, "it could not be read just now")
        return found

    def metrics(students, teachers, sources, languages):
        compared.append((len(students), len(teachers), len(sources), languages))
        return plain_metrics(students, teachers, sources, languages)

    monkeypatch.setattr(TextPairRecords, "read", read)
    monkeypatch.setattr(stages, "text_pair_metrics", metrics)
    data = {"data__evaluate": [{"path": str(held_out)}], "data__max_bad_share": 0.5, "data__threads": 1}
    train(settings("teacher", steps=1, teacher__store=False, **data), quiet=True)
    assert compared == [(35, 35, 35, ["zh", "fr", "zh", *["zh", "fr"] * 16])]


@pytest.mark.parametrize("stage", ["contrastive", "teacher"])
def test_a_run_measures_what_the_command_does(settings, workshop, tmp_path, capsys, stage):
    """The same words in its configuration, the same numbers in its log as of what it has exported."""
    names = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
    for key in list(names)[:6]:
        (tmp_path / "classes" / key).mkdir(parents=True)
        for design in ("noto", "fxemoji"):
            shutil.copy(PICTURES / f"{key}_{design}.png", tmp_path / "classes" / key)
    classes = {key: {language: names[key][language] for language in ("en", "zh")} for key in list(names)[:6]}
    (tmp_path / "names.json").write_text(json.dumps(classes))
    (tmp_path / "prompts.json").write_text(json.dumps(["a {}", "{}!"]))
    zero_shot = {"data": [str(tmp_path / "classes")], "classes": str(tmp_path / "names.json")}
    zero_shot["templates"] = str(tmp_path / "prompts.json")
    pictures = str(workshop / "pictures.jsonl")
    tasks = {
        "retrieval": {"held_out": {"data": [pictures], "language": ["en", "fr"]}},
        "zero_shot": {"six": zero_shot},
        "every": 1,
    }
    best = {"checkpoints__keep_best": 1, "checkpoints__metric": "zero_shot/six/top1"}
    config = settings(stage, steps=1, evaluation=tasks, **best)
    train(config, quiet=True)
    lines = (Path(config.folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (logged,) = [found["evaluation"] for line in lines if "evaluation" in (found := json.loads(line))]
    options = ["--model", str(Path(config.folder) / "export"), "--json"]
    capsys.readouterr()
    assert cli.main(["evaluate", "retrieval", pictures, "--language", "en", "fr", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    for language in ("en", "fr"):
        expected = told["languages"][language]["text_to_image"]["1"]
        assert logged[f"retrieval/held_out/{language}/text_to_image@1"] == pytest.approx(expected)
    assert logged["retrieval/held_out/mean_recall"] == pytest.approx(told["mean"]["mean_recall"])
    zero_shot_options = ["--classes", zero_shot["classes"], "--templates", zero_shot["templates"]]
    assert cli.main(["evaluate", "zero-shot", *zero_shot["data"], *zero_shot_options, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    for number in ("top1", "top5", "mean_per_class"):
        assert logged[f"zero_shot/six/zh/{number}"] == pytest.approx(told["languages"]["zh"][number])
    mean = np.mean([numbers["top1"] for numbers in told["languages"].values()])
    assert logged["zero_shot/six/top1"] == pytest.approx(mean)
