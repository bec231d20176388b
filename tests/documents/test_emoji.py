"""The tables of docs/emoji.md and of the model card are those of the report that stands beside them."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("document", "made_by", "first"),
    [("docs/emoji.md", "tables", "| teacher, English"), ("altclip_jax/assets/MODEL_CARD.md", "card", "| en |")],
)
def test_the_tables_are_those_of_the_report(program, document, made_by, first):
    report = program("emoji.report")
    text = (ROOT / document).read_text(encoding="utf-8")
    shown = text.partition(report.MARKS[0])[2].partition(report.MARKS[1])[0].strip()
    result = json.loads((ROOT / "docs" / "emoji_report.json").read_text(encoding="utf-8"))
    assert shown == getattr(report, made_by)(result).strip()
    assert first in shown
