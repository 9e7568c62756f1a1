"""The page's figures in Altair: small panels that flow into as many columns as the screen has room for.

Each panel becomes SVG inside the page, and all panels of a figure together one PNG. Shape, dash and words
repeat what colour says. This module must never read a file of a night or decide what is worth saying.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import Any

from recmeta import artifacts
from recmeta.report.markup import Markup

Chart = Any
"""One of Altair's: what it is depends on how it was put together. Altair is imported where it is used."""

INK, QUIET, FAINT, GRID = "#1f2933", "#52606d", "#9aa5b1", "#e6eaee"
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
"""Letters of the same widths everywhere, so that what was measured here fits there."""

WIDTH = 268
"""Of a panel's plot, in pixels: with its axis it fills a telephone, and three fill a page."""


@dataclass(frozen=True)
class Look:
    """How one method is drawn wherever it appears."""

    colour: str
    shape: str
    dash: tuple[int, ...] = ()
    strong: bool = False


# The colours are Okabe and Ito's, some darkened, which people with any colour vision can tell apart.
LOOKS = {
    "ours": Look("#0b5fa5", "circle", strong=True),
    "joint_fine_tune": Look("#a04a86", "diamond", (7, 2)),
    "lightgbm": Look("#c65200", "square"),
    "logistic": Look("#00795a", "triangle-up", (2, 2)),
    "popularity": Look("#6b7480", "cross", (5, 4)),
}
"""The methods of the onboarding curve, in the order of the legend."""

HURTS, NEUTRAL, HELPS = "#c65200", "#f4f6f8", "#2a76b8"


@dataclass(frozen=True)
class Panel:
    """One small chart and what stands above it."""

    title: str
    draw: Callable[[bool], Chart]
    """Gives the chart; True: with a legend of its own."""


def inline_svg(chart: Chart, prefix: str) -> Markup:
    """Return a chart as SVG that can stand in a page beside others: no fixed size, ids of its own.

    What the chart says stands in the page's own alternative text, so roles of its marks are left out.
    """
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(_specification(chart))
    drawn = re.sub(r' (?:aria-[a-z]+|role|class|pointer-events)="[^"]*"', "", drawn)
    names = list(dict.fromkeys(re.findall(r' id="([^"]+)"', drawn)))
    for number, name in enumerate(names):
        new = f"{prefix}-{number}"
        drawn = drawn.replace(f' id="{name}"', f' id="{new}"').replace(f"url(#{name})", f"url(#{new})")
    drawn = re.sub(r"^<svg ([^>]*?)width=\"(\d+)[\d.]*\" height=\"[\d.]+\"", _sized, drawn, count=1)
    return Markup(drawn)


def _sized(found: re.Match[str]) -> str:
    # As wide as there is room, and never so large that letters look like a poster's.
    style = f"width:100%;max-width:{int(found[2]) * 1.25:.0f}px;height:auto"
    return f'<svg aria-hidden="true" focusable="false" {found[1]}style="{style}"'


def save_png(panels: Sequence[Panel], path: Path, *, title: str, told: str, columns: int) -> None:
    """Write all panels of a figure as one PNG, two pixels a point, with its title and how to read it."""
    import altair as alt
    import vl_convert

    drawn = [
        panel.draw(number == 0).properties(title=alt.TitleParams(panel.title, anchor="start", fontSize=13))
        for number, panel in enumerate(panels)
    ]
    heading = alt.TitleParams(
        title,
        subtitle=wrap(told[:1].upper() + told[1:], _letters(len(panels), columns)),
        anchor="start",
        fontSize=17,
        subtitleFontSize=12,
        subtitleColor=QUIET,
        subtitlePadding=6,
        offset=16,
    )
    chart = alt.concat(*drawn, columns=columns, spacing=28).properties(title=heading, padding=18)
    with artifacts.replacing(path) as temporary:
        temporary.write_bytes(vl_convert.vegalite_to_png(_specification(chart), scale=2))


