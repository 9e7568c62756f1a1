"""What sections are made of: tables that stack on a narrow screen, figures, small marks in cells.

It knows how things look; it must never know what a night is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recmeta.report.charts import FAINT, INK, LOOKS, Look, Panel, inline_svg, save_png
from recmeta.report.markup import Child, Markup, element, joined
from recmeta.report.night_files import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure: its panels, one sentence on how to read it, and what it shows in words."""

    name: str
    """Of the PNG file, and of everything in the page that needs a name."""
    title: str
    alt: str
    """For who cannot see it."""
    how: str
    """How to read it, one sentence."""
    panels: Sequence[Panel]
    columns: int = 3
    legend: Mapping[str, Look] = field(default_factory=dict)
    after: Mapping[str, Child] = field(default_factory=dict)
    """By a panel's title, what is said below it."""
    wide: bool = False
    """One panel that needs the whole width."""

    def markup(self) -> Markup:
        """The figure in the page."""
        shown = [
            element(
                "div",
                element("h4", panel.title) if panel.title else None,
                element(
                    "div",
                    inline_svg(panel.draw(False), f"{self.name}-{number}"),
                    class_="drawing",
                    role="img",
                    aria_label=f"{panel.title}. {self.alt}".lstrip(". "),
                ),
                element("p", self.after[panel.title], class_="after") if panel.title in self.after else None,
                class_="panel",
            )
            for number, panel in enumerate(self.panels)
        ]
        return element(
            "figure",
            element("figcaption", element("strong", "How to read: "), self.how),
            _legend(self.legend) if self.legend else None,
            element("div", shown, class_="panels wide" if self.wide else "panels"),
            id=f"figure-{self.name}",
        )

    def save(self, folder: Path) -> Path:
        """Write the figure as a PNG of its own, and return where."""
        path = folder / f"{self.name}.png"
        save_png(self.panels, path, title=self.title, told=self.how, columns=self.columns)
        return path


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    key: str
    title: str
    short: str
    """Its message in a sentence or two."""
    body: Sequence[Child] = ()
    drawings: Sequence[Drawing] = ()


def note(*text: Child) -> Markup:
    """A remark in small letters."""
    return element("p", *text, class_="note")


def bullets(lines: Sequence[Child]) -> Markup | None:
    """A list; nothing where there is nothing to list."""
    return element("ul", [element("li", line) for line in lines]) if lines else None


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    numeric: Sequence[str] = (),
    hidden: bool = False,
) -> Markup:
    """A table whose rows become cards on a narrow screen; the first cell of a row is its header.

    Args:
        caption: what it holds.
        columns: their headers; all different.
        rows: cells, as many as columns.
        numeric: columns that stand to the right.
        hidden: whether it opens on demand only.
    """

    def cell(number: int, content: Child) -> Markup:
        kind = "number" if columns[number] in numeric else None
        if number == 0:
            return element("th", content, scope="row")
        return element("td", element("div", content), data_label=columns[number], class_=kind)

    made = element(
        "table",
        element("caption", caption),
        element(
            "thead",
            element(
                "tr",
                [
                    element("th", name, scope="col", class_="number" if name in numeric else None)
                    for name in columns
                ],
            ),
        ),
        element(
            "tbody",
            [element("tr", [cell(number, content) for number, content in enumerate(row)]) for row in rows],
        ),
    )
    if not hidden:
        return made
    return element("details", element("summary", "The numbers behind the figure"), made)


def lanes(lines: Sequence[tuple[str, Figure, Look]], extent: tuple[float, float], alt: str) -> Markup:
    """Intervals one below another on one scale, each with its mark.

    Args:
        lines: what each is called, its figure, how it looks; one without a value keeps its place empty.
        extent: the scale's ends.
        alt: the same in words.
    """
    width, lane = 190.0, 12.0
    low, high = extent

    def place(value: float) -> float:
        return round(5.0 + (width - 10.0) * (min(max(value, low), high) - low) / max(high - low, 1e-9), 2)

    height = lane * len(lines) + 2.0
    drawn: list[Markup] = []
    if low <= 0.5 <= high:
        half = place(0.5)
        drawn.append(
            element("line", x1=half, x2=half, y1=0.0, y2=height, stroke=FAINT, stroke_dasharray="2 2")
        )
    for number, (_, figure, look) in enumerate(lines):
        middle = lane * number + lane / 2.0 + 1.0
        if figure.low is not None and figure.high is not None:
            drawn.append(
                element(
                    "line",
                    x1=place(figure.low),
                    x2=place(figure.high),
                    y1=middle,
                    y2=middle,
                    stroke=look.colour,
                    stroke_width=3.5 if look.strong else 1.8,
                    stroke_opacity=0.5,
                    stroke_linecap="round",
                )
            )
        if figure.value is not None:
            drawn.append(_mark(look, place(figure.value), middle, 4.2 if look.strong else 3.2))
    return element(
        "svg",
        drawn,
        class_="lanes",
        role="img",
        aria_label=alt,
        viewbox=f"0 0 {width:.0f} {height:.0f}",
        width=width,
        height=height,
    )


