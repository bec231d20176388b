"""Every fenced block of README and docs/ runs, or says why it does not, and is checked all the same.

A block that is not run has the comment `not run by the tests: why` above its fence. Of such a one the syntax is
checked, of `altclip` in it the options, and of a training run the settings. What trains is cut to two steps.
"""

import gzip
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

from altclip_jax import cli
from altclip_jax.assets import PICTURES, default_checkpoint
from altclip_jax.training.config import RunConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
OWN_TEST = "docs/from_transformers.md"  # runs in test_from_transformers.py, whose names are those of two libraries
OPERATORS = {"&&", "||", "|", ";", ">", "<"}


@pytest.fixture
def folder(tmp_path):
    """A folder with what the documents speak of: the repository's own, some pictures and lists, a model."""
    for name in ("altclip_jax", "recipes", "scripts", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(default_checkpoint(), tmp_path / "BAAI" / "AltCLIP")
    (tmp_path / "photos").mkdir()
    for name in ("cat", "rocket", "banana"):
        shutil.copy(PICTURES / f"{name}_noto.png", tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "cat.txt").write_text("a cat", encoding="utf-8")
    shutil.copy(PICTURES / "cat_noto.png", tmp_path / "photo.jpg")  # Pillow looks at what a file begins with
    (tmp_path / "captions.txt").write_text("a cat\n一只猫\n", encoding="utf-8")
    (tmp_path / "captions.gz").write_bytes(gzip.compress("a cat\n一只猫\n".encode()))
    (tmp_path / "list.jsonl").write_text('{"image": "photos/cat.png", "caption": "a cat"}\n', encoding="utf-8")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "00000.tar", "w") as tar:
        for name in ("cat.png", "cat.txt", "rocket.png"):
            tar.add(tmp_path / "photos" / name, name)
    return tmp_path


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != OWN_TEST])
def test_every_block_runs_or_says_why_not(name, blocks_of, shell, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {"__name__": "__main__"}
    for block in blocks_of(name):
        where = f"{name}, line {block.line}"
        if block.language == "python":
            code = compile("\n" * block.line + block.text, name, "exec")
            if not block.not_run:
                exec(code, names)
        elif block.language == "bash" and not block.not_run:
            shell(block.text, folder)
        elif block.language == "bash":
            check_bash(block.text, where)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            check_settings(tomllib.loads(block.text))
        else:
            assert block.language == "text", f"{where}: what language is ```{block.language}?"
    if name == "docs/training.md":
        check_run(folder / "runs" / "emoji_contrastive")


def check_settings(values):
    """Checks that what a document shows of a run's file are settings, and values that they take."""
    recipe = {"teacher": "teacher_learning", "contrastive": "contrastive"}[values.get("stage", "contrastive")]
    whole = tomllib.loads((ROOT / "recipes" / "altclip" / f"{recipe}.toml").read_text(encoding="utf-8"))
    for name, value in values.items():
        whole[name] = {**whole[name], **value} if isinstance(value, dict) and name in whole else value
    RunConfig.from_values(whole)


def check_bash(text, where):
    """Checks what is not run: the syntax, the options of `altclip`, the settings of its runs."""
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for words in commands(text):
        try:
            options = cli.parse(words)
        except SystemExit:
            pytest.fail(f"{where}: altclip does not take {shlex.join(words)}")
        if options.run.__name__ == "_launch":
            options = cli.parse(options.command)
        if hasattr(options, "settings"):
            there = ROOT / options.config
            config = there if there.is_file() else ROOT / "recipes/altclip/contrastive.toml"  # run.toml: the reader's
            RunConfig.read(config, options.settings)


def check_run(folder):
    """Checks that docs/checkpoint_formats.md tells everything that a run has left."""
    document = (ROOT / "docs" / "checkpoint_formats.md").read_text(encoding="utf-8")
    listing = document.partition("## The folder of a run")[2].partition("```text\n")[2].partition("```")[0]
    told = {line.split("/")[0].split()[0] for line in listing.splitlines()}
    assert {path.name for path in folder.iterdir()} <= told


def commands(text):
    """Returns the arguments of each `altclip` in a script, also of those in quotes."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words = list(lexer)
        for place, word in enumerate(words):
            if word == "altclip" or word.endswith("/altclip"):
                rest = words[place + 1 :]
                end = next((index for index, item in enumerate(rest) if item in OPERATORS), len(rest))
                found.append(rest[:end])
            elif " " in word and "altclip " in word:
                found += commands(word[word.index("altclip ") :])
    return found


def test_the_settings_beside_flags_of_open_clip_are_settings():
    text = (ROOT / "docs" / "from_open_clip.md").read_text(encoding="utf-8")
    table = text.partition("## Flags and settings")[2].partition("\n## ")[0].replace(r"\|", "|")
    spans = re.findall("`(.+?)`", "".join(line.split(" | ")[1] for line in table.splitlines() if " | " in line))
    names = [span for span in spans if re.fullmatch(r"[a-z]+\.[a-z_]+", span) and ".json" not in span]
    assert len(names) > 15
    for name in names:
        part, _, field = name.partition(".")
        assert field in RunConfig.model_fields[part].annotation.model_fields, name
    for span in spans:
        if " = " in span:
            check_settings(tomllib.loads(f'stage = "contrastive"\n{span}'))


def test_commands_are_found_behind_others_and_in_quotes():
    text = """# a comment with altclip train
srun --kill=1 altclip train run.toml \\
    mesh.fsdp=8 && echo done
ssh --command="altclip info" # altclip
.venv/bin/altclip search 'a cat' --index corpus | head
"""
    assert commands(text) == [["train", "run.toml", "mesh.fsdp=8"], ["info"], ["search", "a cat", "--index", "corpus"]]


def test_an_option_that_does_not_exist_is_seen_where_nothing_runs(capsys):
    check_bash("altclip train run.toml mesh.fsdp=8 --distributed auto", "here")
    with pytest.raises(pytest.fail.Exception, match="--no-such"):
        check_bash("altclip train run.toml --no-such", "here")
    with pytest.raises(ValueError, match=r"mesh\.fdsp"):
        check_bash("altclip train run.toml mesh.fdsp=8", "here")
