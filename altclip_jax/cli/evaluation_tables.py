"""The numbers of evaluations as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_RETRIEVAL = {
    "text_to_image@1": "text to\npicture\nR@1",
    "text_to_image@5": "\n\nR@5",
    "text_to_image@10": "\n\nR@10",
    "image_to_text@1": "picture\nto text\nR@1",
    "image_to_text@5": "\n\nR@5",
    "image_to_text@10": "\n\nR@10",
    "mean_recall": "\nmean\nrecall",
}
_ZERO_SHOT = {"top1": "\n\ntop-1", "top5": "\n\ntop-5", "mean_per_class": "\nper\nclass"}


def print_retrieval(summary: Mapping[str, Any]) -> None:
    """Prints recall by language, the mean of several, and what guessing gives."""
    languages, mean = summary["languages"], summary["mean"]
    print(
        f"{summary['model']}: {summary['pictures']:,} pictures, {summary['captions']:,} captions in"
        f" {len(languages)} language{'s' * (len(languages) != 1)}; recall in %"
    )
    table = Table("\n\nlanguage", *_RETRIEVAL.values())
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


def print_zero_shot(summary: Mapping[str, Any]) -> None:
    """Prints accuracy by language, and what the worst classes of the first language are taken for."""
    languages = summary["languages"]
    print(
        f"{summary['model']}: {summary['pictures']:,} pictures, {summary['classes']:,} classes; in %"
        "\n(per class: mean over classes; ECE: expected calibration error; guess: top-1 of guessing)"
    )
    table = Table("\nlang")
    for heading in ("pictures", "classes", "prompts", "top-1", "top-5", "per\nclass", "ECE", "guess"):
        table.add_column(heading if "\n" in heading else f"\n{heading}", justify="right")
    for language, numbers in languages.items():
        measured = (numbers["top1"], numbers["top5"], numbers["mean_per_class"], numbers["calibration_error"])
        table.add_row(
            language,
            *(f"{numbers[name]:,}" for name in ("pictures", "classes", "templates")),
            *(_percent(value) for value in (*measured, numbers["chance"]["top1"])),
        )
    Console().print(table)
    language, numbers = next(iter(languages.items()))
    if numbers["worst_classes"]:
        _print_worst(language, numbers["worst_classes"])
    _print_left_out(summary["left_out"])


def print_paper(summary: Mapping[str, Any]) -> None:
    """Prints our numbers beside those that were published, and what could not be run."""
    print(f"{summary['model']}; in %, and the difference in points")
    for metrics in (_RETRIEVAL, _ZERO_SHOT):
        rows = [row for row in summary["comparisons"] if {*row["ours"]} == {*metrics}]
        if rows:
            _print_comparison(rows, metrics)
    for source in dict.fromkeys(source for row in summary["comparisons"] for source in row["sources"].values()):
        print(f"published: {source}")
    others = {
        row["benchmark"]: f"{row['pictures']:,} pictures of {row['published_pictures']:,}"
        for row in summary["comparisons"]
        if row["published_pictures"] not in (None, row["pictures"])
    }
    for name, told in others.items():
        print(f"not the whole benchmark, so the difference means nothing: {name}, {told}")
    for name, reason in summary["failed"].items():
        print(f"failed: {name}: {reason}")
    for name, signs in summary["absent"].items():
        print(f"not there: {name} ({' or '.join(signs)})")


def _print_comparison(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]) -> None:
    table = Table("\n\nbenchmark")
    for title in metrics.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(f"{row['benchmark']} {row['language']}")
        lines = {"ours": row["ours"], row["published_model"]: row["published"], "difference": row["difference"]}
        for name, values in lines.items():
            form = "{:+.1f}" if name == "difference" else "{:.1f}"
            if values:
                table.add_row(f"  {name}", *(form.format(values[key]) if key in values else "" for key in metrics))
        table.add_section()
    Console().print(table)


def _print_worst(language: str, worst: Sequence[Mapping[str, Any]]) -> None:
    table = Table(f"worst classes ({language})", "pictures", "right", "taken for")
    for column in table.columns[1:3]:
        column.justify = "right"
    for entry in worst:
        taken = ", ".join(f"{other['name']} {_percent(other['share'])}" for other in entry["taken_for"])
        table.add_row(entry["name"], f"{entry['pictures']:,}", _percent(entry["accuracy"]), taken)
    Console().print(table)


def _recalls(numbers: Mapping[str, Any]) -> list[str]:
    both = [*numbers["text_to_image"].values(), *numbers["image_to_text"].values(), numbers["mean_recall"]]
    return [_percent(value) for value in both]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _print_left_out(left_out: Mapping[str, str]) -> None:
    if left_out:
        print(f"left out, because they cannot be used: {len(left_out)}")
    for name, reason in list(left_out.items())[:10]:
        print(f"  {name}: {reason}")