def bar(share: float, alt: str, *, colour: str, ticks: Sequence[float] = ()) -> Markup:
    """A bar of a share of its room, with ticks at thresholds."""
    width = 120.0
    return element(
        "svg",
        element("rect", x=0.0, y=3.0, width=width, height=8.0, fill="#eceff2", rx=2.0),
        element(
            "rect",
            x=0.0,
            y=3.0,
            width=round(width * min(max(share, 0.0), 1.0), 2),
            height=8.0,
            fill=colour,
            rx=2.0,
        ),
        [
            element("line", x1=width * tick, x2=width * tick, y1=0.0, y2=14.0, stroke=INK, stroke_width=1.0)
            for tick in ticks
        ],
        class_="bar",
        role="img",
        aria_label=alt,
        viewbox="0 0 120 14",
        width=width,
        height=14.0,
    )


def key(entries: Mapping[str, Look]) -> Markup:
    """A legend of marks alone, for `lanes`."""
    return _legend(entries)


def _legend(entries: Mapping[str, Look]) -> Markup:
    return element(
        "ul", [element("li", _swatch(look), name) for name, look in entries.items()], class_="legend"
    )


def _swatch(look: Look) -> Markup:
    return element(
        "svg",
        element(
            "line",
            x1=1.0,
            x2=33.0,
            y1=7.0,
            y2=7.0,
            stroke=look.colour,
            stroke_width=3.0 if look.strong else 1.8,
            stroke_dasharray=" ".join(map(str, look.dash)) or None,
        ),
        _mark(look, 17.0, 7.0, 4.6),
        viewbox="0 0 34 14",
        width=34.0,
        height=14.0,
        aria_hidden="true",
    )


def _mark(look: Look, x: float, y: float, size: float) -> Markup:
    inside: dict[str, str | float | bool | None] = {
        "fill": look.colour,
        "stroke": "#ffffff",
        "stroke_width": 0.8,
    }
    if look.shape == "circle":
        return element("circle", cx=x, cy=y, r=size, **inside)
    if look.shape == "square":
        side = 0.9 * size
        return element("rect", x=x - side, y=y - side, width=2 * side, height=2 * side, **inside)
    arm = 0.45
    outlines: dict[str, list[tuple[float, float]]] = {
        "cross": [
            (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
            (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
        ],
        "diamond": [(0, -1.25), (1, 0), (0, 1.25), (-1, 0)],
        "triangle-up": [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
    }  # fmt: skip
    corners = outlines[look.shape]
    points = " ".join(f"{x + size * across:.6g},{y + size * down:.6g}" for across, down in corners)
    return element("polygon", points=points, **inside)


def tagged(text: str, kind: str) -> Markup:
    """A short word in a box; ``kind`` is good, bad, watch or plain."""
    signs = {"good": "✓ ", "bad": "! ", "watch": "• ", "plain": ""}
    return element("span", f"{signs[kind]}{text}", class_=f"tag {kind}")


def stacked(*parts: Child) -> Markup:
    """Parts one below another in one cell; the later ones in small letters."""
    return joined(
        element("div", part, class_="first" if number == 0 else "small")
        for number, part in enumerate(parts)
        if part
    )


BASELINE_LOOKS = {
    "serves": LOOKS["ours"],
    "trees": LOOKS["lightgbm"],
    "shared": Look("#5b4b9a", "diamond"),
    "bias_only": LOOKS["logistic"],
    "popularity": LOOKS["popularity"],
}
"""What stands beside what serves, in this order."""
