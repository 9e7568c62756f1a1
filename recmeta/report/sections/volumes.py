"""How much data came in by day and context, how late, and what was refused."""

from __future__ import annotations

from datetime import date as day_of
from typing import Any

from recmeta.report.charts import ENGAGED, NOT, Panel, volume_panel
from recmeta.report.layout import Drawing, Section, bullets, note, table
from recmeta.report.markup import Child, Markup
from recmeta.report.words import MONTHS, RULES, at, count, duration, entries, listed, number, percent, signed

MOST_PANELS = 12
"""Contexts that are drawn: four rows of three."""


def section(volumes: dict[str, Any], refused: dict[str, Any]) -> Section:
    """What `recmeta.report.volumes` counted."""
    title = "How much data came in?"
    contexts = entries(volumes, "contexts")
    totals = {context: _total(found) for context, found in contexts.items()}
    if not contexts:
        return Section(
            "volumes",
            title,
            f"The event log could not be counted: {at(volumes, 'problem') or 'it names no context'}.",
            [_quarantine(refused)],
        )
    drawn = sorted(sorted(totals, key=lambda name: (-totals[name], name))[:MOST_PANELS])
    days = [_short_day(text) for text in volumes["days"]]

    def panel(context: str) -> Panel:
        found = contexts[context]
        return Panel(
            context,
            lambda legend: volume_panel(days, found["engagements"], found["others"], legend=legend),
        )

    others = any(any(found["others"]) for found in contexts.values())
    drawing = Drawing(
        "volumes",
        "How much data came in?",
        " ".join(
            f"{context}: {count(total, 'interaction')} in 30 days." for context, total in totals.items()
        ),
        "a bar is one day (UTC), up to the night’s end; each panel has its own scale."
        + (f" The dark part is {ENGAGED}, the light one was {NOT}." if others else ""),
        [panel(context) for context in drawn],
    )
    return Section(
        "volumes",
        title,
        _short(contexts, totals),
        [
            drawing.markup(),
            _table(contexts, totals),
            _unrecorded(contexts),
            _quarantine(refused),
        ],
        [drawing],
    )


def _total(found: Any) -> int:
    return int(sum(found["engagements"]) + sum(found["others"]))


def _short_day(text: str) -> str:
    day = day_of.fromisoformat(text)
    return f"{day.day} {MONTHS[day.month - 1][:3]}"


def _weeks(found: Any) -> tuple[int, int]:
    daily = [a + b for a, b in zip(found["engagements"], found["others"], strict=True)]
    return sum(daily[-7:]), sum(daily[-14:-7])


def _table(contexts: dict[str, Any], totals: dict[str, int]) -> Markup:
    columns = ["context", "last 30 days", "last 7 days", "against the 7 before"]
    recorded = any(at(found, "lateness", "recorded") is True for found in contexts.values())
    if recorded:
        columns += ["median delay", "95 % known within", "later than a day"]
    return table(
        "Interactions of the last 30 days" + (", and how late they became known" if recorded else ""),
        columns,
        [_row(context, found, totals[context])[: len(columns)] for context, found in contexts.items()],
        numeric=columns[1:],
    )


def _row(context: str, found: Any, total: int) -> list[Child]:
    now, before = _weeks(found)
    lateness = found["lateness"] if at(found, "lateness", "recorded") is True else None
    return [
        context,
        count(total),
        count(now),
        f"{signed(100 * (now / before - 1), 0)} %" if before else "–",
        duration(number(at(lateness, "median"))),
        duration(number(at(lateness, "p95"))),
        percent(number(at(lateness, "over_a_day"))),
    ]


def _short(contexts: dict[str, Any], totals: dict[str, int]) -> str:
    said = [f"{count(sum(totals.values()), 'interaction')} in 30 days on {count(len(contexts), 'context')}."]
    empty = [context for context, total in totals.items() if total == 0]
    if empty:
        said.append(f"Nothing came in on {listed(empty)}.")
    sparse = [
        context
        for context, found in contexts.items()
        if totals[context] and _weeks(found)[1] and _weeks(found)[0] < 0.5 * _weeks(found)[1]
    ]
    if sparse:
        said.append(f"The last week has less than half of the week before on {listed(sparse)}.")
    return " ".join(said)


def _unrecorded(contexts: dict[str, Any]) -> Child:
    without = [
        context
        for context, found in contexts.items()
        if found["lateness"] is not None and at(found, "lateness", "recorded") is not True
    ]
    if not without:
        return None
    return note(
        f"The log does not say when interactions of {listed(without)} became known (it is the same "
        "instant as the event in every row), so their delay cannot be told."
    )


def _quarantine(refused: dict[str, Any]) -> Child:
    rules, files = entries(refused, "rules"), refused.get("files", 0)
    lines: list[Child] = [
        f"{count(rows, 'row')}: {RULES.get(rule, rule.replace('_', ' '))} ({rule})"
        for rule, rows in sorted(rules.items(), key=lambda item: (-item[1], item[0]))
    ]
    broken = refused.get("unreadable", [])
    if broken:
        lines.append(f"Files that cannot be read: {listed(broken)}.")
    if not files:
        return note("Quarantine: empty. No row of the log was refused.")
    return [
        note(
            f"Quarantine: {count(sum(rules.values()), 'refused row')} in {count(files, 'file')}, "
            "over all time."
        ),
        bullets(lines),
    ]
