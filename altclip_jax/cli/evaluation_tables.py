"""The numbers of evaluations as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_retrieval(summary: Mapping[str, Any]) -> None:
    """Prints recall by language, the mean of several, and what guessing gives."""
    languages, mean = summary["languages"], summary["mean"]
    at = list(mean["text_to_image"])
    print(
        f"{summary['model']}: {summary['pictures']:,} pictures, {summary['captions']:,} captions in"
        f" {len(languages)} language{'s' * (len(languages) != 1)}; recall in %"
    )
    table = Table("\n\nlanguage")
    for heading in ("text to\npicture", "picture\nto text"):
        for k in at:
            table.add_column(f"{heading if k == at[0] else chr(10)}\nR@{k}")
    table.add_column("\nmean\nrecall")
    for column in table.columns[1:]:
        column.justify = "right"
    for language, numbers in languages.items():
        table.add_row(language, *_recalls(numbers))
    table.add_section()
    if len(languages) > 1:
        table.add_row("mean", *_recalls(mean))
    table.add_row("guessing", *_recalls(mean["chance"]))
    Console().print(table)
    _print_left_out(summary["left_out"])


def _recalls(numbers: Mapping[str, Any]) -> list[str]:
    both = [*numbers["text_to_image"].values(), *numbers["image_to_text"].values(), numbers["mean_recall"]]
    return [f"{100 * value:.1f}" for value in both]


def _print_left_out(left_out: Mapping[str, str]) -> None:
    if left_out:
        print(f"left out, because they cannot be used: {len(left_out)}")
    for name, reason in list(left_out.items())[:10]:
        print(f"  {name}: {reason}")