def _specification(chart: Chart) -> dict[str, Any]:
    """Vega-Lite's JSON, without Altair's check against the schema: it takes its time, and tests make it."""
    found: dict[str, Any] = _styled(chart).to_dict(validate=False)
    return found


def _letters(panels: int, columns: int) -> int:
    """How many letters of a subtitle fit above the panels."""
    return max(90, 52 * min(panels, columns))


def _styled(chart: Chart) -> Chart:
    return (
        chart.configure(font=FONT, background="#ffffff")
        .configure_view(stroke=None)
        .configure_axis(
            gridColor=GRID,
            domainColor=FAINT,
            tickColor=FAINT,
            labelColor=INK,
            titleColor=QUIET,
            labelFontSize=11.5,
            titleFontSize=11.5,
            titleFontWeight="normal",
            titlePadding=6,
        )
        .configure_legend(labelFontSize=12, titleFontSize=12, labelColor=INK, titleColor=QUIET)
        .configure_title(color=INK)
    )


def _data(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as JSON text: Altair copies data that it can look into several times over, which is slow."""
    import altair as alt

    text = json.dumps(list(rows), allow_nan=False)
    return alt.InlineData(values=text, format=alt.JsonDataFormat(type="json"))


# Onboarding ---------------------------------------------------------------------------------------


def curve_panel(
    points: Sequence[Mapping[str, Any]],
    methods: Mapping[str, str],
    extent: tuple[float, float],
    *,
    legend: bool,
) -> Chart:
    """Draw AUC over the number of positives, logarithmic, for each method.

    Args:
        points: method (a key of `LOOKS`), shots (a number; None: all there are), auc, low, high.
        methods: what each method is called, in the order of the legend.
        extent: of the AUC axis, so that panels can share one.
        legend: whether it has one.
    """
    import altair as alt

    numbers = sorted({point["shots"] for point in points if point["shots"]})
    first, last = (math.log10(numbers[0]), math.log10(numbers[-1])) if numbers else (0.0, 0.0)
    apart = max(0.35, 0.22 * (last - first))
    step = max(0.012, 0.013 * (last - first + 2 * apart))
    places = {number: math.log10(number) for number in numbers} | {0.0: first - apart, None: last + apart}
    names = list(methods)
    rows = [
        {
            "method": methods[point["method"]],
            "x": places[point["shots"]] + step * (names.index(point["method"]) - (len(names) - 1) / 2),
            "auc": point["auc"],
            "low": point["low"],
            "high": point["high"],
            "joined": bool(point["shots"]),
        }
        for point in points
    ]
    shown = [number for number in (0.0, *numbers, None) if any(p["shots"] == number for p in points)]
    ticks = [places[number] for number in shown]
    named = {places[number]: "all" if number is None else f"{number:,.0f}" for number in shown}
    text = "".join(f"abs(datum.value - {place!r}) < 1e-6 ? {name!r} : " for place, name in named.items())
    looks = [LOOKS[name] for name in names]
    x = alt.X(
        "x:Q",
        title="positives of the surface (log scale)",
        scale=alt.Scale(domain=[min(ticks) - 0.12, max(ticks) + 0.12], nice=False, zero=False),
        axis=alt.Axis(values=ticks, labelExpr=f"{text}''", grid=False, labelOverlap=False),
    )
    scale = alt.Scale(domain=list(extent), nice=False, zero=False, clamp=True)
    axis = alt.Axis(format=".2f", tickCount=5, minExtent=34)
    y = alt.Y("auc:Q", title="AUC", scale=scale, axis=axis)
    key = (
        alt.Legend(orient="top", title=None, symbolOpacity=1, symbolSize=90, labelLimit=240)
        if legend
        else None
    )

    def scaled(channel: Any, values: list[Any]) -> Any:
        return channel("method:N", scale=alt.Scale(domain=list(methods.values()), range=values), legend=key)

    colour = scaled(alt.Color, [look.colour for look in looks])
    shape = scaled(alt.Shape, [look.shape for look in looks])
    base = alt.Chart(_data(rows), width=WIDTH, height=190).encode(x=x, color=colour)
    walls = [
        (places[left] + places[right]) / 2
        for left, right in pairwise(shown)
        if left == 0.0 or right is None  # what stands apart
    ]
    wall = (
        alt.Chart(_data([{"x": place} for place in walls]))
        .mark_rule(color=FAINT, strokeDash=[1, 3])
        .encode(x="x:Q")
    )
    # Dashes of rules would read as gaps in an interval, so only lines have them.
    whiskers = base.mark_rule(strokeWidth=1.6, opacity=0.45, clip=True).encode(
        y=alt.Y("low:Q", title="AUC", scale=scale, axis=axis), y2="high:Q"
    )
    lines = [
        base.transform_filter(f"datum.joined && datum.method === {methods[name]!r}")
        .mark_line(strokeWidth=3 if look.strong else 1.7, strokeDash=list(look.dash) or [1, 0], clip=True)
        .encode(y=y)
        for name, look in zip(names, looks, strict=True)
    ]
    marks = base.mark_point(filled=True, opacity=1, size=52, stroke="white", strokeWidth=0.8).encode(
        y=y, shape=shape
    )
    return alt.layer(wall, *lines, whiskers, marks)


# Transfer -----------------------------------------------------------------------------------------


def heat_map(
    cells: Sequence[Mapping[str, Any]], sources: Sequence[str], targets: Sequence[str], *, legend: bool
) -> Chart:
    """Draw by how much learning from a source (row) changes a target's AUC (column).

    Args:
        cells: source, target, value, verdict.
        sources: rows, from top to bottom.
        targets: columns, from left to right.
        legend: whether it has one; where cells have no room for their numbers it has one anyway.
    """
    import altair as alt

    values = [abs(cell["value"]) for cell in cells if cell["value"] is not None]
    reach = max(0.002, *values) if values else 0.002
    roomy = len(targets) <= 9
    wide, high = (72, 46) if roomy else (30, 26)
    rows = [
        {
            **cell,
            "number": "" if cell["value"] is None else f"{cell['value']:+.3f}".replace("-", "−"),
            # White letters only where the ground is dark enough for them; orange is the lighter of the two.
            "strong": cell["value"] is not None
            and (cell["value"] > 0.62 * reach or cell["value"] < -0.9 * reach),
        }
        for cell in cells
    ]
    base = alt.Chart(_data(rows), width=wide * len(targets), height=high * len(sources)).encode(
        x=alt.X(
            "target:N",
            title="… changes the AUC of",
            scale=alt.Scale(domain=list(targets)),
            axis=alt.Axis(
                orient="top",
                labelAngle=0 if roomy and max(map(len, targets)) <= 11 else -40,
                labelLimit=150,
                domain=False,
                ticks=False,
                labelPadding=6,
            ),
        ),
        y=alt.Y(
            "source:N",
            title="learning from …",
            scale=alt.Scale(domain=list(sources)),
            axis=alt.Axis(labelLimit=150, domain=False, ticks=False, labelPadding=6),
        ),
    )
    squares = base.mark_rect(stroke="white", strokeWidth=2, cornerRadius=3).encode(
        color=alt.condition(
            "isValid(datum.value)",
            alt.Color(
                "value:Q",
                title="change of AUC",
                scale=alt.Scale(domain=[-reach, 0, reach], range=[HURTS, NEUTRAL, HELPS], interpolate="rgb"),
                legend=alt.Legend(format="+.3f", tickCount=3, orient="right")
                if legend or not roomy
                else None,
            ),
            alt.value("#eceff2"),
        )
    )
    ink = alt.condition("datum.strong", alt.value("white"), alt.value(INK))
    layers = [squares]
    if roomy:
        layers += [
            base.mark_text(fontSize=12.5, dy=-7, fontWeight="bold").encode(text="number:N", color=ink),
            base.mark_text(fontSize=11, dy=9).encode(text="verdict:N", color=ink),
        ]
    else:  # no room for words: a hurting cell has a mark that is more than colour
        layers.append(
            base.transform_filter("datum.verdict === 'hurts'")
            .mark_text(fontSize=13)
            .encode(text=alt.value("▼"), color=ink)
        )
    return alt.layer(*layers)


# Calibration --------------------------------------------------------------------------------------


def reliability_panel(bins: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw observed against predicted rates, with their intervals and the diagonal of honesty.

    Args:
        bins: predicted, observed, low, high; all numbers from 0 to 1.
    """
    import altair as alt

    top = max(max(each["predicted"], each["high"]) for each in bins)
    top = min(1.0, _round_up(max(top, 0.01)))
    scale = alt.Scale(domain=[0, top], nice=False)
    style = ".0%" if top > 0.09 else ".1%"

    def axis(title: str) -> Any:
        return alt.Axis(format=style, tickCount=4, title=title, labelFlush=False)

    honest = (
        alt.Chart(_data([{"a": 0, "b": 0}, {"a": top, "b": top}]))
        .mark_line(color=FAINT, strokeDash=[4, 4], strokeWidth=1.5)
        .encode(x="a:Q", y="b:Q")
    )
    base = alt.Chart(_data(bins), width=220, height=200).encode(
        x=alt.X("predicted:Q", scale=scale, axis=axis("predicted rate"))
    )
    look = LOOKS["ours"]
    rate = alt.Y("observed:Q", scale=scale, axis=axis("observed rate"))
    whiskers = base.mark_rule(color=look.colour, opacity=0.5, strokeWidth=2).encode(
        y=alt.Y("low:Q", scale=scale, axis=axis("observed rate")), y2="high:Q"
    )
    line = base.mark_line(color=look.colour, strokeWidth=1.2, opacity=0.6).encode(y=rate)
    marks = base.mark_point(
        filled=True, opacity=1, size=50, color=look.colour, stroke="white", strokeWidth=0.8
    ).encode(y=rate)
    return alt.layer(honest, whiskers, line, marks)


def _round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        (step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.999), value
    )


