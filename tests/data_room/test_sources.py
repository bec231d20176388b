"""Patterns of file names, formats, and all that is wrong with a list of sources at once."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from altclip_jax.data.files import OpenFiles, find_files
from altclip_jax.data.sources import SourceSpec, open_sources


@pytest.fixture
def folder(tmp_path):
    for name in ("00.tar", "01.tar", "02.tar", "a.tsv", "b[1].tsv"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{00..02}.tar", ["00.tar", "01.tar", "02.tar"]),
        ("{01,00}.tar", ["01.tar", "00.tar"]),
        ("0{0..1}.{tar,tar}", ["00.tar", "00.tar", "01.tar", "01.tar"]),
        ("*.tar", ["00.tar", "01.tar", "02.tar"]),
        ("0[12].tar", ["01.tar", "02.tar"]),
        ("{a,0?}.t*", ["a.tsv", "00.tar", "01.tar", "02.tar"]),
        ("b[1].tsv", ["b[1].tsv"]),
    ],
)
def test_patterns_name_files(folder, pattern, names):
    assert [path.name for path in find_files(folder / pattern)] == names


def test_all_missing_files_of_a_range_are_named(folder):
    (folder / "02.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"02\.tar.*03\.tar") as caught:
        find_files(folder / "{00..03}.tar")
    assert "01.tar" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"x\*\.tar"):
        find_files(folder / "x*.tar")


def test_everything_wrong_with_the_sources_is_said_at_once(tmp_path):
    (tmp_path / "a.tsv").write_text("nothing\tuseful\n")
    (tmp_path / "a.zip").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    specs = [
        SourceSpec(path=str(tmp_path / name), **options)
        for name, options in (
            ("a.tsv", {}),
            ("a.zip", {}),
            ("a.tsv", {"source_key": "x"}),
            ("gone.tar", {}),
            ("empty.jsonl", {}),
            ("a.zip", {"weight": -1.0}),
        )
    ]
    with pytest.raises(ValueError, match="begins with the line") as caught:
        open_sources(specs, "image_text")
    message = str(caught.value)
    assert "a.zip has the format '.zip': expected one of csv, jsonl, parquet, tar, tsv" in message
    assert "source_key has no meaning here; tsv takes image_key, caption_key, language_key" in message
    assert "a.zip: weight=-1.0 must be a number above 0" in message
    assert "There is no file" in message
    assert "gone.tar" in message
    assert "empty.jsonl holds no samples" in message


def test_no_sources_and_missing_sources_are_refused():
    with pytest.raises(ValueError, match="no sources"):
        open_sources([], "image_text")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_sources([SourceSpec(path="nowhere.jsonl")], "text_pairs")
    with pytest.raises(ValueError, match="format"):
        open_sources([SourceSpec(path=__file__, format="tar")], "text_pairs")


def test_many_files_are_read_by_many_threads_with_few_open(tmp_path):
    for number in range(20):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 100)
    files = pickle.loads(pickle.dumps(OpenFiles(limit=3)))
    before = len(list(Path("/dev/fd").iterdir()))
    jobs = [(number, offset) for number in range(20) for offset in range(0, 120, 7)] * 5
    with ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(lambda job: files.read(tmp_path / str(job[0]), job[1], 10), jobs))
    for (number, offset), piece in zip(jobs, pieces, strict=True):
        assert piece == bytes([number]) * max(0, min(10, 100 - offset))
    assert len(list(Path("/dev/fd").iterdir())) <= before + 3
