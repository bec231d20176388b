"""Everything a person may name becomes items in their order; what cannot be read has a name and a reason."""

import os
import time

import pytest

from altclip_jax.corpus.items import CaptionLines, open_corpus
from altclip_jax.data.files import GoneError
from altclip_jax.data.samples import SampleError


def contents(corpus):
    """Returns (captions, number of pictures) of each item, or the reason why it has none."""
    found = []
    for index in range(len(corpus)):
        try:
            item = corpus.read(index)
        except SampleError as error:
            found.append(error.reason)
        else:
            found.append(([caption.text for caption in item.captions], len(item.pictures)))
    return found


def test_a_list_may_name_pictures_captions_or_both(mixed):
    found = contents(open_corpus([str(mixed / "list.jsonl")]))
    assert found[:4] == [(["one", "two"], 1), (["闹钟", "clock"], 2), (["alone"], 0), ([], 1)]
    assert [reason.split(" (")[0] for reason in found[4:]] == [
        "it has neither a picture nor a caption",
        "its image is no path, and no list of paths",
        "it is not JSON",
    ]


def test_tables_of_pictures_alone_and_of_captions_alone(tmp_path):
    (tmp_path / "a.csv").write_text('filepath,size\na.png,3\n"b,c.png",4\n', encoding="utf-8")
    (tmp_path / "b.tsv").write_text("caption\tlanguage\nrouge\tfr\n", encoding="utf-8")
    (tmp_path / "c.csv").write_text("picture,size\na.png,3\n", encoding="utf-8")
    corpus = open_corpus([str(tmp_path / "a.csv"), str(tmp_path / "b.tsv")])
    assert contents(corpus) == [([], 1), ([], 1), (["rouge"], 0)]
    assert corpus.read(1).pictures[0].name == str(tmp_path / "b,c.png")
    assert corpus.read(2).captions[0].language == "fr"
    with pytest.raises(ValueError, match="no column of pictures and none of captions"):
        open_corpus([str(tmp_path / "c.csv")])
    assert len(open_corpus([str(tmp_path / "c.csv")], image_key="picture")) == 1


def test_shards_have_samples_with_pictures_captions_or_both(mixed):
    found = contents(open_corpus([str(mixed / "*.tar")]))
    assert found == [(["Füße"], 1), ([], 1), (["no picture"], 0), (["a caption all the same"], 1)]


def test_folders_are_read_in_the_order_of_names_with_captions_beside(mixed):
    corpus = open_corpus([str(mixed / "pictures")])
    names = [corpus.read(index).name for index in range(len(corpus))]
    assert names == sorted(names)
    assert len(names) == 6
    assert contents(corpus)[0] == (["beside it"], 1)


def test_lines_are_captions_and_empty_ones_are_none(mixed):
    lines = CaptionLines(mixed / "captions.txt")
    assert contents(lines) == [(["first"], 0), "the line holds only white space", (["x"], 0), (["letzte Zeile"], 0)]
    assert lines.read(3).name == f"{mixed / 'captions.txt'}:6"


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\n"])
def test_a_file_without_captions_has_no_items(tmp_path, content):
    (tmp_path / "none.txt").write_bytes(content)
    assert len(CaptionLines(tmp_path / "none.txt")) == 0
    with pytest.raises(ValueError, match="nothing to embed"):
        open_corpus([str(tmp_path / "none.txt")])


def test_sources_are_joined_in_the_order_they_are_named(mixed):
    corpus = open_corpus([str(mixed / "captions.txt"), str(mixed / "pictures"), str(mixed / "captions.txt")])
    assert len(corpus) == 4 + 6 + 4
    assert contents(corpus)[10:] == contents(corpus)[:4]


def test_the_identity_is_that_of_the_items(mixed):
    names = [str(mixed / "captions.txt"), str(mixed / "pictures")]
    first = open_corpus(names).identity
    assert open_corpus(names).identity == first
    assert open_corpus(names[::-1]).identity != first
    os.utime(mixed / "captions.txt", (time.time(), time.time() - 100))
    second = open_corpus(names).identity
    assert second != first
    (mixed / "pictures" / "another.png").write_bytes(b"")
    assert open_corpus(names).identity not in (first, second)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("none.tar", FileNotFoundError, "no file"),
        (".", FileNotFoundError, "no picture there"),
        ("a.zip", ValueError, "expected a folder of pictures"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, name, error, words):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(error, match=words):
        open_corpus([str(tmp_path / name)])


@pytest.mark.parametrize("given", ["pictures", "list.jsonl"])
def test_items_whose_disk_has_gone_are_not_unreadable_ones(mixed, pictures, given):
    """They would be noted as such in their parts, for good."""
    (mixed / "list.jsonl").write_text("".join(f'{{"image": "pictures/{path.name}"}}\n' for path in pictures[:5]))
    corpus = open_corpus([str(mixed / given)])
    first, second = (corpus.read(index).pictures[0] for index in (0, 1))
    first.read()
    mixed.rename(mixed.parent / "gone")
    with pytest.raises(GoneError, match=rf"{second.file} cannot be read .*, which was there before, is gone, too"):
        second.read()