# Volumes ------------------------------------------------------------------------------------------

ENGAGED, NOT = "engagements", "shown or refused, not engaged"


def volume_panel(
    days: Sequence[str], engaged: Sequence[int], others: Sequence[int], *, legend: bool
) -> Chart:
    """Draw interactions by day as bars: engagements below, what was logged without one above.

    Args:
        days: what each day is called, oldest first, all different.
        engaged: numbers by day.
        others: numbers by day.
        legend: whether it has one.
    """
    import altair as alt

    rows = [
        {"day": day, "kind": kind, "order": order, "interactions": value}
        for order, (kind, values) in enumerate(((ENGAGED, engaged), (NOT, others)))
        for day, value in zip(days, values, strict=True)
        if value
    ]
    key = alt.Legend(orient="top", title=None, labelLimit=260) if legend and any(others) else None
    return (
        alt.Chart(_data(rows), width=WIDTH, height=92)
        .mark_bar(stroke="#0b5fa5", strokeWidth=0.6)
        .encode(
            x=alt.X(
                "day:N",
                sort=list(days),
                title=None,
                scale=alt.Scale(domain=list(days), paddingInner=0.15),
                axis=alt.Axis(values=list(days[1::7]), labelAngle=0, labelOverlap=False, labelAlign="center"),
            ),
            y=alt.Y(
                "sum(interactions):Q",
                title="interactions",
                axis=alt.Axis(tickCount=3, tickMinStep=1, format="~s", minExtent=34),
            ),
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=[ENGAGED, NOT], range=["#0b5fa5", "#dbe8f3"]),
                legend=key,
            ),
            order="order:Q",
        )
    )
