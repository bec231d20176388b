"""Whole pages: one for each task."""

from __future__ import annotations

from collections.abc import Mapping

from altclip_jax.evaluation.benchmarks.suite import Comparison, Outcome
from altclip_jax.evaluation.report.charts import Compared, dumbbells
from altclip_jax.evaluation.report.gallery import Gallery
from altclip_jax.evaluation.report.markup import Content, Markup, tag
from altclip_jax.evaluation.report.page import page, table
from altclip_jax.evaluation.report.retrieval import DIRECTIONS, retrieval_facts, retrieval_sections
from altclip_jax.evaluation.report.zero_shot import zero_shot_facts, zero_shot_sections
from altclip_jax.evaluation.retrieval import AT
from altclip_jax.evaluation.retrieval_run import RetrievalRun
from altclip_jax.evaluation.zero_shot_run import ZeroShotRun

_RETRIEVAL = {
    **{f"{name}@{k}": f"{title} R@{k}" for name, title in DIRECTIONS.items() for k in AT},
    "mean_recall": "mean recall",
}
_ZERO_SHOT = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
_MAIN = ("mean_recall", "image_to_text@10", "top1")


def retrieval_report(run: RetrievalRun, data: str) -> bytes:
    """Returns the page of a retrieval on `data`."""
    gallery = Gallery()
    facts = [f"model: {run.model}", f"data: {data}", *retrieval_facts(run)]
    return page("Retrieval", facts, retrieval_sections(run, gallery), gallery)


def zero_shot_report(run: ZeroShotRun, data: str) -> bytes:
    """Returns the page of a zero-shot classification of `data`."""
    gallery = Gallery()
    facts = [f"model: {run.model}", f"data: {data}", *zero_shot_facts(run)]
    return page("Zero-shot classification", facts, zero_shot_sections(run, gallery), gallery)


def paper_report(outcome: Outcome, model: str, data: str) -> bytes:
    """Returns the page of the benchmarks: the comparison, and a section for each of them."""
    gallery = Gallery()
    sections: list[Content] = [_compared(outcome), _not_run(outcome)]
    for name, run in outcome.runs.items():
        if isinstance(run, RetrievalRun):
            facts, own = retrieval_facts(run), retrieval_sections(run, gallery)
        else:
            facts, own = zero_shot_facts(run), zero_shot_sections(run, gallery)
        sections += [tag("h2", name), [tag("div", fact, class_="soft") for fact in facts], own]
    return page("The benchmarks of the paper", [f"model: {model}", f"data: {data}"], sections, gallery)


def _compared(outcome: Outcome) -> list[Content]:
    chart = dumbbells("mean recall, or top-1; of XTD picture to text R@10", [_line(row) for row in outcome.comparisons])
    parts: list[Content] = [tag("div", chart, class_="charts")]
    for metrics in (_RETRIEVAL, _ZERO_SHOT):
        rows = [row for row in outcome.comparisons if {*row.ours} == {*metrics}]
        if rows:
            lines = [line for row in rows for line in _lines(row, metrics)]
            parts.append(table(["benchmark", "in %", *metrics.values()], lines, texts=(0, 1)))
    sources = dict.fromkeys(source for row in outcome.comparisons for source in row.published.sources.values())
    return [*parts, [tag("p", f"published: {source}", class_="note") for source in sources]]


def _lines(row: Comparison, metrics: Mapping[str, str]) -> list[list[Content]]:
    whole = row.expected in (None, row.pictures)
    note = None if whole else tag("span", f" {row.pictures:,} of {row.expected:,} pictures", class_="bad")
    published = row.published.values
    lines: list[list[Content]] = [
        [[f"{row.benchmark} {row.language}", note], "ours", *(f"{row.ours[metric]:.1f}" for metric in metrics)]
    ]
    if published:
        theirs = [f"{published[metric]:.1f}" if metric in published else "" for metric in metrics]
        differences = [f"{row.ours[m] - published[m]:+.1f}" if m in published else "" for m in metrics]
        lines += [["", row.published.model, *theirs], ["", "difference", *differences]]
    return lines


def _line(row: Comparison) -> Compared:
    metric = next((name for name in _MAIN if name in row.published.values), next(n for n in _MAIN if n in row.ours))
    return Compared(f"{row.benchmark} {row.language}", row.ours[metric], row.published.values.get(metric))


def _not_run(outcome: Outcome) -> list[Markup]:
    failed = [tag("li", f"{name} failed: {reason}", class_="bad") for name, reason in outcome.failed.items()]
    absent = [tag("li", f"{name} is not there: {' or '.join(signs)}") for name, signs in outcome.absent.items()]
    items = [*failed, *absent]
    return [tag("details", tag("summary", "what was not run"), tag("ul", items))] if items else []
