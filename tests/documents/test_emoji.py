"""The tables of docs/emoji.md are those of the report that stands beside it."""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_those_of_the_report(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    spec = importlib.util.spec_from_file_location("emoji_report", ROOT / "scripts" / "emoji_report.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    text = (ROOT / "docs" / "emoji.md").read_text(encoding="utf-8")
    shown = text.partition(report.MARKS[0])[2].partition(report.MARKS[1])[0].strip()
    assert shown == report.tables(json.loads((ROOT / "docs" / "emoji_report.json").read_text(encoding="utf-8"))).strip()
    assert "| teacher, English" in shown
