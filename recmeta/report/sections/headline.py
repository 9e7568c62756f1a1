"""What was promoted, or why not; then one line a context: what serves, why, and how good it is."""

from __future__ import annotations

import math

from recmeta.report.layout import BASELINE_LOOKS, Section, key, lanes, note, stacked, table, tagged
from recmeta.report.markup import Child
from recmeta.report.night_files import Figure, NightFiles, Serving
from recmeta.report.words import at, auc, interval, listed, method

SHOWN = {
    "trees": "LightGBM",
    "shared": "shared network",
    "bias_only": "bias only",
    "popularity": "popularity",
}


def section(night: NightFiles) -> Section:
    """What serves each context, beside its baselines."""
    if not night.serving:
        return Section(
            "headline",
            "What serves now",
            "This night has not decided anything: it was planned, and evaluation has not run or did not end.",
        )
    figures = {
        context: {
            "serves": serving.auc,
            **{name: Figure.of(at(night.candidates.get(context), name, "auc")) for name in SHOWN},
        }
        for context, serving in night.serving.items()
    }
    extent = _extent([figure for found in figures.values() for figure in found.values()])
    columns = ("context", "serves now, and why", "AUC with 95 % interval", "its AUC", *SHOWN.values())
    rows = []
    for context, serving in night.serving.items():
        found = figures[context]
        names = {"serves": method(serving.serves), **SHOWN}
        words = "; ".join(
            f"{names[name]} {auc(figure.value)} ({interval(figure.low, figure.high)})"
            for name, figure in found.items()
            if figure.value is not None
        )
        lines = [(names[name], figure, BASELINE_LOOKS[name]) for name, figure in found.items()]
        rows.append(
            (
                stacked(context, night.descriptions.get(context, "")),
                stacked([_served(serving)], serving.reason),
                lanes(lines, extent, f"{context}: {words or 'not measured'}"),
                *(stacked(auc(figure.value), interval(figure.low, figure.high)) for figure in found.values()),
            )
        )
    shown = {"what serves": BASELINE_LOOKS["serves"], **{SHOWN[name]: BASELINE_LOOKS[name] for name in SHOWN}}
    return Section(
        "headline",
        "What serves now",
        _short(night),
        [
            key(shown),
            table(
                "What serves each context, and how well it ranks later interactions that no model has seen",
                columns,
                rows,
                numeric=("its AUC", *SHOWN.values()),
            ),
            note(
                f"Bars run from {extent[0]:.2f} to {extent[1]:.2f}",
                ", the dotted line is 0.5" if extent[0] <= 0.5 else "",
                ". AUC is the chance that of two items, one engaged with and one not, the engaged one is "
                "ranked first: 0.5 is a coin flip, 1 is perfect. A line is the range in which the figure "
                "lies with 95 % confidence, as users are drawn again and again.",
            ),
        ],
    )


def status(night: NightFiles) -> tuple[str, str, str]:
    """The night's outcome as a kind (good, watch), a few words and a sentence."""
    published = night.published
    if not published:
        return (
            "watch",
            "Not finished",
            "The night has not come to publishing; what was measured so far is below.",
        )
    reason = str(at(published, "reason") or "no reason was written down")
    champion = at(published, "champion")
    if at(published, "promoted") is True:
        version = str(at(published, "version") or champion or "the new bundle")
        return "good", "Promoted", f"{version} serves now: {reason}."
    serving = "Nothing serves yet." if champion is None else f"{champion} goes on serving."
    return "watch", "Not promoted", f"{reason[:1].upper()}{reason[1:]}. {serving}"


def _short(night: NightFiles) -> str:
    new = [context for context, serving in night.serving.items() if is_new(serving)]
    default = [context for context, serving in night.serving.items() if serving.by_default]
    default = [context for context in default if night.serving[context].serves != "nothing"]
    kept = [context for context, serving in night.serving.items() if serving.kept]
    none = [context for context, serving in night.serving.items() if serving.serves == "nothing"]
    said = []
    if new:
        said.append(f"Something new serves {listed(new)}.")
    if kept:
        said.append(f"{listed(kept)} {'keeps' if len(kept) == 1 else 'keep'} what served before.")
    if default:
        said.append(f"The shared start serves {listed(default)} until there are rows enough to decide.")
    if none:
        said.append(f"Nothing learnt serves {listed(none)}: popularity stands in.")
    return " ".join(said)


def _served(serving: Serving) -> list[Child]:
    name = method(serving.serves)
    if serving.kept:
        return [name, " ", tagged("kept", "plain")]
    if serving.serves == "nothing":
        return [tagged("nothing passed", "watch")]
    if serving.by_default:
        return [name, " ", tagged("by default", "watch")]
    return [name, " ", tagged("new", "good")]


def is_new(serving: Serving) -> bool:
    """Whether something that passed the gates tonight serves."""
    return not (serving.kept or serving.by_default or serving.serves == "nothing")


def _extent(figures: list[Figure]) -> tuple[float, float]:
    ends = [end for figure in figures for end in (figure.low, figure.value, figure.high) if end is not None]
    if not ends:
        return 0.0, 1.0
    return max(0.0, math.floor(min(ends) * 20) / 20), min(1.0, math.ceil(max(ends) * 20) / 20)
