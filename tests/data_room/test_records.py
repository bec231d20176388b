"""JSONL, CSV and TSV: what is read, under which names, and what one damaged line costs."""

import csv
import io
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altclip_jax.data.records import Records
from altclip_jax.data.samples import Caption, SampleError
from altclip_jax.data.sources import SourceSpec, open_sources

ROLES = {"image": ("image", "filepath"), "caption": ("caption", "title")}


def records(path, form=None):
    return Records([path], form or path.suffix[1:], ROLES, ("image", "caption"))


def written(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def source(path, kind="image_text", **options):
    return open_sources([SourceSpec(path=str(path), **options)], kind).sources[0]


def bad(source, index):
    with pytest.raises(SampleError) as caught:
        source.read(index)
    return caught.value


# tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@given(
    rows=st.lists(st.tuples(st.text(min_size=1), st.text()), max_size=8),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_csv_reads_what_csv_writes(tmp_path_factory, delimiter, ending, rows, quoting):
    # a lone carriage return is written without quotes unless all fields have them
    lost = str.maketrans("", "", "\0\r" if quoting == csv.QUOTE_MINIMAL else "\0")
    rows = [tuple(field.translate(lost).encode("utf-8", "ignore").decode() for field in row) for row in rows]
    rows = [row for row in rows if row[0]]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    writer.writerows([("filepath", "title"), *rows])
    path = written(tmp_path_factory.mktemp("csv"), "a.csv", file.getvalue())
    found = records(path)
    assert [(fields["image"], fields["caption"]) for fields in map(found.read, range(len(found)))] == rows


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_tables_with_tabs_are_read_line_by_line_and_keep_their_quotes(tmp_path, name):
    text = 'filepath\ttitle\na.png\t"Yes," he said\nb.png\t5" pipe\nc.png\t"a ""whole"" field"\nd.png\t"open\n'
    found = records(written(tmp_path, name, text))
    captions = [found.read(index)["caption"] for index in range(len(found))]
    assert captions == ['"Yes," he said', '5" pipe', 'a "whole" field', '"open']


def test_a_table_may_begin_with_a_byte_order_mark_and_have_blank_lines(tmp_path):
    found = records(written(tmp_path, "a.csv", "\ufeffimage,caption\r\n\r\na.png,one\r\n\n\nb.png,two"))
    assert [found.read(index) for index in range(len(found))] == [
        {"image": "a.png", "caption": "one"},
        {"image": "b.png", "caption": "two"},
    ]
    assert [found.name(index).rpartition(":")[2] for index in range(2)] == ["3", "6"]


def test_a_quote_that_does_not_close_costs_its_own_line_only(tmp_path):
    text = 'image,caption\na.png,"open\nb.png,two\n'
    text += 'c.png,"three\nlines, ""quoted"" "\nd.png,5" pipe\ne.png,"x" y\nf.png,g\n'
    found = source(written(tmp_path, "a.csv", text))
    assert "quotes" in str(bad(found, 0))
    assert "quotes" in str(bad(found, 4))
    assert [found.read(index).captions[0].text for index in (1, 2, 3, 5)] == [
        "two",
        'three\nlines, "quoted"',
        '5" pipe',
        "g",
    ]
    assert found.read(5).name == f"{tmp_path}/a.csv:8"


def test_a_row_of_another_width_is_bad(tmp_path):
    found = source(written(tmp_path, "a.tsv", "image\tcaption\na.png\tone\ttoo many\n"))
    assert str(bad(found, 0)) == f"{tmp_path}/a.tsv:2: it has 3 fields and the header 2"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_without_the_columns_is_refused_with_its_first_line(tmp_path, name):
    path = written(tmp_path, name, "url\ttext\n1\t2\n")
    with pytest.raises(ValueError, match=r"begins with the line .*url.*image_key="):
        source(path)
    with pytest.raises(ValueError, match="is empty"):
        source(written(tmp_path, f"empty_{name}", ""))


def test_columns_may_be_named(tmp_path):
    path = written(tmp_path, "a.csv", "url;said;lang;title\nx.png;one;fr;two\n")
    found = source(path, image_key="url", caption_key="said", language_key="lang")
    assert found.read(0).captions == (Caption("one", "fr"),)
    assert found.read(0).pictures[0].name == "x.png"


def test_languages_of_a_table_are_a_column(tmp_path):
    path = written(tmp_path, "a.csv", "image,caption,language\na.png,cat,en\nb.png,猫,zh\nc.png,chat,fr\nd.png,,zh\n")
    found = source(path, languages=("zh", "fr"))
    assert [found.read(index).captions[0] for index in range(2)] == [Caption("猫", "zh"), Caption("chat", "fr")]
    assert "caption" in bad(found, 2).reason  # it is told, although its language cannot be


# JSONL -----------------------------------------------------------------------------------------------------------


def jsonl(tmp_path, *values, name="a.jsonl"):
    lines = [value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode() for value in values]
    return written(tmp_path, name, b"\n".join(lines))


def test_a_field_that_is_named_is_the_only_one_and_may_have_languages(tmp_path):
    names = {"en": "cat", "zh": ["猫"]}
    path = jsonl(tmp_path, {"image": "a.png", "captions": {"en": ["cat", "pet"]}, "names": names, "language": "fr"})
    assert source(path, caption_key="names").read(0).captions == (Caption("cat", "en"), Caption("猫", "zh"))
    assert source(path, caption_key="names", languages=("zh",)).read(0).captions == (Caption("猫", "zh"),)
    assert len(source(path).read(0).captions) == 2


def test_captions_are_a_string_or_several_and_by_language(tmp_path):
    path = jsonl(
        tmp_path,
        {"image": "a.png", "caption": " one "},
        {"image": "a.png", "caption": ["one", "", "two"], "language": "en"},
        {"image": "a.png", "captions": {"en": "cat", "zh": ["猫", "小猫"], "fr": None}},
    )
    found = source(path)
    assert [found.read(index).captions for index in range(3)] == [
        (Caption("one", None),),
        (Caption("one", "en"), Caption("two", "en")),
        (Caption("cat", "en"), Caption("猫", "zh"), Caption("小猫", "zh")),
    ]


def test_only_captions_in_the_languages_asked_for_are_left(tmp_path):
    path = jsonl(
        tmp_path,
        {"image": "a.png", "captions": {"en": "cat", "zh": "猫"}},
        {"image": "b.png", "caption": "no language"},
        {"image": ["c.png", "d.png"], "captions": {"zh": "狗"}},
        {"image": "e.png", "captions": {"en": "dog"}},
    )
    found = source(path, languages=["zh"])
    assert [found.read(index).captions for index in range(len(found))] == [
        (Caption("猫", "zh"),),
        (Caption("狗", "zh"),),
    ]
    assert [found.first_picture(index) for index in range(3)] == [0, 1, 3]
    with pytest.raises(ValueError, match="holds no samples in de"):
        source(path, languages=["de"])


def test_pictures_are_counted_over_lists(tmp_path):
    path = jsonl(
        tmp_path, {"image": ["a", "b"], "caption": "x"}, b"{", {"image": "c", "caption": "y"}, {"caption": "z"}
    )
    found = source(path)
    assert [found.first_picture(index) for index in range(5)] == [0, 2, 3, 4, 5]
    assert [picture.name for picture in found.read(0).pictures] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"image": "a", "caption": "caf\xe9"}', "not UTF-8"),
        (b'{"image": "a", "caption": "b"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "JSON list"),
        (b'{"image": "a"}', "no caption"),
        (b'{"image": "a", "caption": "  "}', "no caption"),
        (b'{"image": "a", "caption": ["", " "]}', "no caption"),
        (b'{"image": "a", "caption": 3}', "caption is a int"),
        (b'{"image": "a", "caption": "\\ud800"}', "surrogate"),
        (b'{"image": "a", "captions": ["b"]}', "captions is a list"),
        (b'{"image": "a", "captions": {"en": 3}}', "captions.en is a int"),
        (b'{"image": "a", "caption": "b", "language": 3}', "language is a int"),
        (b'{"image": [], "caption": "b"}', "no image"),
        (b'{"image": 3, "caption": "b"}', "no image"),
        (b'{"image": ["a", ""], "caption": "b"}', "no image"),
        (b'{"caption": "b"}', "no image"),
    ],
)
def test_a_damaged_line_is_named_and_costs_nothing_else(tmp_path, line, reason):
    good = {"image": "g.png", "caption": "good"}
    found = source(jsonl(tmp_path, good, line, good))
    assert len(found) == 3
    error = bad(found, 1)
    assert reason in error.reason
    assert error.name == f"{tmp_path}/a.jsonl:2"
    assert found.read(0).captions == found.read(2).captions == (Caption("good", None),)


