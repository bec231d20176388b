"""Pictures with classes, from every kind of data; and files of classes and templates."""

import io
import json
import tarfile

import pytest
from PIL import Image

from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.evaluation.classes import read_classes, read_templates, templates_for
from altclip_jax.evaluation.labelled import open_labelled


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "png")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for place, name in enumerate(["cat/1.png", "cat/deep/2.JPEG", "dog/1.png", "dog/notes.txt", "loose.png"]):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(png((place, 0, 0)))
    return tmp_path


def labels(data, bad=None):
    return [label for _, label in open_labelled(data, bad or BadSamples())]


def test_a_folder_has_its_classes_as_sub_folders(folder):
    found = open_labelled([str(folder / "pictures")], BadSamples())
    assert [label for _, label in found] == ["cat", "cat", "dog"]
    assert found[1].picture.read() == png((1, 0, 0))


def test_tables_have_an_image_and_a_label(folder):
    (folder / "a.csv").write_text("filepath,class\npictures/cat/1.png,cat\npictures/dog/1.png,3\n")
    lines = [{"image": "pictures/cat/1.png", "label": 7}, {"image": "pictures/dog/1.png", "label": True}]
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    bad = BadSamples()
    assert labels([str(folder / "a.csv"), str(folder / "b.jsonl")], bad) == ["cat", "3", "7"]
    assert list(bad.names.values()) == ["it has no label: expected a string or a whole number"]


def test_shards_have_a_cls_beside_the_picture(folder):
    members = {"0.png": png(1), "0.cls": b"5\n", "1.jpg": png(2), "1.cls": b"cat", "2.png": png(3), "3.cls": b"1"}
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    bad = BadSamples()
    found = open_labelled([str(folder / "*.tar")], bad)
    assert [(label, picture.read()) for picture, label in found] == [("5", png(1)), ("cat", png(2))]
    assert len(bad.names) == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [("empty", "one sub-folder for each class"), ("notes.txt", "neither a folder"), ("none.csv", "There is no file")],
)
def test_other_data_are_refused(folder, data, words):
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("cat")
    with pytest.raises((ValueError, OSError), match=words):
        open_labelled([str(folder / data)], BadSamples())


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


BY_CLASS = '["n01"]\nen = "tench"\nzh = "丁鲷"\n["n02"]\nen = ["goldfish", "carassius auratus"]\n'
BY_LANGUAGE = {"classes": ["n01", "n02"], "en": ["tench", ["goldfish", "carassius auratus"]], "zh": ["丁鲷", ""]}


def test_both_forms_of_a_file_of_classes_say_the_same(tmp_path):
    by_class = read_classes(write(tmp_path / "a.toml", BY_CLASS))
    assert by_class == read_classes(write(tmp_path / "a.json", json.dumps(BY_LANGUAGE)))
    assert by_class.keys == ("n01", "n02")
    assert by_class.names == {"en": (("tench",), ("goldfish", "carassius auratus")), "zh": (("丁鲷",), ())}
    assert list(by_class.limited(["zh"]).names) == ["zh"]
    with pytest.raises(ValueError, match="no class names in fr, only in en, zh"):
        by_class.limited(["fr", "zh"])


def test_a_label_is_a_key_or_a_number_or_a_name(tmp_path):
    classes = read_classes(write(tmp_path / "a.toml", BY_CLASS))
    assert classes.indices(["n02", "0", "goldfish", "丁鲷"]) == [1, 0, 1, 0]
    with pytest.raises(ValueError, match=r"labels '2', 'Tench', which the classes do not tell apart"):
        classes.indices(["n01", "2", "Tench"])
    without_keys = {"en": ["crane", "crane", "1"], "de": ["Kran", "Kranich", "eins"], "fr": ["1", "grue", "un"]}
    classes = read_classes(write(tmp_path / "b.json", json.dumps(without_keys)))
    assert classes.indices(["Kran", "Kranich", "1"]) == [0, 1, 1]
    with pytest.raises(ValueError, match="'crane'"):
        classes.indices(["crane"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"en": ["a"], "zh": ["b", "c"]}, "names of another number"),
        ({"en": ["a", 3]}, "has the name 3 in en"),
        ({"a": "b"}, "expected an object of classes"),
        ({}, "at least one language"),
        ({"classes": ["a", "a"], "en": ["b", "c"]}, "different keys"),
        ([], "holds a list"),
    ],
)
def test_other_files_of_classes_are_refused(tmp_path, values, words):
    with pytest.raises(ValueError, match=words):
        read_classes(write(tmp_path / "a.json", json.dumps(values)))


def test_templates_are_those_of_the_language_or_of_all_or_the_bare_name(tmp_path):
    templates = read_templates(write(tmp_path / "a.toml", 'en = ["a {}.", "the {}"]\nany = ["{}!"]'))
    assert (templates_for(templates, "en"), templates_for(templates, "zh")) == (("a {}.", "the {}"), ("{}!",))
    assert templates_for({}, "zh") == ("{}",)
    assert read_templates(write(tmp_path / "b.json", '["{}?"]')) == {"any": ("{}?",)}
    with pytest.raises(ValueError, match="exactly one"):
        read_templates(write(tmp_path / "c.json", '{"en": ["{} and {}"]}'))
    with pytest.raises(ValueError, match="not valid TOML"):
        read_templates(write(tmp_path / "d.toml", "no"))
