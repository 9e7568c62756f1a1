"""Which surfaces help each other and which get in each other's way, and what was done about it."""

from __future__ import annotations

from typing import Any

from recmeta.report.charts import Panel, heat_map
from recmeta.report.layout import Drawing, Section, bullets, note, table
from recmeta.report.markup import Child, Markup, element
from recmeta.report.night_files import NightFiles
from recmeta.report.words import at, auc, count, entries, listed, number, signed

MOST = 24
"""Contexts on a side of the map; more cannot be told apart."""

_VERDICTS = ("helps", "hurts", "neutral")


def section(night: NightFiles) -> Section:
    """The transfer audit of transfer.json."""
    title = "Do surfaces help each other?"
    audit = entries(night.transfer, "audit")
    pairs = [
        (source, target, found)
        for source, row in audit.items()
        for target, found in entries(row).items()
        if number(at(found, "value")) is not None
    ]
    if not pairs:
        return Section(
            "transfer", title, "Not measured yet: this night left no audit of transfer between surfaces."
        )
    hurting = [pair for pair in pairs if at(pair[2], "verdict") == "hurts"]
    helping = [pair for pair in pairs if at(pair[2], "verdict") == "helps"]
    hurting.sort(key=lambda pair: (number(at(pair[2], "value")) or 0.0, pair[0], pair[1]))
    short = (
        f"Of {count(len(pairs), 'pair')} of surfaces, learning from one helps the other in {len(helping)} "
        f"and hurts it in {len(hurting)}; the rest cannot be told from chance."
    )
    names = sorted({name for pair in pairs for name in pair[:2]})
    sources, targets = _shown(pairs, [pair[0] for pair in pairs]), _shown(pairs, [pair[1] for pair in pairs])
    cells = [
        {
            "source": source,
            "target": target,
            "value": number(at(audit, source, target, "value")),
            "verdict": verdict if (verdict := at(audit, source, target, "verdict")) in _VERDICTS else "",
        }
        for source in sources
        for target in targets
    ]
    told = [_sentence(*pair) for pair in hurting]
    drawing = Drawing(
        "transfer",
        "Do surfaces help each other?",
        "Change of AUC by source and target. " + (" ".join(told) or "No surface hurts another."),
        "a row is a surface that is learnt from, a column the surface that is judged; blue and plus: it gets "
        "better, orange and minus: it gets worse, as more AUC or less on later rows.",
        [
            Panel(
                "",
                lambda legend: heat_map(cells, sources, targets, legend=legend),
            )
        ],
        wide=True,
    )
    return Section(
        "transfer",
        title,
        short,
        [
            drawing.markup(),
            _left_out(len(names), max(len(sources), len(targets))),
            [_heading("Where it hurts"), bullets(told)] if told else note("No surface hurts another."),
            _remedies(night),
            _related(night),
            table(
                "Change of AUC, each pair of surfaces",
                ("pair", "change of AUC", "95 % interval", "verdict"),
                [
                    (
                        f"{source} → {target}",
                        signed(number(at(found, "value"))),
                        _ends(found),
                        str(at(found, "verdict") or "–"),
                    )
                    for source, target, found in pairs
                ],
                numeric=("change of AUC", "95 % interval"),
                hidden=True,
            ),
        ],
        [drawing],
    )


def hurting(night: NightFiles) -> int | None:
    """How many pairs hurt; None where it was not measured."""
    audit = entries(night.transfer, "audit")
    verdicts = [at(found, "verdict") for row in audit.values() for found in entries(row).values()]
    return verdicts.count("hurts") if verdicts else None


def _shown(pairs: list[tuple[str, str, Any]], names: list[str]) -> list[str]:
    """At most `MOST` names, those with the worst pairs, in alphabetical order."""
    worst: dict[str, float] = {}
    for name, (_, _, found) in zip(names, pairs, strict=True):
        worst[name] = min(worst.get(name, 0.0), number(at(found, "value")) or 0.0)
    return sorted(sorted(worst, key=lambda name: (worst[name], name))[:MOST])


def _left_out(every: int, shown: int) -> Child:
    return (
        note(f"The map shows the {shown} of {every} surfaces with the worst pairs.")
        if shown < every
        else None
    )


def _heading(text: str) -> Markup:
    return element("h3", text)


def _ends(found: Any) -> str:
    low, high = number(at(found, "low")), number(at(found, "high"))
    return "–" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def _sentence(source: str, target: str, found: Any) -> str:
    value = number(at(found, "value")) or 0.0
    ends = _ends(found)
    sure = "" if ends == "–" else f" (95 % interval {ends})"
    return f"Learning from {source} makes {target} worse: {signed(value)} AUC{sure}."


def _remedies(night: NightFiles) -> Child:
    lines: list[Child] = []
    for target, found in entries(night.transfer, "remedies").items():
        left = at(found, "left_out")
        names = [str(name) for name in left] if isinstance(left, list) else []
        before, after = number(at(found, "auc_before")), number(at(found, "auc_after"))
        change = signed(None if before is None or after is None else after - before)
        outcome = (
            "It helped, and is kept." if at(found, "helped") is True else "It did not help, and is not kept."
        )
        sure = "" if _ends(found) == "–" else f", 95 % interval {_ends(found)}"
        lines.append(
            f"{target}, learnt without {listed(names) or 'nothing'}: AUC {auc(before)} → {auc(after)} "
            f"({change}{sure}). {outcome}"
        )
    return [_heading("What was tried against it"), bullets(lines)] if lines else None


def _related(night: NightFiles) -> Child:
    related = at(night.transfer, "related")
    pairs = [
        f"{at(pair, 'a')} and {at(pair, 'b')} (correlation {signed(number(at(pair, 'correlation')), 2)})"
        for pair in (related if isinstance(related, list) else [])
        if at(pair, "a") and at(pair, "b")
    ]
    if not pairs:
        return None
    return note(f"Engagements that go together on the same items: {listed(pairs)}.")
