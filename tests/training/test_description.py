"""What a run leaves written of itself: when two are the same, and what is said where they are not."""

import json

import pytest

from altclip_jax.training.config import RunConfig
from altclip_jax.training.description import (
    BEFORE,
    FORMAT,
    describe,
    differences,
    features_of,
    files_of,
    keep_own_past,
    read_description,
    read_features_of,
)


def run(folder, *paths, **values):
    return RunConfig.from_values(
        {
            "stage": "contrastive",
            "folder": "runs/one",
            "model": {"source": "BAAI/AltCLIP"},
            "data": {"train": [{"path": str(folder / path)} for path in paths]},
            **values,
        }
    )


def described(config):
    return json.loads(json.dumps(describe(config, files_of(config.data.train))))


def made(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_files_are_the_same_by_name_size_and_order_wherever_they_lie(tmp_path):
    here, there = (made(tmp_path / name, a__0_tar="00", a__1_tar="1", pairs_jsonl="{}") for name in ("here", "there"))
    written = described(run(here, "a/{0..1}.tar", "pairs.jsonl"))
    assert differences(described(run(there, "a/*.tar", "pairs.jsonl")), written) == []
    assert differences(described(run(there, "pairs.jsonl", "a/*.tar")), written) == [
        "data.train.0.files.0.tar: 2 -> 'absent'",
        "data.train.0.files.1.tar: 1 -> 'absent'",
        "data.train.0.files.pairs.jsonl: 'absent' -> 2",
        "data.train.1.files.0.tar: 'absent' -> 2",
        "data.train.1.files.1.tar: 'absent' -> 1",
        "data.train.1.files.pairs.jsonl: 2 -> 'absent'",
    ]
    assert differences(described(run(there, "a/{1,0}.tar", "pairs.jsonl")), written) == [
        "data.train.0.files, place 0: '0.tar' -> '1.tar'"
    ]
    made(there, a__1_tar="11")
    assert differences(described(run(there, "a/*.tar", "pairs.jsonl")), written) == ["data.train.0.files.1.tar: 1 -> 2"]


def test_a_source_that_is_read_otherwise_is_another(tmp_path):
    made(tmp_path, pairs_jsonl="{}")
    ours = run(tmp_path, data={"train": [{"path": str(tmp_path / "pairs.jsonl"), "weight": 2, "languages": ["zh"]}]})
    assert differences(described(ours), described(run(tmp_path, "pairs.jsonl"))) == [
        "data.train.0.languages: None -> ['zh']",
        "data.train.0.weight: 1.0 -> 2.0",
    ]


def test_what_0_1_0_wrote_is_read_source_by_source(tmp_path):
    """It named all files by their paths, in one table."""
    made(tmp_path, a__0_tar="0", a__1_tar="11", a__2_tar="222", pairs_jsonl="{}")
    config = run(tmp_path, "a/*.tar", "a/{2,0}.tar", "pairs.jsonl")
    values = config.to_dict()
    for name in BEFORE:
        table, key = name.split(".")
        del values[table][key]
    names = {
        f"/old/{name}": size for name, size in (("a/0.tar", 1), ("a/1.tar", 2), ("a/2.tar", 3), ("pairs.jsonl", 2))
    }
    for source in values["data"]["train"]:
        source["path"] = source["path"].replace(str(tmp_path), "/old")
    found = read_description({**values, "files": names})
    assert found["files"] == files_of(config.data.train)
    assert differences(describe(keep_own_past(config, found), files_of(config.data.train)), found) == []
    past = keep_own_past(config, found).data
    assert (past.orientation, past.use_fast) == ("stored", False)


def test_a_difference_at_the_end_of_a_long_value_is_shown(tmp_path):
    made(tmp_path, pairs_jsonl="{}")

    def with_rule(factor):
        rules = [{"match": "text_model/.*" * 9}, {"match": ".*", "factor": factor}]
        return described(run(tmp_path, "pairs.jsonl", optimizer={"rules": rules}))

    (line,) = differences(with_rule(0.5), with_rule(0.25))
    assert "'factor': 0.25" in line
    assert "'factor': 0.5" in line


def test_a_row_for_a_table_that_the_stage_has_not_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setitem(BEFORE, "teacher.max_length", 60)
    made(tmp_path, pairs_jsonl="{}")
    config = run(tmp_path, "pairs.jsonl")
    assert keep_own_past(config, read_description(described(config))) == config
    found = read_description({**config.to_dict(), "stage": "teacher", "teacher": {"source": "clip"}})
    assert found["teacher"]["max_length"] == 60


@pytest.mark.parametrize("by", ["me", {}, {"altclip_jax": "0.2.0"}])
def test_what_nobody_wrote_is_refused(tmp_path, by):
    with pytest.raises(ValueError, match=r"written by .*: expected the altclip_jax and the format"):
        read_description({"written_by": by})


def test_what_a_later_release_wrote_is_refused(tmp_path):
    made(tmp_path, pairs_jsonl="{}")
    found = described(run(tmp_path, "pairs.jsonl"))
    found["written_by"] = {"altclip_jax": "9.0", "format": FORMAT + 1}
    with pytest.raises(ValueError, match=r"written by altclip_jax 9\.0 in a form that this release does not know"):
        read_description(found)


@pytest.mark.parametrize(
    ("was", "now", "same"),
    [
        ("/mnt/first/student", "/mnt/second/student", True),
        ("/mnt/first/student", "student", True),  # relative to a file that no longer has it beside it
        ("/mnt/first/student", "/mnt/first/other", False),
        ("BAAI/AltCLIP", "BAAI/AltCLIP-m9", False),
        ("BAAI/AltCLIP", "someone/AltCLIP", False),
    ],
)
def test_a_model_is_the_same_wherever_its_folder_lies(tmp_path, was, now, same):
    made(tmp_path, pairs_jsonl="{}")
    ours, theirs = (described(run(tmp_path, "pairs.jsonl", model={"source": source})) for source in (now, was))
    assert differences(ours, theirs) == ([] if same else [f"model.source: {was!r} -> {now!r}"])


def test_all_missing_files_of_all_sources_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)no file .*a\.jsonl.*no file .*b\.jsonl"):
        files_of(run(tmp_path, "a.jsonl", "b.jsonl").data.train)


