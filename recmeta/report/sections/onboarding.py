"""What a new surface gets from K positives: ours against learning from scratch and against popularity."""

from __future__ import annotations

import math
from typing import Any

from recmeta.report.charts import LOOKS, Panel, curve_panel
from recmeta.report.layout import Drawing, Section, bullets, note, table
from recmeta.report.night_files import NightFiles
from recmeta.report.words import (
    RUNGS,
    at,
    auc,
    count,
    entries,
    interval,
    listed,
    method,
    number,
    share,
    shots,
)

MOST_PANELS = 12
"""Contexts with a panel of their own, beside the mean: four rows of three."""

MEAN = "all surfaces, mean"
"""Title of the first panel; no context can be called so."""

METHODS = {name: method(name) for name in LOOKS}


def section(night: NightFiles) -> Section:
    """The curves of transfer.json."""
    title = "How fast does a new surface get good?"
    curves = {
        context: points
        for context, found in entries(night.transfer, "contexts").items()
        if (points := _points(at(found, "curve")))
    }
    if not curves:
        return Section(
            "onboarding", title, "Not measured yet: this night left no onboarding curves of its surfaces."
        )
    shown = dict(list(curves.items())[:MOST_PANELS])
    mean = _mean_points(night.transfer)
    drawn = ({MEAN: mean} if mean else {}) | shown
    extent = _extent([point for points in drawn.values() for point in points])
    used = {
        name: METHODS[name]
        for name in METHODS
        if any(point["method"] == name for points in drawn.values() for point in points)
    }

    def panel(name: str, points: list[dict[str, Any]]) -> Panel:
        return Panel(name, lambda legend: curve_panel(points, used, extent, legend=legend))

    lines = {context: _break_even(night, context) for context in curves}
    drawing = Drawing(
        "onboarding",
        "How fast does a new surface get good?",
        "AUC by the number of positives the surface has. "
        + " ".join(f"{context}: {line}" for context, line in lines.items()),
        "left is a young surface, 0 (nothing known yet) and all stand apart; where the thick blue line "
        "lies above the others, starting from what other surfaces taught beats starting alone; upright "
        "lines are 95 % intervals.",
        [panel(name, points) for name, points in drawn.items()],
        legend={used[name]: LOOKS[name] for name in used},
        after={
            MEAN: "At each place of the surfaces that have so many positives: to the right they are fewer."
        }
        | {context: [lines[context], _rungs(night, context)] for context in shown},
    )
    return Section(
        "onboarding",
        title,
        _short(night, curves),
        [
            drawing.markup(),
            note(f"{len(shown)} of {len(curves)} surfaces are drawn; all are in the table below.")
            if len(shown) < len(curves)
            else None,
            bullets(_live(night, tuple(curves))),
            _table(curves, mean),
        ],
        [drawing],
    )


def _points(curve: Any) -> list[dict[str, Any]]:
    """What can be drawn of a context's curve: points with a value, the methods in their order."""
    points = []
    for name in METHODS:
        for label, found in entries(curve, name).items():
            value = share(at(found, "auc"))
            if value is None or (shots(label) is None and label != "all"):
                continue
            low, high = share(at(found, "low")), share(at(found, "high"))
            points.append(
                {
                    "method": name,
                    "shots": shots(label),
                    "auc": value,
                    "low": value if low is None else low,
                    "high": value if high is None else high,
                }
            )
    return sorted(points, key=_order)


def _order(point: dict[str, Any]) -> tuple[int, float]:
    return (
        list(METHODS).index(point["method"]),
        math.inf if point["shots"] is None else float(point["shots"]),
    )


def _mean_points(transfer: dict[str, Any]) -> list[dict[str, Any]]:
    plain = {
        name: {label: {"auc": value} for label, value in entries(found).items()}
        for name, found in entries(transfer, "mean").items()
    }
    return _points(plain)


def _extent(points: list[dict[str, Any]]) -> tuple[float, float]:
    """Room for every point, and for intervals as far as they do not press the points together."""
    low, high = min(point["auc"] for point in points), max(point["auc"] for point in points)
    margin = max(0.02, 0.15 * (high - low))
    least = max(low - margin, min(point["low"] for point in points))
    most = min(high + margin, max(point["high"] for point in points))
    return max(0.0, math.floor(least * 50) / 50), min(1.0, max(math.ceil(most * 50) / 50, 0.02))


