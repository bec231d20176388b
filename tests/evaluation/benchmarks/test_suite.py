"""All benchmarks on small made copies, beside what was published."""

import json
import shutil

import numpy as np
import pytest

from altclip_jax import AltCLIP, cli, sweep
from altclip_jax.assets import PICTURES
from altclip_jax.evaluation.benchmarks.catalogue import BENCHMARKS, CIFAR_TEMPLATES
from altclip_jax.evaluation.benchmarks.imagenet import imagenet
from altclip_jax.evaluation.benchmarks.published import pictures_of, published, reference
from altclip_jax.evaluation.benchmarks.suite import run_suite
from altclip_jax.evaluation.report.reports import paper_report

METRICS = ["text_to_image@1", "text_to_image@5", "text_to_image@10", "image_to_text@1", "image_to_text@5"]
METRICS += ["image_to_text@10", "mean_recall"]


@pytest.fixture(scope="module")
def clip():
    return AltCLIP.from_pretrained()


@pytest.fixture(scope="module")
def outcome(data, clip):
    return run_suite(clip, data, batch_size=2)  # few shapes, so little to compile


def rows_of(outcome, benchmark):
    return {row.language: row for row in outcome.comparisons if row.benchmark == benchmark}


def test_everything_that_is_there_is_run(outcome):
    assert outcome.failed == {}
    assert sorted([*outcome.runs, *outcome.absent]) == sorted(benchmark.name for benchmark in BENCHMARKS)
    assert [*outcome.absent] == ["mscoco-val2017"]


