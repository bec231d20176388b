"""JSON and TOML that nest deeper than anything has a use for are refused with a sentence, wherever they are read."""

import ast
import json
import shutil
from pathlib import Path

import pytest

import altclip_jax
from altclip_jax import AltCLIPConfig, AltCLIPImageProcessor, AltCLIPTokenizer, CLIPTokenizer
from altclip_jax.data.bad_samples import _names_in
from altclip_jax.data.records import Records
from altclip_jax.data.webdataset import Shards, sample_fields
from altclip_jax.evaluation.benchmarks.captions import coco_captions
from altclip_jax.evaluation.classes import read_classes, read_templates
from altclip_jax.files.json_file import parse_json, parse_toml, read_json_object
from altclip_jax.training.config import RunConfig, override
from altclip_jax.training.log import _entries_until
from altclip_jax.weights.readers import open_checkpoint

ROOT = Path(altclip_jax.__file__).parent
XLMR = Path(__file__).parents[1] / "data" / "xlmr"
DEPTHS = [101, 600, 100_000]  # 600 levels Python's own parser takes, and copy.deepcopy does not
OURS = {"files/json_file.py", "distributed.py"}  # the latter reads what our processes say


def deep(depth):
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


def safetensors(folder, depth):
    header = deep(depth).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with open_checkpoint(folder):
        pass


def tokenizer_file(name, read=AltCLIPTokenizer, beside=()):
    def tokenizer(folder, depth):
        for file in beside:
            shutil.copy(file, folder)
        (folder / name).write_text(deep(depth))
        read.from_pretrained(folder)

    return tokenizer


def file(name, read, form=deep):
    def reader(folder, depth):
        (folder / name).write_text(form(depth))
        read(folder / name)

    return reader


def webdataset(folder, depth, write_tar):
    write_tar(folder / "a.tar", {"x.jpg": b"", "x.json": deep(depth).encode()})
    sample_fields(Shards([folder / "a.tar"], {"json": "json", "text": "txt"}), 0, {"caption": ("caption",)})


VOCABULARY = XLMR / "sentencepiece.bpe.model"
ADDED = [VOCABULARY, XLMR / "special_tokens_map.json"]
READERS = {
    "config.json": file("config.json", AltCLIPConfig.from_json),
    "preprocessor_config.json": file(
        "preprocessor_config.json", lambda path: AltCLIPImageProcessor.from_pretrained(path.parent)
    ),
    "tokenizer.json": tokenizer_file("tokenizer.json"),
    "tokenizer.json beside a vocabulary": tokenizer_file("tokenizer.json", beside=ADDED),
    "tokenizer_config.json": tokenizer_file("tokenizer_config.json", beside=[VOCABULARY]),
    "special_tokens_map.json": tokenizer_file("special_tokens_map.json", beside=[VOCABULARY]),
    "added_tokens.json": tokenizer_file("added_tokens.json", beside=[VOCABULARY]),
    "vocab.json": lambda folder, depth: [
        (folder / "merges.txt").write_text("#version: 0.2\n"),
        tokenizer_file("vocab.json", CLIPTokenizer)(folder, depth),
    ],
    "model.safetensors": safetensors,
    "model.safetensors.index.json": file("model.safetensors.index.json", lambda path: open_checkpoint(path.parent)),
    "store.json": file("store.json", read_json_object),
    "a list": file("a.jsonl", lambda path: Records([path], "jsonl", {"image": ("a",)}, ()).read(0)),
    "classes.json": file("classes.json", read_classes),
    "classes.toml": file("classes.toml", read_classes, lambda depth: "a = " + "[" * depth + "]" * depth),
    "templates.json": file("templates.json", read_templates),
    "annotations.json": file("annotations.json", lambda path: coco_captions(path, path.parent)),
    "run.toml": file("run.toml", RunConfig.read, lambda depth: "a = " + "[" * depth + "]" * depth),
    "run.toml with dots": file("run.toml", RunConfig.read, lambda depth: ".".join("a" * min(depth, 2000)) + " = 1"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_file_that_nests_too_deep_is_refused_with_a_sentence(tmp_path, name, depth):
    # a tokenizer.json without another vocabulary is read by the tokenizers library, which has a limit of its own
    words = "cannot be read as a tokenizer" if name == "tokenizer.json" else "more than 100 levels"
    with pytest.raises(ValueError, match=words) as caught:
        READERS[name](tmp_path, depth)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_sample_whose_json_nests_too_deep_is_a_bad_one(tmp_path, write_tar, depth):
    with pytest.raises(ValueError, match="more than 100 levels"):
        webdataset(tmp_path, depth, write_tar)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_line_of_a_log_that_nests_too_deep_counts_as_damaged(tmp_path, depth):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + deep(depth) + '\n{"step": 2}\n')
    assert [entry["step"] for _, entry in _entries_until(tmp_path / "metrics.jsonl", 2)] == [1, 2]
    assert _names_in(f'{{"sample": "x"}}\n{deep(depth)}\n'.encode()) == {"x"}


def test_an_override_that_nests_too_deep_is_refused():
    for setting in ("a=" + "[" * 5000 + "]" * 5000, ".".join("a" * 5000) + "=1"):
        with pytest.raises(ValueError, match="more than 100 levels"):
            override({}, setting)


def test_what_has_uses_is_parsed_as_ever():
    for text in ("[1, {}]", deep(100), '{"a": NaN}', '"x"'):
        assert repr(parse_json(text)) == repr(json.loads(text)) == repr(parse_json(text.encode()))
    assert parse_json(json.dumps([[]] * 1000)) == [[]] * 1000
    assert parse_toml("a.b = [1, {c = 2}]") == {"a": {"b": [1, {"c": 2}]}}


def test_no_other_code_parses_json_or_toml():
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.load", "json.loads", "tomllib.loads"):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == OURS
