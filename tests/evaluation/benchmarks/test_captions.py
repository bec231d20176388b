"""The retrieval benchmarks in the layouts in which they are published."""

import json

import pytest

from altclip_jax.assets import PICTURES
from altclip_jax.evaluation.benchmarks import captions

NAMES = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
KEYS = sorted(NAMES)


def files(collection):
    return [picture.file.name for picture in collection.pictures]


def pairs(collection):
    """(file, caption, language) of each caption."""
    file_of = dict(zip(collection.picture_ids.tolist(), files(collection), strict=True))
    owners = [file_of[place] for place in collection.caption_ids.tolist()]
    return [(owner, *caption) for owner, caption in zip(owners, collection.captions, strict=True)]


def test_the_karpathy_split_of_flickr30k(data):
    folder = data / "flickr30k"
    found = captions.karpathy(folder / "dataset_flickr30k.json", folder / "flickr30k-images")
    assert files(found) == [f"{1000 + place}.jpg" for place in range(6)]
    assert pairs(found)[2:4] == [("1001.jpg", "banana", "en"), ("1001.jpg", "a banana .", "en")]
    assert len(found.captions) == 12
    assert all(picture.read()[:2] == b"\xff\xd8" for picture in found.pictures)
    assert len(captions.karpathy(folder / "dataset_flickr30k.json", folder, "train").pictures) == 2


@pytest.mark.parametrize("form", ["{}.jpg#zhm#{} {}", "{}#{}\t{}", "{}.jpg#zhb#{}\t{}"])
def test_chinese_captions_of_flickr30k(data, tmp_path, form):
    lines = [form.format(1000 + place, n, f"第{place}, {n}") for place in range(3) for n in range(5)]
    (tmp_path / "cn.txt").write_text("\n".join(lines), encoding="utf-8")
    found = captions.flickr30k_cn(tmp_path / "cn.txt", data / "flickr30k" / "flickr30k-images")
    assert files(found) == ["1000.jpg", "1001.jpg", "1002.jpg"]
    assert pairs(found)[7] == ("1001.jpg", "第1, 2", "zh")


def test_chinese_captions_in_a_table(tmp_path):
    (tmp_path / "cn.txt").write_text("image,caption\n1000.jpg,一只猫\n1000.jpg,猫 #1\n", encoding="utf-8")
    found = captions.flickr30k_cn(tmp_path / "cn.txt", tmp_path)
    assert pairs(found) == [("1000.jpg", "一只猫", "zh"), ("1000.jpg", "猫 #1", "zh")]


def test_mscoco_in_both_forms(data):
    found = captions.karpathy(data / "coco" / "dataset_coco.json", data / "coco")
    assert [picture.file.parent.name for picture in found.pictures[:4]] == ["train2014", *["val2014"] * 2, "train2014"]
    assert (len(found.pictures), len(found.captions)) == (9, 13)
    assert all(picture.file.is_file() for picture in found.pictures)
    two = captions.coco_captions(data / "coco" / "annotations" / "captions_val2014.json", data / "coco" / "val2014")
    assert [owner for owner, *_ in pairs(two)] == ["COCO_val2014_000000000001.jpg", "COCO_val2014_000000000002.jpg"]
    assert all(picture.file.is_file() for picture in two.pictures)


def test_coco_cn_is_the_test_set_alone(data):
    folder = data / "coco-cn"
    human = captions.coco_cn(folder, "imageid.human-written-caption.txt", data / "coco")
    translated = captions.coco_cn(folder, "imageid.manually-translated-caption.txt", data / "coco")
    assert (len(human.pictures), len(human.captions)) == (5, 5)
    assert (len(translated.pictures), len(translated.captions)) == (5, 25)
    assert pairs(human)[3] == ("COCO_train2014_000000000003.jpg", NAMES[KEYS[3]]["zh"], "zh")
    assert all(picture.file.is_file() for picture in human.pictures)


def test_xtd_has_a_caption_of_each_picture_in_each_language(data, tmp_path):
    found = captions.xtd(data / "xtd10", data / "coco")
    assert list(dict.fromkeys(found.languages)) == ["de", "en", "ja"]
    assert (len(found.pictures), len(found.captions)) == (12, 36)
    assert pairs(found)[12 + 4] == ("COCO_val2014_000000000004.jpg", NAMES[KEYS[4]]["en"], "en")
    (tmp_path / "test_image_names.txt").write_text("a.jpg\nb.jpg\n")
    (tmp_path / "test_1kcaptions_ko.txt").write_text("one\n")
    with pytest.raises(ValueError, match="1 captions for 2 pictures"):
        captions.xtd(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ('{"images": [{"split": "test"}]}', "not in the form that is published"),
        ('{"images": []}', "expected pictures of the split 'test'"),
    ],
)
def test_other_files_are_refused(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        captions.karpathy(tmp_path / "a.json", tmp_path)


def test_other_lines_are_refused(tmp_path):
    (tmp_path / "cn.txt").write_text("1000.jpg#zhm#0\n")
    with pytest.raises(ValueError, match="expected NAME#NUMBER CAPTION"):
        captions.flickr30k_cn(tmp_path / "cn.txt", tmp_path)
