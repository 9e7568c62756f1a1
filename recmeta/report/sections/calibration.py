"""Do the probabilities of what serves mean what they say?"""

from __future__ import annotations

from typing import Any

from recmeta.report.charts import Panel, reliability_panel
from recmeta.report.layout import Drawing, Section, note, table
from recmeta.report.night_files import NightFiles
from recmeta.report.words import at, count, entries, listed, number, percent, share

MOST_PANELS = 12
"""Contexts that are drawn: four rows of three."""

_FIELDS = ("predicted", "observed", "low", "high")


def section(night: NightFiles) -> Section:
    """The reliability diagrams of calibration.json."""
    title = "Are the probabilities honest?"
    found = {context: bins for context, told in entries(night.calibration).items() if (bins := _bins(told))}
    if not found:
        return Section(
            "calibration", title, "Not measured yet: this night left no calibration of what serves."
        )
    off = {context: _outside(bins) for context, bins in found.items()}
    shown = sorted(sorted(found, key=lambda name: (-off[name] / len(found[name]), name))[:MOST_PANELS])
    lines = {context: _line(night, context, found[context], off[context]) for context in found}

    def panel(context: str) -> Panel:
        return Panel(context, lambda legend: reliability_panel(found[context]))

    drawing = Drawing(
        "calibration",
        "Are the probabilities honest?",
        " ".join(f"{context}: {line}" for context, line in lines.items()),
        "each point is a tenth of the rows, from the least to the most likely; on the dashed line what was "
        "predicted is what happened, above it too little was promised, below it too much. Each panel has its "
        "own scale.",
        [panel(context) for context in shown],
        after={context: lines[context] for context in shown},
    )
    return Section(
        "calibration",
        title,
        _short(off, found),
        [
            drawing.markup(),
            note(f"{len(shown)} of {len(found)} contexts are drawn, the least honest.")
            if len(shown) < len(found)
            else None,
            table(
                "Predicted and observed rates, each bin",
                ("context and bin", "predicted", "observed", "95 % interval", "rows"),
                [
                    (
                        f"{context}, {index} of {len(bins)}",
                        percent(each["predicted"]),
                        percent(each["observed"]),
                        f"{percent(each['low'])} to {percent(each['high'])}",
                        count(each["rows"]),
                    )
                    for context, bins in found.items()
                    for index, each in enumerate(bins, 1)
                ],
                numeric=("predicted", "observed", "95 % interval", "rows"),
                hidden=True,
            ),
        ],
        [drawing],
    )


def _bins(told: Any) -> list[dict[str, Any]]:
    raw = at(told, "bins")
    bins = []
    for each in raw if isinstance(raw, list) else []:
        values = {field: share(at(each, field)) for field in _FIELDS}
        if values["predicted"] is None or values["observed"] is None:
            continue
        for end in ("low", "high"):
            values[end] = values["observed"] if values[end] is None else values[end]
        bins.append({**values, "rows": number(at(each, "rows"))})
    return bins


def _outside(bins: list[dict[str, Any]]) -> int:
    return sum(not each["low"] <= each["predicted"] <= each["high"] for each in bins)


def _short(off: dict[str, int], found: dict[str, list[dict[str, Any]]]) -> str:
    # One bin of twenty lies outside its 95 % interval by chance.
    wrong = [context for context, outside in off.items() if outside > max(1.0, 0.2 * len(found[context]))]
    if not wrong:
        return "On every context what is predicted is what happens, as far as the rows can tell."
    return (
        f"On {listed(wrong)} more predictions miss what happened than chance explains: trust the ranking, "
        "and take the probabilities with care."
    )


def _line(night: NightFiles, context: str, bins: list[dict[str, Any]], off: int) -> str:
    said = f"{off} of {count(len(bins), 'bin')} outside the 95 % interval."
    loss = number(at(night.calibration, context, "log_loss"))
    base = number(at(night.calibration, context, "base_rate_log_loss"))
    if loss is not None:
        said += f" Log-loss {loss:.4f} nats"
        said += "." if base is None else f" (saying the base rate of every row: {base:.4f})."
    return said
