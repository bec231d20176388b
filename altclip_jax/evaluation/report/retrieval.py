"""The report of a retrieval: numbers by language, and the queries that went best and worst."""

from __future__ import annotations

from typing import Any

import numpy as np

from altclip_jax.evaluation.report.charts import Bar, nested_bars
from altclip_jax.evaluation.report.gallery import Gallery
from altclip_jax.evaluation.report.markup import Content, Markup, tag
from altclip_jax.evaluation.report.page import left_out, percent, table
from altclip_jax.evaluation.retrieval import LanguageRecall
from altclip_jax.evaluation.retrieval_run import RetrievalRun

_EXAMPLES, _FOUND = 6, 3
DIRECTIONS = {"text_to_image": "text to picture", "image_to_text": "picture to text"}


def retrieval_sections(run: RetrievalRun, gallery: Gallery) -> list[Content]:
    """Returns charts, a table, and examples for each language, the first one's unfolded."""
    summary = run.summary()
    return [
        tag("div", (_chart(summary["languages"], name, title) for name, title in DIRECTIONS.items()), class_="charts"),
        _numbers(summary),
        left_out(run.left_out),
        tag("h3", "Best and worst queries"),
        tag(
            "p",
            "Best: what was found first, by its score. Worst: what was found last. A green frame or line is right,"
            " beside it stands what else came first; the numbers are cosines.",
            class_="note",
        ),
        [_examples(run, language, gallery, opened=not place) for place, language in enumerate(run.found)],
    ]


def retrieval_facts(run: RetrievalRun) -> list[str]:
    """Returns the lines below the title."""
    captions = sum(len(recall.texts) for recall in run.found.values())
    return [f"{len(run.collection.pictures):,} pictures, {captions:,} captions; languages: {', '.join(run.found)}"]


def _chart(languages: dict[str, Any], direction: str, title: str) -> Markup:
    names = [f"R@{k}" for k in next(iter(languages.values()))[direction]]
    bars = [
        Bar(language, [*numbers[direction].values()], [*numbers["chance"][direction].values()])
        for language, numbers in languages.items()
    ]
    return nested_bars(f"{title}: recall (the number is {names[0]})", names, bars)


def _numbers(summary: dict[str, Any]) -> Markup:
    mean = summary["mean"]
    headings = [f"{title} R@{k}" for name, title in DIRECTIONS.items() for k in mean[name]]
    rows = [
        [language, numbers["captions"], numbers["pictures"], *_recalls(numbers)]
        for language, numbers in summary["languages"].items()
    ]
    last = [["mean", "", "", *_recalls(mean)]] if len(rows) > 1 else []
    last.append(["guessing", "", "", *_recalls(mean["chance"])])
    return table(["language", "captions", "pictures", *headings, "mean recall"], rows, last)


def _recalls(numbers: dict[str, Any]) -> list[str]:
    return [percent(value) for name in DIRECTIONS for value in numbers[name].values()] + [
        percent(numbers["mean_recall"])
    ]


def _examples(run: RetrievalRun, language: str, gallery: Gallery, *, opened: bool) -> Markup:
    recall = run.found[language]
    parts: list[Content] = [tag("summary", language)]
    for title, ranks, scores, example in (
        ("text to picture", recall.text_ranks, recall.text_scores, _text_example),
        ("picture to text", recall.image_ranks, recall.image_scores, _picture_example),
    ):
        best = [place for place in np.lexsort((-scores, ranks))[:_EXAMPLES] if ranks[place] == 0]
        worst = [place for place in np.lexsort((scores, -ranks))[:_EXAMPLES] if ranks[place] > 0]
        for which, places in (("best", best), ("worst", worst)):
            if places:
                shown = [example(run, language, recall, int(place), gallery) for place in places]
                parts += [tag("h3", f"{title}, {which}"), tag("div", shown, class_="examples")]
    return tag("details", parts, open="open" if opened else None)


def _text_example(run: RetrievalRun, language: str, recall: LanguageRecall, place: int, gallery: Gallery) -> Markup:
    row = int(recall.texts[place])
    scores = run.images @ run.texts[row]
    right = run.collection.picture_ids == run.collection.caption_ids[row]
    own = int(np.flatnonzero(right)[np.argmax(scores[right])])
    found = [item for item in _first(scores, _FOUND + 1) if item != own][:_FOUND]
    shown = [gallery.show(run.collection.pictures[own], f"right {scores[own]:.2f}", "right")]
    shown += [
        gallery.show(run.collection.pictures[item], f"{scores[item]:.2f}", "right" if right[item] else "picture")
        for item in found
    ]
    text = tag("p", tag("strong", run.collection.captions[row].text, lang=language, dir="auto"))
    return tag("div", text, _place(int(recall.text_ranks[place]), recall.candidates), _row(shown), class_="example")


def _picture_example(run: RetrievalRun, language: str, recall: LanguageRecall, place: int, gallery: Gallery) -> Markup:
    picture = int(recall.images[place])
    rows = recall.texts
    scores = run.texts[rows] @ run.images[picture]
    right = run.collection.caption_ids[rows] == run.collection.picture_ids[picture]
    own = int(np.flatnonzero(right)[np.argmax(scores[right])])
    found = [item for item in _first(scores, _FOUND) if item != own]
    items = [
        tag(
            "li",
            tag("span", run.collection.captions[rows[item]].text, lang=language, dir="auto"),
            f" {scores[item]:.2f}",
            class_="right" if right[item] else None,
        )
        for item in sorted([own, *found], key=lambda item: -scores[item])
    ]
    texts = tag("div", _place(int(recall.image_ranks[place]), len(rows)), tag("ul", items))
    return tag("div", _row([gallery.show(run.collection.pictures[picture]), texts]), class_="example")


def _first(scores: np.ndarray, count: int) -> list[int]:
    return [int(place) for place in np.argsort(-scores, kind="stable")[:count]]


def _place(rank: int, candidates: int) -> Markup:
    return tag("p", f"place {rank + 1:,} of {candidates:,}", class_="good" if rank == 0 else "bad")


def _row(parts: list[Markup]) -> Markup:
    return tag("div", parts, class_="row")
