"""The report of a zero-shot classification: numbers by language, what is confused, and the surest answers."""

from __future__ import annotations

import numpy as np

from altclip_jax.evaluation.report.charts import Bar, heat_map, nested_bars, reliability
from altclip_jax.evaluation.report.gallery import Gallery
from altclip_jax.evaluation.report.markup import Content, Markup, tag
from altclip_jax.evaluation.report.page import left_out, percent, table
from altclip_jax.evaluation.zero_shot_run import LanguageZeroShot, ZeroShotRun

_EXAMPLES, _ROWS, _COLUMNS = 9, 10, 16


def zero_shot_sections(run: ZeroShotRun, gallery: Gallery) -> list[Content]:
    """Returns a chart, a table, and calibration, confusions and examples of each language, the first one unfolded."""
    languages = run.summary()["languages"]
    bars = [
        Bar(language, [numbers["top1"], numbers["top5"]], [numbers["chance"]["top1"], numbers["chance"]["top5"]])
        for language, numbers in languages.items()
    ]
    rows = [
        [
            language,
            *(f"{numbers[name]:,}" for name in ("pictures", "classes", "templates")),
            *(percent(numbers[name]) for name in ("top1", "top5", "mean_per_class", "calibration_error")),
            percent(numbers["chance"]["top1"]),
        ]
        for language, numbers in languages.items()
    ]
    headings = ["language", "pictures", "classes", "prompts", "top-1", "top-5", "mean per class", "ECE", "guessing"]
    return [
        tag("div", nested_bars("accuracy (the number is top-1)", ["top-1", "top-5"], bars), class_="charts"),
        table(headings, rows),
        tag(
            "p",
            "ECE, the expected calibration error: predictions in 15 equally wide bins of confidence, the mean over"
            " predictions of the distance between accuracy and mean confidence of their bin.",
            class_="note",
        ),
        left_out(run.left_out),
        [_language(run, language, gallery, opened=not place) for place, language in enumerate(run.found)],
    ]


def zero_shot_facts(run: ZeroShotRun) -> list[str]:
    """Returns the lines below the title."""
    return [f"{len(run.pictures):,} pictures, {len(run.classes.keys):,} classes; languages: {', '.join(run.found)}"]


def _language(run: ZeroShotRun, language: str, gallery: Gallery, *, opened: bool) -> Markup:
    found = run.found[language]
    charts = tag("div", reliability(found.result.calibration()), _confusions(run, language), class_="charts")
    right, wrong = found.result.ranks == 0, found.result.ranks > 0
    return tag(
        "details",
        tag("summary", language),
        charts,
        _gallery(run, language, gallery, "right, and sure", right),
        _gallery(run, language, gallery, "wrong, and sure", wrong),
        open="open" if opened else None,
    )


def _confusions(run: ZeroShotRun, language: str) -> Markup | None:
    result = run.found[language].result
    worst = result.worst(_ROWS)
    if not worst:
        return None
    others = dict.fromkeys(worst)
    counts = np.zeros((len(worst), result.classes))
    for row, place in enumerate(worst):
        counts[row] = np.bincount(result.predicted[result.right == place], minlength=result.classes)
        others |= dict.fromkeys(other for other, _ in result.confusions(place)[:2])
    columns = [*others][: max(_COLUMNS, len(worst))]
    shares = counts[:, columns] / result.counts[worst][:, None]
    names = [run.name(language, place) for place in worst]
    return heat_map(
        "what the worst classes (rows) are taken for, in %", names, [run.name(language, o) for o in columns], shares
    )


def _gallery(run: ZeroShotRun, language: str, gallery: Gallery, title: str, which: np.ndarray) -> Content:
    found = run.found[language]
    order = np.flatnonzero(which)[np.argsort(-found.result.confidence[which], kind="stable")][:_EXAMPLES]
    if not order.size:
        return None
    shown = [_example(run, language, found, int(place), gallery) for place in order]
    return [tag("h3", title), tag("div", shown, class_="examples")]


def _example(run: ZeroShotRun, language: str, found: LanguageZeroShot, place: int, gallery: Gallery) -> Markup:
    result = found.result
    right = result.ranks[place] == 0
    lines = [
        tag("p", tag("strong", run.name(language, int(result.right[place])), lang=language, dir="auto")),
        tag(
            "p",
            "taken for ",
            tag("span", run.name(language, int(result.predicted[place])), lang=language, dir="auto"),
            f", {percent(float(result.confidence[place]))} % sure",
            class_="good" if right else "bad",
        ),
        None if right else tag("p", f"its class is in place {int(result.ranks[place]) + 1:,} of {result.classes:,}"),
    ]
    picture = run.pictures[int(found.pictures[place])]
    return tag("div", tag("div", gallery.show(picture), tag("div", lines), class_="row"), class_="example")
