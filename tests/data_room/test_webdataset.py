"""Tar shards: the members that tarfile finds, and what is left of a shard that was cut."""

import io
import json
import pickle
import tarfile

import pytest

from altclip_jax.data.samples import Caption, SampleError
from altclip_jax.data.sources import SourceSpec, open_sources

LONG = "a/" + "very_long_" * 30 + "key"


@pytest.fixture
def members(png):
    return {
        "000.jpg": png(0),
        "000.txt": b"a cat\n",
        "000.json": json.dumps({"caption": "a cat", "key": "000"}).encode(),
        "dir.with.dots/001.png": png(1),
        "dir.with.dots/001.txt": "一只猫".encode(),
        f"{LONG}.webp": png(2),
        f"{LONG}.json": json.dumps({"captions": {"en": ["cat", "kitten"], "zh": "猫"}}).encode(),
        "003.cls": b"7",
        "000.seg.png": b"a mask, not the picture",
        "004.txt": b"first the text",
        "004.PNG": png(4),
    }


def opened(path, **options):
    return open_sources([SourceSpec(path=str(path), **options)], "image_text").sources[0]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_that_tarfile_reads(tmp_path, write_tar, members, form):
    path = write_tar(tmp_path / "a.tar", members, form)
    source = opened(path)
    assert source.faults == ()
    samples = [source.read(index) for index in range(len(source))]
    assert [sample.name for sample in samples] == [f"{path}/{key}" for key in ("000", "dir.with.dots/001", LONG, "004")]
    with tarfile.open(path) as tar:
        pictures = [
            tar.extractfile(name).read()
            for name in members
            if ".seg" not in name and name.rpartition(".")[2].lower() in ("jpg", "png", "webp")
        ]
    assert [sample.pictures[0].read() for sample in samples] == pictures
    assert [sample.captions for sample in samples] == [
        (Caption("a cat", None),),
        (Caption("一只猫", None),),
        (Caption("cat", "en"), Caption("kitten", "en"), Caption("猫", "zh")),
        (Caption("first the text", None),),
    ]


def test_shards_of_a_range_are_one_source(tmp_path, write_tar, png):
    for shard in range(3):
        write_tar(
            tmp_path / f"{shard:05}.tar",
            {
                f"{shard}{n}.{kind}": png(n) if kind == "png" else b"text"
                for n in range(shard + 1)
                for kind in ("png", "txt")
            },
        )
    source = opened(tmp_path / "{00000..00002}.tar")
    names = [source.read(index).name.removeprefix(f"{tmp_path}/") for index in range(len(source))]
    assert names == [f"{shard:05}.tar/{shard}{n}" for shard in range(3) for n in range(shard + 1)]
    again = pickle.loads(pickle.dumps(source))
    assert again.read(4).pictures[0].read() == source.read(4).pictures[0].read()


def test_of_a_cut_shard_the_complete_samples_count_wherever_it_is_cut(tmp_path, write_tar, png):
    whole = {
        f"{n}.{kind}": png(n) if kind == "png" else f"text {n}".encode() for n in range(3) for kind in ("png", "txt")
    }
    data = write_tar(tmp_path / "whole.tar", whole).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        ends = [member.offset_data + member.size for member in tar if member.name.endswith(".txt")]
        marks = {member.offset for member in tar.getmembers()} | {member.offset_data for member in tar.getmembers()}
    cut = tmp_path / "cut.tar"
    for size in sorted({*range(0, len(data), 97), *marks, *(mark + 1 for mark in marks), *ends}):
        cut.write_bytes(data[:size])
        complete = sum(end <= size for end in ends)
        if complete == 0:
            with pytest.raises(ValueError, match=r"cut\.tar holds no samples.*cut or damaged"):
                opened(cut)
            continue
        source = opened(cut)
        captions = [source.read(index).captions[0].text for index in range(len(source))]
        assert captions == [f"text {n}" for n in range(complete)], size
        assert all(source.read(index).pictures[0].read() == png(index) for index in range(complete))
        whole_archive = size >= (ends[-1] + 511) // 512 * 512 + 512
        assert [fault.name for fault in source.faults] == ([] if whole_archive else [str(cut)]), size


def test_a_shard_damaged_in_the_middle_gives_what_came_before(tmp_path, write_tar, png):
    path = write_tar(
        tmp_path / "a.tar",
        {f"{n}.{kind}": png(0) if kind == "png" else b"text" for n in range(4) for kind in ("png", "txt")},
    )
    with tarfile.open(path) as tar:
        header = tar.getmember("2.png").offset
    data = bytearray(path.read_bytes())
    data[header : header + 512] = b"\xff" * 512
    path.write_bytes(data)
    source = opened(path)
    assert len(source) == 2
    assert [(fault.name, str(header) in fault.reason) for fault in source.faults] == [(str(path), True)]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.png": b"x"}, "no caption"),
        ({"a.txt": b"text"}, "no picture"),
        ({"a.png": b"x", "a.txt": b" \n"}, "no caption"),
        ({"a.png": b"x", "a.txt": b"caf\xe9"}, "not UTF-8"),
        ({"a.png": b"x", "a.json": b'{"caption": "caf\xe9"}'}, "not UTF-8"),
        ({"a.png": b"x", "a.json": b"{"}, "json is damaged"),
        ({"a.png": b"x", "a.json": b"[]"}, "json is a list"),
        ({"a.png": b"x", "a.json": b'{"caption": 3}'}, "caption is a int"),
    ],
)
def test_a_bad_sample_is_named(tmp_path, write_tar, members, reason):
    source = opened(write_tar(tmp_path / "a.tar", members))
    with pytest.raises(SampleError) as caught:
        source.read(0)
    assert caught.value.name == f"{tmp_path}/a.tar/a"
    assert reason in caught.value.reason


def test_the_text_stands_in_for_a_json_without_a_caption(tmp_path, write_tar):
    source = opened(write_tar(tmp_path / "a.tar", {"a.png": b"x", "a.txt": b"text", "a.json": b'{"caption": null}'}))
    assert source.read(0).captions == (Caption("text", None),)


def test_samples_can_be_chosen_by_language_and_keys_named(tmp_path, write_tar):
    values = [{"TEXT": "cat", "LANGUAGE": "en"}, {"TEXT": "chat", "LANGUAGE": "fr"}]
    files = {
        f"{n}.{kind}": b"x" if kind == "jpg" else json.dumps(value).encode()
        for n, value in enumerate(values)
        for kind in ("jpg", "json")
    }
    path = write_tar(tmp_path / "a.tar", files)
    source = opened(path, languages=["fr"], caption_key="TEXT", language_key="LANGUAGE")
    assert [source.read(index).captions for index in range(len(source))] == [(Caption("chat", "fr"),)]


def test_a_compressed_shard_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))
    with pytest.raises(ValueError, match=r"compressed with gzip.*unpack it"):
        opened(path)


def test_a_shard_that_became_shorter_is_a_bad_sample(tmp_path, write_tar, png):
    path = write_tar(tmp_path / "a.tar", {"a.png": png(0), "a.txt": b"text"})
    source = opened(path)
    sample = source.read(0)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(SampleError, match="shorter"):
        sample.pictures[0].read()
