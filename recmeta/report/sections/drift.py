"""Have the inputs moved since training? The five features that moved most on each context, in words."""

from __future__ import annotations

from typing import Any

from recmeta.report.drift import MUCH, SOME, is_logarithm
from recmeta.report.layout import Section, bar, bullets, note, table, tagged
from recmeta.report.markup import Child, element
from recmeta.report.night_files import NightFiles
from recmeta.report.words import at, count, duration, entries, feature, listed, number, percent

WORST = 5
"""Features of a context that are shown."""

REACH = 1.0
"""PSI at which a bar is full; four times what counts as much."""

_TAGS = {"steady": ("steady", "good"), "some": ("moved a little", "watch"), "much": ("moved a lot", "bad")}
_COLOURS = {"steady": "#00795a", "some": "#b07800", "much": "#c65200"}


def section(night: NightFiles) -> Section:
    """The population stability of drift.json."""
    title = "Have the inputs moved?"
    contexts = entries(night.drift, "contexts")
    if not contexts:
        return Section("drift", title, "Not measured yet: this night left no comparison of its inputs.")
    rows: list[list[Child]] = []
    silent: list[Child] = []
    labels: list[Child] = []
    for context, found in contexts.items():
        reason = at(found, "reason")
        if reason is not None:
            silent.append(f"{context}: nothing can be said ({reason}).")
            continue
        labels.append(_label(context, found))
        for rank, each in enumerate(worst(found)):
            rows.append([context if rank == 0 else element("span", context, class_="again"), *_row(each)])
    grown = max(
        (sum(at(each, "grows") is True for each in _features(found)) for found in contexts.values()),
        default=0,
    )
    return Section(
        "drift",
        title,
        _short(contexts),
        [
            bullets(labels),
            table(
                f"The {WORST} features of each context that moved most: training against the last 7 days",
                ("context", "feature", "PSI", "verdict", "mean, then → now"),
                rows,
                numeric=("mean, then → now",),
            )
            if rows
            else None,
            bullets(silent),
            note(
                "How to read: PSI, the population stability index, compares how often each tenth of the "
                f"training values occurs now; what chance makes is taken off. Below {SOME} is steady, up to "
                f"{MUCH} a little, above it a lot: the usual borders of credit scoring (Siddiqi 2006), the "
                f"two ticks on a bar, which is full at {REACH:.0f}. What chance or one training week in ten "
                "reaches as well is no more than usual. Counts over days fade by half in that time. A move "
                "is no fault by itself: the model was trained on other days, and the next night learns from "
                "these."
            ),
            note(
                f"Not counted: {grown} totals, ages and counts over more days than the log has had time to "
                "fill, which grow with the log by their nature."
            )
            if grown
            else None,
        ],
    )


def moved(night: NightFiles) -> int | None:
    """On how many contexts something moved a lot; None where it was not measured."""
    contexts = entries(night.drift, "contexts")
    if not contexts:
        return None
    return sum(any(at(each, "verdict") == "much" for each in worst(found)) for found in contexts.values())


def worst(found: Any) -> list[Any]:
    """The features of one context that moved most: of those that mean the same the worst, none that grows."""
    by_words: dict[str, Any] = {}
    for each in _features(found):
        if at(each, "grows") is not True:
            by_words.setdefault(feature(str(at(each, "name"))), each)
    return list(by_words.values())[:WORST]


def _features(found: Any) -> list[Any]:
    """Features with a number, the worst first."""
    raw = at(found, "features")
    usable = [each for each in raw if number(at(each, "excess")) is not None] if isinstance(raw, list) else []
    return sorted(
        usable,
        key=lambda each: (
            ("much", "some").index(verdict) if (verdict := at(each, "verdict")) in ("much", "some") else 2,
            -(number(at(each, "excess")) or 0.0),
            str(at(each, "name")),
        ),
    )


def _row(each: Any) -> list[Child]:
    name = str(at(each, "name"))
    excess = number(at(each, "excess")) or 0.0
    verdict = str(at(each, "verdict"))
    label, kind = _TAGS.get(verdict, (verdict, "plain"))
    if verdict == "steady" and excess >= SOME:
        label = "no more than usual"
    return [
        feature(name),
        [
            bar(
                excess / REACH,
                f"PSI {excess:.2f}",
                colour=_COLOURS.get(verdict, _COLOURS["some"]),
                ticks=(SOME / REACH, MUCH / REACH),
            ),
            element("span", f" {excess:.2f}", class_="beside"),
        ],
        tagged(label, kind),
        _means(name, number(at(each, "before")), number(at(each, "now"))),
    ]


def _means(name: str, before: float | None, now: float | None) -> str:
    if before is None or now is None or name.endswith(("_sin", "_cos")):
        return "–"
    if name.startswith(("rate:", "seen:")):
        return f"{percent(before)} → {percent(now)}"
    if is_logarithm(name) and ("hours" in name or name.startswith("age:")):
        return f"{duration(3600 * before)} → {duration(3600 * now)}"
    return f"{_number(before)} → {_number(now)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def _label(context: str, found: Any) -> Child:
    label = at(found, "label")
    before, now = number(at(label, "rate_before")), number(at(label, "rate_now"))
    verdict, kind = _TAGS.get(str(at(label, "verdict")), ("unknown", "plain"))
    recent = at(found, "recent")
    seen = f"{count(number(at(recent, 'rows')), 'row')} of {count(number(at(recent, 'users')), 'user')}"
    span = f"{str(at(found, 'from') or '')[:10]} to {str(at(found, 'to') or '')[:10]}"
    own = "; set by how negatives are drawn" if at(label, "sampled") is True else ""
    return [
        element("strong", context),
        f": engagement rate {percent(before)} in training, {percent(now)} now{own} ",
        tagged(verdict, kind),
        element("span", f" {seen}, {span}", class_="small"),
    ]


def _short(contexts: dict[str, Any]) -> str:
    told = {context: found for context, found in contexts.items() if at(found, "reason") is None}
    much = [
        context
        for context, found in told.items()
        if any(at(each, "verdict") == "much" for each in worst(found))
    ]
    labels = [context for context, found in told.items() if at(found, "label", "verdict") in ("some", "much")]
    said = []
    if not told:
        return "Too few rows on every context to say anything."
    said.append(
        f"On {listed(much)} the last 7 days look different from the training rows."
        if much
        else "The last 7 days look like the training rows."
    )
    said.append(
        f"The rate of engagement moved on {listed(labels)}."
        if labels
        else "How often people engage has not moved on any."
    )
    return " ".join(said)
