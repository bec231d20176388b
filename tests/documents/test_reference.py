"""What documents say of the program is what the program says."""

import re
from pathlib import Path

import pytest

from altclip_jax.weights.families import ALTCLIP, CLIP, XLM_ROBERTA

ROOT = Path(__file__).parents[2]
FORMATS = (ROOT / "docs" / "checkpoint_formats.md").read_text(encoding="utf-8")


@pytest.fixture
def write_reference(program):
    return program("documents.write_reference")


def test_commands_and_names_are_those_of_the_program(write_reference):
    assert write_reference.main(["--check"]) == 0


def test_a_document_that_is_out_of_date_is_told_and_written_anew(write_reference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(write_reference, "DOCS", tmp_path)
    (tmp_path / "checkpoint_formats.md").write_text(FORMATS.replace("| transposed |", "| as it is |"), encoding="utf-8")
    assert write_reference.main(["--check"]) == 1
    assert "cli.md, checkpoint_formats.md" in capsys.readouterr().err
    assert write_reference.main([]) == 0
    assert (tmp_path / "checkpoint_formats.md").read_text(encoding="utf-8") == FORMATS
    assert write_reference.main(["--check"]) == 0


def test_every_rule_has_a_row_and_every_command_a_section():
    for table in (ALTCLIP, CLIP, XLM_ROBERTA):
        assert all(f"| `{rule.name}` | " in FORMATS for rule in table.rules)
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for line in (
        "## altclip train\n",
        "### altclip evaluate zero-shot\n",
        "| `--labels LABEL [LABEL ...]` | **needed**",
    ):
        assert f"\n{line}" in text


def test_other_spellings_are_read_as_the_document_says():
    table = FORMATS.partition("### Other spellings")[2].partition("###")[0]
    pairs = re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", table, re.MULTILINE)
    assert len(pairs) == 7
    for name, canonical in pairs:
        assert ALTCLIP.canonical_name(name) == canonical
        assert ALTCLIP.path_of(canonical)


def test_what_is_left_alone_is_what_the_document_says():
    section = FORMATS.partition("### What files hold beside")[2].partition("###")[0]
    names = re.findall(r"`(.+?)`", section)
    assert len(names) == 5
    assert all(ALTCLIP.is_ignored(name) for name in names)
