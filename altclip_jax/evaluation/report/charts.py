"""Charts as SVG that takes its colours from the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from altclip_jax.evaluation.report.markup import Markup, tag
from altclip_jax.evaluation.zero_shot import Calibration

_ROW, _WIDTH, _LETTER = 22, 360, 7.0
_LONGEST = 22  # characters of a label


class Bar(NamedTuple):
    """A row of a chart of nested bars: shares that grow, such as recall at 1, 5 and 10, and what guessing gives."""

    label: str
    values: Sequence[float]
    guessing: Sequence[float]


def nested_bars(title: str, names: Sequence[str], bars: Sequence[Bar]) -> Markup:
    """Returns horizontal bars, the largest value the palest and behind the others, with a mark where guessing gets."""
    height, left = 42 + _ROW * len(bars) + 24, _room([bar.label for bar in bars])
    parts = [tag("text", title, x=0, y=14, class_="title"), *_scale(left, 42, height - 24)]
    for row, bar in enumerate(bars):
        top = 42 + _ROW * row
        parts.append(_label(bar.label, left - 8, top + 15))
        pairs = list(zip(names, bar.values, bar.guessing, strict=True))
        for place, (name, value, guess) in reversed(list(enumerate(pairs))):
            told = tag("title", f"{bar.label}, {name}: {100 * value:.1f} %, guessing {100 * guess:.1f} %")
            parts.append(
                tag("rect", told, x=left, y=top + 3, width=_WIDTH * value, height=_ROW - 6, class_=f"bar{place}")
            )
        for _, _, guess in pairs:
            x = left + _WIDTH * guess
            parts.append(tag("line", x1=x, x2=x, y1=top + 2, y2=top + _ROW - 2, class_="guess"))
        parts.append(tag("text", f"{100 * bar.values[0]:.1f}", x=left + _WIDTH + 8, y=top + 15, class_="value"))
    parts += _legend(names, left, height - 4)
    return _drawn(parts, left + _WIDTH + 48, height, title)


class Compared(NamedTuple):
    """A row of a chart of differences: our value and the published one, in %."""

    label: str
    ours: float
    published: float | None


def dumbbells(title: str, rows: Sequence[Compared]) -> Markup:
    """Returns a dot for each value, joined by a line."""
    height, left = 42 + _ROW * len(rows) + 24, _room([row.label for row in rows])
    parts = [tag("text", title, x=0, y=14, class_="title"), *_scale(left, 42, height - 24)]
    for place, row in enumerate(rows):
        y = 42 + _ROW * place + _ROW / 2
        parts.append(_label(row.label, left - 8, y + 4))
        ours = left + _WIDTH * row.ours / 100
        if row.published is not None:
            theirs = left + _WIDTH * row.published / 100
            parts.append(tag("line", x1=ours, x2=theirs, y1=y, y2=y, class_="join"))
            parts.append(tag("circle", tag("title", f"published {row.published:.1f} %"), cx=theirs, cy=y, r=5))
        told = tag("title", f"ours {row.ours:.1f} %")
        parts.append(tag("circle", told, cx=ours, cy=y, r=5, class_="ours"))
    y = height - 8
    parts += [
        tag("circle", cx=left + 5, cy=y, r=5, class_="ours"),
        tag("text", "ours", x=left + 16, y=y + 4),
        tag("circle", cx=left + 75, cy=y, r=5),
        tag("text", "published", x=left + 86, y=y + 4),
    ]
    return _drawn(parts, left + _WIDTH + 48, height, title)


def reliability(calibration: Calibration) -> Markup:
    """Returns accuracy over confidence in bins, with the share of predictions in each bin below."""
    side, left, top, low = 220, 44, 30, 46
    bottom = top + side
    parts = [tag("text", "accuracy by confidence", x=0, y=14, class_="title")]
    for tenth in (0, 50, 100):
        y, x = bottom - side * tenth / 100, left + side * tenth / 100
        parts += [
            tag("line", x1=left, x2=left + side, y1=y, y2=y, class_="grid"),
            tag("text", f"{tenth} %", x=left - 6, y=y + 4, text_anchor="end"),
            tag("text", f"{tenth} %", x=x, y=bottom + low + 18, text_anchor="middle"),
        ]
    share = calibration.counts / calibration.counts.max()
    for start, end, count, part, right in zip(
        calibration.edges[:-1], calibration.edges[1:], calibration.counts, share, calibration.accuracy, strict=True
    ):
        if not count:
            continue
        x, width = left + side * start + 1, side * (end - start) - 2
        told = f"confidence {100 * start:.0f} to {100 * end:.0f} %: {count} predictions, {100 * right:.1f} % right"
        parts += [
            tag(
                "rect",
                tag("title", told),
                x=x,
                y=bottom - side * right,
                width=width,
                height=side * right,
                class_="bar0",
            ),
            tag("rect", tag("title", told), x=x, y=bottom + 2, width=width, height=low * part, class_="bar2"),
        ]
    parts += [
        tag("line", x1=left, y1=bottom, x2=left + side, y2=top, class_="guess"),
        tag("text", "below: number of predictions", x=left, y=bottom + low + 38, class_="value"),
    ]
    return _drawn(parts, left + side + 24, bottom + low + 46, "accuracy by confidence")


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], shares: np.ndarray) -> Markup:
    """Returns a matrix of shares of its rows; the names of the columns stand above, turned."""
    cell, left, top = 26, _room(rows), 24 + _room(columns) * 0.8
    parts = [tag("text", title, x=0, y=14, class_="title")]
    for column, name in enumerate(columns):
        x = left + cell * column + cell / 2 + 4
        turned = f"translate({x:.1f} {top - 6}) rotate(-55)"
        parts.append(tag("text", tag("title", name), _short(name), transform=turned))
    for row, name in enumerate(rows):
        y = top + cell * row
        parts.append(_label(name, left - 8, y + 17))
        for column, other in enumerate(columns):
            share = float(shares[row, column])
            told = tag("title", f"{name} taken for {other}: {100 * share:.1f} %")
            where = {"x": left + cell * column, "y": y, "width": cell - 1, "height": cell - 1}
            parts.append(tag("rect", told, **where, class_="cell", fill_opacity=max(0.04, share)))
            if share >= 0.005:
                middle = {"x": left + cell * (column + 0.5), "y": y + 17, "text_anchor": "middle"}
                parts.append(tag("text", f"{100 * share:.0f}", **middle, class_="on" if share > 0.5 else "in"))
    return _drawn(parts, left + cell * len(columns) + 90, top + cell * len(rows) + 8, title)


def _scale(left: float, top: float, bottom: float) -> Iterator[Markup]:
    for percent in (0, 25, 50, 75, 100):
        x = left + _WIDTH * percent / 100
        yield tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid")
        yield tag("text", f"{percent} %", x=x, y=top - 4, text_anchor="middle")


def _legend(names: Sequence[str], x: float, y: float) -> list[Markup]:
    parts = []
    for place, name in enumerate(names):
        parts += [
            tag("rect", x=x, y=y - 10, width=12, height=12, class_=f"bar{place}"),
            tag("text", name, x=x + 17, y=y),
        ]
        x += 32 + _LETTER * len(name)
    return [
        *parts,
        tag("line", x1=x + 2, x2=x + 2, y1=y - 11, y2=y + 3, class_="guess"),
        tag("text", "guessing", x=x + 9, y=y),
    ]


def _room(labels: Sequence[str]) -> float:
    return 16 + _LETTER * max((len(_short(label)) for label in labels), default=0)


def _label(text: str, x: float, y: float) -> Markup:
    return tag("text", tag("title", text), _short(text), x=x, y=y, text_anchor="end")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _drawn(parts: Sequence[Markup | list[Markup]], width: float, height: float, title: str) -> Markup:
    return tag(
        "svg", parts, width=width, height=height, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title
    )
