"""Parquet files with embedded pictures, beside what pyarrow itself reads."""

import pickle
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altclip_jax.data.batches import Batches
from altclip_jax.data.files import GoneError
from altclip_jax.data.samples import Caption, SampleError
from altclip_jax.data.sources import SourceSpec, open_sources
from altclip_jax.data.streams import ImageTextStream


@pytest.fixture
def table(png):
    images = [{"bytes": png(number), "path": f"{number}.png"} for number in range(10)]
    return pa.table({"id": range(10), "image": images, "caption": [f"text {number}" for number in range(10)]})


def opened(path, **options):
    return open_sources([SourceSpec(path=str(path), **options)], "image_text").sources[0]


def test_samples_are_those_that_pyarrow_reads(tmp_path, table):
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=3)
    pq.write_table(table.slice(4, 2), tmp_path / "1.parquet")
    source = opened(tmp_path / "{0..1}.parquet")
    rows = [row for name in ("0", "1") for row in pq.read_table(tmp_path / f"{name}.parquet").to_pylist()]
    assert len(source) == len(rows)
    for index, row in enumerate(rows):
        sample = source.read(index)
        assert sample.pictures[0].read() == row["image"]["bytes"]
        assert sample.captions == (Caption(row["caption"], None),)
    assert source.groups == (3, 3, 3, 1, 2)
    assert source.read(11).name == f"{tmp_path}/1.parquet:row 1"
    again = pickle.loads(pickle.dumps(source))
    assert again.read(11).pictures[0].read() == rows[11]["image"]["bytes"]


def test_captions_may_be_lists_and_by_language(tmp_path):
    captions = [{"en": ["cat", "kitten"], "zh": ["猫"]}, {"en": None, "zh": ["狗"]}, {"en": ["fish"], "zh": None}]
    pq.write_table(pa.table({"image": [b"x"] * 3, "captions": captions}), tmp_path / "a.parquet", row_group_size=1)
    source = opened(tmp_path / "a.parquet")
    assert source.read(0).captions == (Caption("cat", "en"), Caption("kitten", "en"), Caption("猫", "zh"))
    only = opened(tmp_path / "a.parquet", languages=["zh"])
    assert [only.read(index).captions for index in range(len(only))] == [(Caption("猫", "zh"),), (Caption("狗", "zh"),)]
    assert only.groups == (1, 1)


def test_columns_may_be_named(tmp_path):
    pq.write_table(pa.table({"picture": [b"x"], "TEXT": ["chat"], "LANGUAGE": ["fr"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"has the columns picture, TEXT, LANGUAGE.*image_key="):
        opened(tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet", image_key="picture", caption_key="TEXT", language_key="LANGUAGE")
    assert source.read(0).captions == (Caption("chat", "fr"),)
    assert source.read(0).pictures[0].read() == b"x"


def test_bad_rows_are_named(tmp_path):
    damaged = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xe9x"))
    captions = pa.concat_arrays([pa.array(["", None, "text", "text"]), damaged])
    images = pa.array([{"bytes": b"x", "path": None}] * 2 + [None, {"bytes": None, "path": "a.png"}, None])
    pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet")
    for index, reason in ((0, "no caption"), (1, "no caption"), (4, "not UTF-8")):
        with pytest.raises(SampleError, match=reason) as caught:
            source.read(index)
        assert caught.value.name == f"{tmp_path}/a.parquet:row {index}"
    for index, reason in ((2, "it holds no picture"), (3, r"the file a\.png is outside")):
        with pytest.raises(SampleError, match=reason):
            source.read(index).pictures[0].read()


def test_a_damaged_file_is_refused(tmp_path, table):
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.parquet is no parquet file"):
        opened(tmp_path / "cut.parquet")


def test_without_pyarrow_the_extra_is_named(tmp_path, table, monkeypatch):
    pq.write_table(table, tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install 'altclip-jax\[parquet\]'"):
        opened(tmp_path / "a.parquet")


def test_an_epoch_reads_each_row_group_once(tmp_path, png, processor, monkeypatch):
    rows = [{"image": png(number), "caption": f"text {number}"} for number in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=5)
    sources = open_sources([SourceSpec(path=str(tmp_path / "a.parquet"))], "image_text")
    stream = ImageTextStream(sources, processor, seed=0, max_length=8)
    groups = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda *args, **named: groups.append(args[1]) or read(*args, **named)
    )
    with Batches(stream, 10, last_step=20) as loaded:
        examples = [example for batch in loaded for example in batch.arrays["example"].tolist()]
    assert sorted(examples) == list(range(200))
    assert sorted(groups) == sorted([*range(40), *range(40)])  # once for captions and once for pictures


def test_a_file_that_goes_while_it_is_read_is_no_bad_sample(tmp_path, table):
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=5)
    source = opened(path)
    again = pickle.loads(pickle.dumps(source))
    source.read(0)
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(GoneError, match=rf"{path} cannot be read any more .*Bring it back"):
        source.read(7)
    path.unlink()
    with pytest.raises(GoneError, match=rf"{path} cannot be read any more .*Bring it back"):
        again.read(0)
