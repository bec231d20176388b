"""The page around the sections of a report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from altclip_jax.evaluation.report.gallery import Gallery
from altclip_jax.evaluation.report.markup import Content, Markup, tag
from altclip_jax.version import __version__

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #5b6570; --page: #fff; --line: #d5dae0;
  --c0: #1f5fa8; --c1: #6ba3dc; --c2: #c3dbf3; --mark: #c2410c; --good: #1a7f4b; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --soft: #a2acb7; --page: #16191d; --line: #3a424b;
  --c0: #7db5ee; --c1: #3f78b5; --c2: #254a72; --mark: #fb923c; --good: #4ade80; --bad: #f87171; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 1080px;
  margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; } h3 { margin: 1.4rem 0 .4rem; }
.soft, figcaption, .note { color: var(--soft); } .note { font-size: .9em; max-width: 60rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th { vertical-align: bottom; } th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
.text { text-align: start; } tr.last td { border-top: 2px solid var(--line); }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.2rem 0; } .charts, table { overflow-x: auto; }
svg text { font-size: 12px; fill: var(--text); }
svg .title { font-weight: 600; font-size: 13px; } svg .value { fill: var(--soft); }
.bar0 { fill: var(--c0); } .bar1 { fill: var(--c1); } .bar2 { fill: var(--c2); } .grid { stroke: var(--line); }
.guess { stroke: var(--mark); stroke-width: 1.5; } .join { stroke: var(--soft); stroke-width: 2; }
circle { fill: var(--mark); } circle.ours { fill: var(--c0); } .cell { fill: var(--c0); } svg .on { fill: var(--page); }
details { border-top: 1px solid var(--line); padding: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; }
.example { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; }
.example p { margin: 0 0 .4rem; } .row { display: flex; gap: .6rem; align-items: flex-start; }
figure { margin: 0; width: 72px; font-size: 12px; text-align: center; overflow-wrap: anywhere; }
figure svg { width: 64px; height: 64px; border: 2px solid var(--line); border-radius: 6px; background: #fff; }
figure.right svg { border-color: var(--good); } .good { color: var(--good); } .bad { color: var(--bad); }
ol { margin: 0; padding-inline-start: 1.4rem; } li.right { color: var(--good); font-weight: 600; }
"""


def page(title: str, facts: Iterable[str], sections: Content, gallery: Gallery) -> bytes:
    """Returns a whole page, UTF-8.

    Args:
        title: At its top.
        facts: Lines below the title.
        sections: The rest.
        gallery: Of the pictures in the sections.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width"),
        tag("title", title),
        tag("style", Markup(_STYLE)),
    )
    lines = [tag("div", fact, class_="soft") for fact in facts]
    end = tag("p", f"altclip-jax {__version__}", class_="soft")
    body = tag("body", gallery.definitions(), tag("h1", title), lines, sections, end)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n".encode()


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Content]],
    last: Iterable[Sequence[Content]] = (),
    texts: Collection[int] = (0,),
) -> Markup:
    """Returns a table of numbers but for the columns in `texts`; the rows in `last` stand below a line."""

    def line(kind: str, cells: Sequence[Content], class_: str | None = None) -> Markup:
        places = ("text" if place in texts else None for place in range(len(cells)))
        return tag("tr", (tag(kind, cell, class_=own) for cell, own in zip(cells, places, strict=True)), class_=class_)

    below = (line("td", row, "last") for row in last)
    return tag("table", line("th", headings), (line("td", row) for row in rows), below)


def left_out(names: Mapping[str, str]) -> Markup | None:
    """Returns the list of what could not be used."""
    if not names:
        return None
    items = (tag("li", f"{name}: {reason}") for name, reason in names.items())
    return tag("details", tag("summary", f"left out, because they cannot be used: {len(names)}"), tag("ol", items))


def percent(share: float) -> str:
    """Returns a share in %, without the sign."""
    return f"{100 * share:.1f}"
