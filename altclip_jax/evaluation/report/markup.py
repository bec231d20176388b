"""HTML and SVG out of plain values: everything that is not markup already is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML or SVG."""

    __slots__ = ()


Content = str | int | float | None | Iterable["Content"]
_VOID = {"img", "meta", "br"}


def tag(name: str, /, *content: Content, **attributes: object) -> Markup:
    """Returns an element; an attribute with an underscore at its end is written without it, others with hyphens."""
    written = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{html.escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = join(content)
    return Markup(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{inner}</{name}>")


def join(content: Content) -> Markup:
    """Returns content as markup: strings escaped, iterables one after the other, None as nothing."""
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, (str, int, float)):
        return Markup(html.escape(_number(content), quote=False))
    return Markup("".join(join(item) for item in content))


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