def _short(night: NightFiles, curves: dict[str, list[dict[str, Any]]]) -> str:
    never = [c for c in curves if _from(night, c) is None and _told(night, c)]
    early = {c: found for c in curves if (found := _from(night, c)) is not None}
    said = []
    if early:
        least, most = min(early.values()), max(early.values())
        span = f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"
        said.append(f"Training from scratch catches up after {span} positives on {listed(list(early))}.")
    if never:
        said.append(f"On {listed(never)} it never does within the data there are.")
    gains = [gain for points in curves.values() if (gain := _first_gain(points)) is not None]
    if gains:
        said.append(
            f"Before the first positive, ours ranks better than popularity on {sum(g > 0 for g in gains)} of "
            f"{count(len(gains), 'surface')}."
        )
    return " ".join(said) or "Curves by surface; break-even points were not worked out."


def _first_gain(points: list[dict[str, Any]]) -> float | None:
    first = {point["method"]: point["auc"] for point in points if point["shots"] == 0}
    return first["ours"] - first["popularity"] if {"ours", "popularity"} <= set(first) else None


def _told(night: NightFiles, context: str) -> bool:
    """Whether a break-even was worked out; None is an answer too: never within the data."""
    return "break_even" in entries(night.transfer, "contexts", context)


def _from(night: NightFiles, context: str) -> float | None:
    """The positives from which learning from scratch is as good: a number, or one beside its method."""
    found = at(night.transfer, "contexts", context, "break_even")
    return number(at(found, "positives") if isinstance(found, dict) else found)


def _break_even(night: NightFiles, context: str) -> str:
    if not _told(night, context):
        return "Break-even was not worked out."
    name = at(night.transfer, "contexts", context, "break_even", "method")
    rival = method(name) if isinstance(name, str) else "learning from scratch"
    rival = f"{rival[:1].upper()}{rival[1:]}"
    positives = _from(night, context)
    if positives is None:
        there = number(at(night.transfer, "contexts", context, "positives"))
        within = "" if there is None else f" within the {there:,.0f} positives there are"
        return f"{rival} never catches up{within}.{_worth(night, context)}"
    if positives == 0:
        return f"{rival} is as good from the start."
    return f"{rival} is as good from about {positives:,.0f} positives on.{_worth(night, context)}"


def _worth(night: NightFiles, context: str) -> str:
    """What is known before the first positive, in positives that learning from scratch needs for it."""
    worth = entries(night.transfer, "contexts", context, "worth")
    positives = number(worth.get("0"))
    return "" if not positives else f" What it starts with is worth about {positives:,.0f} positives."


def _rungs(night: NightFiles, context: str) -> str | None:
    rungs = at(night.transfer, "contexts", context, "rungs")
    found = sorted(
        (shots(label), str(rung)) for label, rung in entries(rungs).items() if shots(label) is not None
    )
    starts: list[str] = []
    for index, (positives, rung) in enumerate(found):
        if index == 0 or rung != found[index - 1][1]:
            starts.append(f"{RUNGS.get(rung, rung)} from {positives:,.0f}")
    return f" Ours: {', '.join(starts)}." if starts else None


def _live(night: NightFiles, contexts: tuple[str, ...]) -> list[str]:
    lines = []
    for context in contexts:
        found = [
            (level, value)
            for label, level_found in entries(night.transfer, "contexts", context, "live").items()
            if (level := _level(label)) is not None and (value := share(at(level_found, "auc"))) is not None
        ]
        if len(found) > 1:
            (first, before), (last, after) = min(found), max(found)
            lines.append(
                f"{context}, not learnt from, but with its own log counted: AUC {auc(before)} with "
                f"{100 * first:.0f} % of the log, {auc(after)} with {100 * last:.0f} %."
            )
    return lines


def _level(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _table(curves: dict[str, list[dict[str, Any]]], mean: list[dict[str, Any]]) -> Any:
    labels = sorted(
        {point["shots"] for points in (*curves.values(), mean) for point in points},
        key=lambda found: math.inf if found is None else found,
    )
    columns = ["surface and method", *("all" if s is None else f"{s:,.0f}" for s in labels)]
    rows = []
    for context, points in [*([("mean", mean)] if mean else []), *curves.items()]:
        for name in METHODS:
            mine = {point["shots"]: point for point in points if point["method"] == name}
            if mine:
                rows.append([f"{context}, {METHODS[name]}", *(_cell(mine.get(s)) for s in labels)])
    return table(
        "AUC (95 % interval) by the number of positives", columns, rows, numeric=columns[1:], hidden=True
    )


def _cell(point: dict[str, Any] | None) -> str:
    if point is None:
        return "–"
    ends = "" if point["low"] == point["high"] else f" ({interval(point['low'], point['high'])})"
    return f"{auc(point['auc'])}{ends}"
