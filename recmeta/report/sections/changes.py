"""What changed since the night before: what serves, how good it is, and how much data came in."""

from __future__ import annotations

from typing import Any

from recmeta.report.layout import Section, bullets, note, stacked, table
from recmeta.report.markup import Child
from recmeta.report.night_files import Before, Figure, NightFiles, Serving
from recmeta.report.words import at, auc, count, date, entries, listed, method, number, signed


def section(night: NightFiles, volumes: dict[str, Any]) -> Section:
    """Compare with the night before; ``volumes`` as `recmeta.report.volumes.volumes` counts."""
    title = "What changed since last night"
    before = night.before
    if before is None:
        return Section(
            "changes", title, "This is the first night that was decided: there is none to compare with."
        )
    came = sorted(set(night.serving) - set(before.serving))
    went = sorted(set(before.serving) - set(night.serving))
    both = sorted(set(night.serving) & set(before.serving))
    changed = [name for name in both if night.serving[name].serves != before.serving[name].serves]
    lines: list[Child] = []
    if came:
        lines.append(f"New: {listed(came)}.")
    if went:
        lines.append(f"Gone: {listed(went)}.")
    lines += [
        f"{name} was served by {method(before.serving[name].serves)}, now by "
        f"{method(night.serving[name].serves)}."
        for name in changed
    ]
    fresh = {name: number(at(found, "new")) for name, found in entries(volumes, "contexts").items()}
    total = sum(value for value in fresh.values() if value is not None)
    rows = [
        (
            name,
            _said(before.serving.get(name)),
            _said(night.serving.get(name)),
            signed(_difference(night.serving.get(name), before.serving.get(name))),
            _same_rows(night, name),
            _grown(volumes, name),
        )
        for name in sorted({*night.serving, *before.serving})
    ]
    said = [f"Compared with {_told(before)}:"]
    if changed:
        said.append(f"{count(len(changed), 'context')} changed what serves ({listed(changed)}).")
    else:
        said.append("no context changed the kind of what serves.")
    if fresh:
        said.append(f"{count(total, 'new interaction')} came in.")
    return Section(
        "changes",
        title,
        " ".join(said),
        [
            bullets(lines),
            table(
                "Last night and tonight",
                (
                    "context",
                    "last night",
                    "tonight",
                    "change of AUC",
                    "gain on the same rows",
                    "new interactions",
                ),
                rows,
                numeric=("change of AUC", "gain on the same rows", "new interactions"),
            ),
            note(
                "Each night is measured on its own latest rows, so a small change of AUC may be the rows’ "
                "and not the model’s. The gain on the same rows has no such doubt: what serves tonight "
                "against what served before, both on tonight’s rows."
            ),
        ],
    )


def _told(before: Before) -> str:
    ended = "" if before.until is None else f", data up to {date(before.until)}"
    return f"{before.name}{ended}"


def _said(serving: Serving | None) -> Child:
    if serving is None:
        return "–"
    return stacked(method(serving.serves), f"AUC {auc(serving.auc.value)}")


def _difference(now: Serving | None, then: Serving | None) -> float | None:
    if now is None or then is None or now.auc.value is None or then.auc.value is None:
        return None
    return now.auc.value - then.auc.value


def _same_rows(night: NightFiles, name: str) -> str:
    serving = night.serving.get(name)
    if serving is None:
        return "–"
    if serving.kept:
        return "the same serves"
    then = Figure.of(at(night.candidates.get(name), "incumbent", "auc")).value
    if then is None or serving.auc.value is None:
        return "–"
    return signed(serving.auc.value - then)


def _grown(volumes: dict[str, Any], name: str) -> Child:
    found = at(volumes, "contexts", name)
    fresh, total = number(at(found, "new")), number(at(found, "total"))
    if fresh is None or total is None:
        return "–"
    return stacked(f"+{fresh:,.0f}", f"{total:,.0f} in all")
