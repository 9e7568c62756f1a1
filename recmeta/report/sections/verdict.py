"""Every way to learn, beside each other, on every context: which is best, and what serves."""

from __future__ import annotations

from typing import Any

from recmeta.report.layout import Section, bullets, note, stacked, table
from recmeta.report.markup import Child, element
from recmeta.report.night_files import Figure, NightFiles
from recmeta.report.words import at, auc, count, entries, interval, method

ORDER = (
    "joint",
    "joint_fine_tune",
    "meta_learned",
    "network_alone",
    "lightgbm_alone",
    "lightgbm_pooled",
    "stack",
)
"""Sharing first, then alone, then pooled; methods that are not listed come last, by name."""


def section(night: NightFiles) -> Section:
    """The verdict of transfer.json."""
    title = "Which way of learning wins?"
    verdicts = entries(night.transfer, "verdict")
    found = {name for verdict in verdicts.values() for name in entries(verdict, "methods")}
    if not found:
        return Section("verdict", title, "Not measured yet: this night left no comparison of ways to learn.")
    names = [name for name in ORDER if name in found] + sorted(found - set(ORDER))
    rows = [
        [
            stacked(context, _serves(night, context, verdict)),
            *(_cell(verdict, name) for name in names),
        ]
        for context, verdict in verdicts.items()
    ]
    columns = ["context", *map(method, names)]
    return Section(
        "verdict",
        title,
        _short(verdicts),
        [
            table(
                "AUC on later rows (95 % interval below); the best of a context is bold and marked ★",
                columns,
                rows,
                numeric=columns[1:],
            ),
            bullets(
                [
                    [element("strong", f"{context}: "), str(line)]
                    for context, verdict in verdicts.items()
                    if (line := at(verdict, "line"))
                ]
            ),
            note("Where intervals overlap widely the best is so by little: read the sentence, not the star."),
        ],
    )


def _serves(night: NightFiles, context: str, verdict: Any) -> str:
    """What serves: as the comparison says, or, where it leaves that to the gates, as they said."""
    told = at(verdict, "serves")
    found = night.serving.get(context)
    name = told if isinstance(told, str) else None if found is None else found.serves
    return "" if name is None else f"serves: {method(name)}"


def _cell(verdict: Any, name: str) -> Child:
    figure = Figure.of(at(verdict, "methods", name), "auc")
    shown: Child = auc(figure.value)
    if at(verdict, "best") == name:
        shown = element("strong", "★ ", shown)
    return stacked(shown, interval(figure.low, figure.high))


def _short(verdicts: dict[str, Any]) -> str:
    wins: dict[str, int] = {}
    for verdict in verdicts.values():
        best = at(verdict, "best")
        if isinstance(best, str):
            wins[best] = wins.get(best, 0) + 1
    ordered = sorted(wins, key=lambda name: (-wins[name], name))
    told = "; ".join(f"{method(name)} on {count(wins[name], 'context')}" for name in ordered)
    return f"Best by point estimate: {told}." if told else "No way of learning was found best."
