"""Pictures once, captions all, and which belong together."""

import json

import numpy as np
import pytest
from PIL import Image

from altclip_jax.data.bad_samples import BadSamples, TooManyBadSamples
from altclip_jax.evaluation.retrieval_run import open_collection


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def named(collection):
    return [picture.name for picture in collection.pictures]


def test_a_picture_on_several_lines_is_one_item_with_all_their_captions(folder):
    data = write(
        folder / "set.csv",
        "image,caption,language\n"
        "pictures/a.png,one,en\npictures/b.png,two,en\npictures/../pictures/a.png,three,en\npictures/a.png,eins,de\n",
    )
    collection = open_collection([data])
    assert named(collection) == ["pictures/a.png", "pictures/b.png"]
    assert collection.picture_ids.tolist() == [0, 1]
    assert collection.caption_ids.tolist() == [0, 1, 0, 0]
    assert collection.languages == ["en", "en", "en", "de"]


def test_the_same_file_in_two_tables_is_one_picture(folder):
    (folder / "link.png").symlink_to(folder / "pictures" / "a.png")
    first = write(folder / "one.csv", "image,caption\npictures/a.png,one\n")
    second = write(folder / "pictures" / "two.jsonl", json.dumps({"image": "a.png", "caption": "two"}))
    third = write(folder / "three.tsv", "image\tcaption\nlink.png\tthree\n")
    collection = open_collection([first, second, third])
    assert len(collection.pictures) == 1
    assert [caption.text for caption in collection.captions] == ["one", "two", "three"]
    assert collection.languages == ["any"] * 3


def test_pictures_of_one_line_and_lines_with_a_common_picture_are_about_one_thing(folder):
    lines = [
        {"image": ["pictures/c.png"], "caption": "three"},
        {"image": ["pictures/a.png", "pictures/b.png"], "caption": ["one", "two"]},
        {"image": "pictures/b.png", "captions": {"en": "four"}},
    ]
    collection = open_collection([write(folder / "set.jsonl", "\n".join(map(json.dumps, lines)))])
    assert named(collection) == ["pictures/c.png", "pictures/a.png", "pictures/b.png"]
    assert collection.picture_ids.tolist() == [0, 1, 1]
    assert collection.caption_ids.tolist() == [0, 1, 1, 1]


def test_only_captions_in_the_languages_asked_for(folder):
    lines = [
        {"image": "pictures/a.png", "captions": {"en": ["one", "two"], "zh": "一"}},
        {"image": "pictures/b.png", "captions": {"en": "three"}},
    ]
    data = write(folder / "set.jsonl", "\n".join(json.dumps(line) for line in lines))
    collection = open_collection([data], ["zh"])
    assert (named(collection), [caption.text for caption in collection.captions]) == (["pictures/a.png"], ["一"])


def test_bad_lines_are_told_and_too_many_are_an_error(folder):
    data = write(folder / "set.csv", "image,caption\npictures/a.png,one\npictures/b.png,\n")
    bad = BadSamples()
    assert len(open_collection([data], None, bad).captions) == 1
    assert list(bad.names.values()) == ["it has no caption, or only empty ones"]
    with pytest.raises(TooManyBadSamples, match=r"set\.csv:3"):
        open_collection([data], None, BadSamples(max_bad_share=0.0))
    np.testing.assert_array_equal(open_collection([data]).caption_ids, [0])
