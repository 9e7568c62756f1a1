"""How each verb's answer is laid out as tables for a person. It must never compute or decide anything.

The JSON of a verb holds everything; a table holds what a person needs to see first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from recmeta.terminal import table

if TYPE_CHECKING:
    from recmeta.bundle.store import BundleStore
    from recmeta.events.store import IngestReport
    from recmeta.serving.recommender import Answer


def ingest_as_json(report: IngestReport) -> dict[str, Any]:
    """The report of an ingest; instants as ISO 8601."""
    return _jsonable(asdict(report))


def ingest_table(report: IngestReport) -> RenderableType:
    """How many rows were taken, and how many were refused by which rule."""
    rows = [
        ("rows read", f"{report.rows:,}"),
        ("accepted", f"{report.accepted:,}"),
        ("known already", f"{report.duplicates:,}"),
    ]
    rows += [(f"refused: {rule}", f"{count:,}") for rule, count in sorted(report.refused.items()) if count]
    shown: list[RenderableType] = [table(f"Ingested {report.origin}", ("", "rows"), rows, numeric=("rows",))]
    if report.quarantine:
        shown.append(Text(f"Refused rows, each with its rule, are in {report.quarantine}"))
    return Group(*shown)


def night_tables(night: Mapping[str, Any]) -> list[RenderableType]:
    """What serves each context after the night and why, and how long each stage took."""
    shown: list[RenderableType] = [contexts_table(night.get("contexts", {}))]
    seconds = night.get("seconds")
    if seconds:
        shown.append(Text("Seconds: " + ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items())))
    shown.append(Text(verdict(night), style="bold"))
    return shown


def verdict(night: Mapping[str, Any]) -> str:
    """One sentence: what the night ended with."""
    version = night.get("version")
    if night.get("promoted"):
        return f"Promoted {version}: it serves now."
    champion = night.get("champion")
    reason = night.get("reason") or "the gates refused what this night made"
    if champion:
        return f"Not promoted: {reason}. {champion} goes on serving."
    return f"Not promoted: {reason}."


def contexts_table(contexts: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """One line a context: what serves it, its test figures, and the gate's reason."""
    rows = []
    for name, context in contexts.items():
        metrics = context.get("metrics") or {}
        rows.append(
            (
                name,
                str(context.get("serves", "")),
                _figure(metrics.get("auc")),
                _figure(metrics.get("log_loss")),
                str(context.get("reason", "")),
            )
        )
    return table(
        "What serves each context, and why (figures on later, unseen data)",
        ("context", "serves", "AUC", "log-loss", "reason"),
        rows,
        numeric=("AUC", "log-loss"),
    )


def stage_table(name: str, report: Mapping[str, Any]) -> RenderableType:
    """A stage's report, one line an entry."""
    return table(f"Stage {name}", ("", "value"), [(key, _short(value)) for key, value in report.items()])


def recommendation_tables(answer: Answer) -> list[RenderableType]:
    """Rank, item, category, score and reason; below it what the reader must know about the answer."""
    rows = [
        (str(item.rank), item.item_id, ", ".join(item.categories), f"{item.score:.4f}", item.reason)
        for item in answer.items
    ]
    shown: list[RenderableType] = [
        table(
            f"{answer.context} for {answer.user_id}",
            ("rank", "item", "category", "score", "reason"),
            rows,
            numeric=("rank", "score"),
        )
    ]
    shown.append(
        Text(
            f"{answer.reason} (bundle {answer.version}, {answer.serves}, "
            f"as of {answer.as_of:%Y-%m-%d %H:%M} UTC)"
        )
    )
    shown += [Text(f"Note: {note}") for note in answer.degraded]
    return shown


def bundles_as_json(store: BundleStore) -> dict[str, Any]:
    """The published bundles, the newest night first, and which one is the champion."""
    return {
        "champion": store.champion_version(),
        "bundles": [
            {
                "version": listed.version,
                "champion": listed.champion,
                "promoted": [instant.isoformat() for instant in listed.promoted],
                "until": None if listed.manifest is None else listed.manifest.until.isoformat(),
                "parent": None if listed.manifest is None else listed.manifest.parent,
                "serves": {}
                if listed.manifest is None
                else {name: entry.serves for name, entry in listed.manifest.contexts.items()},
                "problem": listed.problem,
            }
            for listed in store.list()
        ],
    }


def bundles_table(listed: Mapping[str, Any]) -> RenderableType:
    """What `bundles_as_json` gave, one line a bundle."""
    rows = [
        (
            "champion" if bundle["champion"] else "",
            bundle["version"],
            max(bundle["promoted"])[:16].replace("T", " ") if bundle["promoted"] else "never",
            bundle["problem"]
            or ", ".join(f"{context}: {serves}" for context, serves in bundle["serves"].items()),
        )
        for bundle in listed["bundles"]
    ]
    if not rows:
        return Text("No bundle was published yet; `recmeta nightly` makes one.")
    return table("Bundles, the newest night first", ("", "version", "promoted (UTC)", "serves"), rows)


def _figure(value: Any) -> str:
    """A figure, with its interval where it has one."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        if value.get("value") is None:
            return "-"
        low, high = value.get("low"), value.get("high")
        interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
        return f"{value['value']:.3f}{interval}"
    return f"{value:.3f}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_short(inner) for inner in value)
    return escape(str(value)) if isinstance(value, str) else str(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    return value.isoformat() if isinstance(value, datetime) else value