def test_the_numbers_are_those_of_the_embeddings(outcome, clip, data):
    names = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
    keys = sorted(names)[:6]
    files = [data / "flickr30k" / "flickr30k-images" / f"{1000 + place}.jpg" for place in range(6)]
    texts = [text for key in keys for text in (names[key]["en"], f"a {names[key]['en']} .")]
    order = np.argsort(-clip.similarity(files, texts), axis=1)
    expected = np.mean([place in order[place, :1] // 2 for place in range(6)])
    row = rows_of(outcome, "flickr30k")["en"]
    assert row.ours["image_to_text@1"] == pytest.approx(100 * expected)
    assert row.published.values["image_to_text@1"] == 86.0
    assert list(row.ours) == METRICS


def test_each_language_of_xtd_stands_beside_its_own_numbers(outcome):
    rows = rows_of(outcome, "xtd")
    assert [*rows] == ["de", "en", "ja"]
    assert (rows["ja"].published.model, rows["ja"].published.values["image_to_text@10"]) == ("AltCLIP-m9", 91.7)
    assert rows["en"].published.values["image_to_text@10"] == 95.4
    assert rows["en"].published.sources["image_to_text@10"].startswith("Chen et al.")
    assert rows["en"].published.values["text_to_image@1"] == 64.4
    assert "Babel" in rows["en"].published.sources["text_to_image@1"]


def test_candidates_are_the_classes_that_have_a_folder(outcome, data):
    assert {name: len(run.classes.keys) for name, run in outcome.runs.items() if "imagenet" in name} == {
        "imagenet": 5,
        "imagenet-sketch": 5,
        "imagenet-a": 2,
        "imagenet-r": 5,
        "imagenet-v2": 5,
    }
    adversarial = imagenet(data / "imagenet-a", data / "imagenet")
    assert adversarial.classes.keys == ("n01", "n03")
    numbered = imagenet(data / "imagenetv2-matched-frequency-format-val", data / "imagenet")
    assert [label for _, label in numbered.labelled] == ["n00", "n01", "n02", "n03", "n04"]
    assert outcome.runs["imagenet"].found["en"].templates == 2


def test_a_picture_in_several_benchmarks_is_embedded_once(data, clip, monkeypatch):
    decoded = []
    original = sweep.Pixels.__call__

    def counted(*arguments):
        decoded.append(arguments[1])
        return original(*arguments)

    monkeypatch.setattr(sweep.Pixels, "__call__", counted)
    names = ["mscoco", "mscoco-val2014", "coco-cn-1k", "coco-cn-5k"]
    assert list(run_suite(clip, data, names, batch_size=2).runs) == names
    assert len(decoded) == 9  # the others are among MSCOCO's


def test_one_that_fails_does_not_keep_the_others_from_running(data, clip, tmp_path):
    shutil.copytree(data / "flickr30k", tmp_path / "flickr30k")
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    shutil.copytree(data / "xtd10", tmp_path / "xtd10")  # without its pictures
    (tmp_path / "flickr30k" / "flickr30k-images" / "1003.jpg").write_bytes(b"no picture")
    found = run_suite(clip, tmp_path, batch_size=2)
    assert list(found.runs) == ["flickr30k", "flickr30k-cn"]
    assert found.runs["flickr30k"].summary()["pictures"] == 5
    assert [*found.runs["flickr30k"].left_out] == [str(tmp_path / "flickr30k" / "flickr30k-images" / "1003.jpg")]
    assert "12 of 12 samples cannot be used" in found.failed["xtd"]
    assert "no classes.json or classes.toml" in found.failed["imagenet"]
    with pytest.raises(ValueError, match="no benchmark flickr8k: expected some of flickr30k, "):
        run_suite(clip, tmp_path, ["flickr8k"])
    with pytest.raises(FileNotFoundError, match=r"xtd10/test_image_names\.txt"):
        run_suite(clip, tmp_path / "flickr30k", ["xtd"])


def test_published_numbers_are_whole_tables():
    tables = published()
    assert {table.benchmark for table in tables} <= {benchmark.name for benchmark in BENCHMARKS}
    for table in tables:
        for model, values in table.models.items():
            assert all(0 <= value <= 100 for value in values.values())
            if "mean_recall" in values:  # as printed, from rounded numbers
                mean = np.mean([value for metric, value in values.items() if metric != "mean_recall"])
                assert values["mean_recall"] == pytest.approx(mean, abs=0.11), (table.benchmark, model)
        assert pictures_of(table.benchmark) >= 1000
    assert reference("imagenet-v2", "zh").values == {"top1": 54.0}
    assert reference("flickr30k", "fr").values == {}


def test_the_prompts_of_cifar_are_eighteen():
    assert len({*CIFAR_TEMPLATES}) == 18
    assert {"a photo of a {}.", "a bad photo of the {}.", "a photo of the big {}."} < {*CIFAR_TEMPLATES}


def test_the_command_prints_ours_the_papers_and_the_difference(capsys, data):
    arguments = ["evaluate", "paper", "--data", str(data), "--benchmark", "flickr30k", "cifar10", "--batch-size", "2"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    title, ours, theirs, difference = cells[:4]
    assert (title[0], ours[0], difference[0]) == ("flickr30k en", "ours", "difference")
    assert theirs == ["AltCLIP", "72.5", "91.6", "95.4", "86.0", "98.0", "99.1", "90.4"]
    for first, second, third in zip(ours[1:], theirs[1:], difference[1:], strict=True):
        assert float(third) == pytest.approx(float(first) - float(second), abs=0.11)
    assert cells[6] == ["AltCLIP", "95.4", "99.6", "95.4"]
    assert "published: Chen et al. 2022" in out
    assert "flickr30k, 6 pictures of 1,000" in out


def test_the_report_says_what_is_not_the_whole_benchmark(outcome):
    data = paper_report(outcome, "a model", "some data").decode()
    assert "6 of 1,000 pictures" in data
    assert "AltCLIP-m9" in data
    assert data.count("<h2>") == len(outcome.runs)


def test_a_failure_is_told_by_the_exit_code(capsys, tmp_path):
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    assert cli.main(["evaluate", "paper", "--data", str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [*told["failed"]] == ["imagenet"]
    assert told["absent"]["cifar10"] == ["cifar-10-batches-py/test_batch"]
