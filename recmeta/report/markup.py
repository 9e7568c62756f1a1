"""HTML built from elements, so that text is always escaped: a name or a reason can never become markup.

This module knows HTML's syntax only; it must never know what is said.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = frozenset({"meta", "br", "hr", "link", "img", "input", "rect", "circle", "line", "path", "polygon"})
"""Elements without content; those of SVG close themselves."""

_SVG = frozenset({"rect", "circle", "line", "path", "polygon"})


class Markup(str):
    """Text that is HTML already. Only `element`, `joined` and a chart's own SVG make it."""

    __slots__ = ()


Child = str | None | Iterable["Child"]
"""What may stand in an element: text (escaped), `Markup` (as it is), nothing, or several of these."""


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Return ``<tag attributes>children</tag>``.

    Attributes are named as in HTML, with ``_`` for ``-`` and one trailing ``_`` where Python keeps the word
    (``class_``); None and False leave one out, True gives it without a value.
    """
    shown = ""
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        plain = name.rstrip("_").replace("_", "-")
        if plain == "viewbox":
            plain = "viewBox"  # the one attribute of SVG used here that minds its case
        shown += f" {plain}" if value is True else f' {plain}="{escape(_text(value))}"'
    if tag in VOID:
        return Markup(f"<{tag}{shown}{'/' if tag in _SVG else ''}>")
    return Markup(f"<{tag}{shown}>{joined(children)}</{tag}>")


def joined(children: Child) -> Markup:
    """Return children one after another, escaped where they are plain text."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(escape(children))
    return Markup("".join(joined(child) for child in children))


def _text(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