def test_jsonl_may_begin_with_a_byte_order_mark(tmp_path):
    found = source(jsonl(tmp_path, b'\xef\xbb\xbf{"image": "a", "caption": "one"}', {"image": "b", "caption": "two"}))
    assert [found.read(index).captions[0].text for index in range(2)] == ["one", "two"]


def test_several_files_are_one_source_and_paths_are_relative_to_their_file(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p").write_bytes(name.encode())
        jsonl(tmp_path / name, {"image": "p", "caption": name})
    found = source(tmp_path / "{one,two}" / "a.jsonl")
    assert [found.read(index).pictures[0].read() for index in range(2)] == [b"one", b"two"]


def test_a_source_is_opened_again_where_it_is_unpickled(tmp_path):
    found = source(jsonl(tmp_path, {"image": "a", "caption": "one"}, {"image": "b", "caption": "two"}))
    found.read(0)
    again = pickle.loads(pickle.dumps(found))
    assert again.read(1).captions == found.read(1).captions


# parallel text ---------------------------------------------------------------------------------------------------


def pairs(path, **options):
    found = source(path, kind="text_pairs", **options)
    return [(pair.source, pair.target, pair.language) for pair in map(found.read, range(len(found)))]


def test_pairs_are_read_from_each_format(tmp_path):
    expected = [("cat", "猫", "zh"), ('"dog"', "chien", None)]
    values = [{"source": a, "target": b, **({"language": c} if c else {})} for a, b, c in expected]
    assert pairs(jsonl(tmp_path, *values)) == expected
    with_header = 'target\tlanguage\tsource\n猫\tzh\tcat\nchien\t\t"""dog"""\n'
    assert pairs(written(tmp_path, "a.tsv", with_header)) == expected
    assert pairs(written(tmp_path, "b.tsv", 'cat\t猫\tzh\n"""dog"""\tchien\n')) == expected  # without a header
    assert pairs(written(tmp_path, "a.csv", 'source,target,language\ncat,猫,zh\n"""dog""",chien,\n')) == expected


def test_sides_of_pairs_may_be_named(tmp_path):
    path = written(tmp_path, "a.tsv", "en\tde\ncat\tKatze\n")
    assert pairs(path, source_key="en", target_key="de") == [("cat", "Katze", None)]
    with pytest.raises(ValueError, match="names of its columns"):
        pairs(path, source_key="en", target_key="fr")


def test_pairs_can_be_chosen_by_language(tmp_path):
    path = written(tmp_path, "a.tsv", "cat\t猫\tzh\ncat\tchat\tfr\n")
    assert pairs(path, languages=["fr"]) == [("cat", "chat", "fr")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"cat\t \tzh", "target is empty"),
        (b"\t\tzh", "source and target is empty"),
        (b"only one", "target is a NoneType"),
        (b"caf\xe9\tx", "not UTF-8"),
    ],
)
def test_a_bad_pair_is_named(tmp_path, line, reason):
    found = source(written(tmp_path, "a.tsv", b"cat\tchat\tfr\n" + line + b"\n"), kind="text_pairs")
    error = bad(found, 1)
    assert reason in error.reason
    assert error.name == f"{tmp_path}/a.tsv:2"