def test_features_are_of_files_by_name_size_and_time_wherever_they_lie(tmp_path):
    here = made(tmp_path / "here", a__0_tar="0", a__1_tar="1")
    sources = run(here, "a/*.tar").data.train
    written = features_of(sources, **{"data.orientation": "exif"})
    here.rename(tmp_path / "there")
    moved = run(tmp_path / "there", "a/{0,1}.tar").data.train
    assert features_of(moved, **{"data.orientation": "exif"}) == written
    assert features_of(moved, **{"data.orientation": "stored"}) != written
    made(tmp_path / "there", a__1_tar="2")
    assert features_of(moved, **{"data.orientation": "exif"}) != written


def test_features_of_0_1_0_are_known_again(tmp_path):
    sources = run(made(tmp_path, a__0_tar="0", a__1_tar="1"), "a/*.tar").data.train
    today = features_of(sources, **{"data.orientation": "stored"})
    files = [[f"/old/a/{name}", size, time] for name, size, time in today["sources"][0]["files"]]
    then = {"sources": [{**sources[0].model_dump(mode="json"), "path": "/old/a/*.tar", "files": files}]}
    assert read_features_of(then, {"data.orientation": "exif"}) == today
    assert read_features_of(today, {"data.orientation": "exif"}) == today


def test_features_by_another_teacher_are_others(tmp_path):
    sources = run(made(tmp_path, a__0_tar="0"), "a/*.tar").data.train
    one, other = (features_of(sources, teacher=name) for name in ("2:one", "2:other"))
    assert read_features_of(one, {"teacher": "2:one"}) == one
    assert read_features_of(one, {"teacher": "2:other"}) != other
    assert read_features_of({"sources": one["sources"]}, {"teacher": "2:one"}) == one
