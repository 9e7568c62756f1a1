"""How much data came in, how late, and what was refused. It must never know a label or a feature."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl

from recmeta.events.ledger import DAY
from recmeta.events.schema import known_timestamp
from recmeta.events.store import scan_events
from recmeta.settings import Settings

DAYS = 30
"""Days that are drawn: four weeks and a bit, so that a week can be seen beside the weeks before it."""


def volumes(
    settings: Settings, names: tuple[str, ...], until: datetime, *, since: datetime | None = None
) -> dict[str, Any]:
    """Count the interactions that were known at ``until``, of the 30 days (UTC) before it.

    Args:
        settings: of the workspace.
        names: contexts; each has its entry.
        until: a midnight, UTC.
        since: the end of an earlier night; None where there is none.

    Returns:
        ``days`` (dates, ISO 8601, oldest first) and ``contexts``: for each ``engagements`` and ``others``
        (label 1, label 0) by day of the event, ``total`` (all that is known), ``new`` (known since
        ``since``; None without it), and ``lateness`` (known minus event, in seconds, of the 30 days:
        ``rows``, ``median``, ``p95``, ``over_a_day`` as a share, ``recorded``: whether the log tells the two
        apart at all); None where there are no rows.
    """
    start = until - timedelta(days=DAYS)
    days = [(start + DAY * number).date() for number in range(DAYS)]
    events = scan_events(settings, None, until).filter(pl.col("context").is_in(list(names)))
    event = pl.col("event_timestamp")
    recent = events.filter((event >= start) & (event < until))
    late = (known_timestamp() - event).dt.total_microseconds() / 1e6
    fresh = pl.lit(None, dtype=pl.Int64) if since is None else (known_timestamp() >= since).sum()
    by_day, lateness, totals = pl.collect_all(
        [
            recent.group_by("context", event.dt.date().alias("day"), "label").len(),
            recent.group_by("context").agg(
                pl.len().alias("rows"),
                late.quantile(0.5, "lower").alias("median"),
                late.quantile(0.95, "lower").alias("p95"),
                (late > DAY.total_seconds()).mean().alias("over_a_day"),
                (pl.col("created_timestamp") != event).any().alias("recorded"),
            ),
            events.group_by("context").agg(pl.len().alias("total"), fresh.alias("new")),
        ]
    )
    counted = {(context, day, label): count for context, day, label, count in by_day.iter_rows()}
    delays = {row.pop("context"): row for row in lateness.iter_rows(named=True)}
    known = {row.pop("context"): row for row in totals.iter_rows(named=True)}
    return {
        "days": [day.isoformat() for day in days],
        "contexts": {
            name: {
                "engagements": [counted.get((name, day, 1), 0) for day in days],
                "others": [counted.get((name, day, 0), 0) for day in days],
                "lateness": delays.get(name),
                **known.get(name, {"total": 0, "new": None if since is None else 0}),
            }
            for name in names
        },
    }


def refusals(settings: Settings) -> dict[str, Any]:
    """Count what lies in the quarantine: ``files``, ``rules`` (rows by rule), ``unreadable`` (file names)."""
    rules: dict[str, int] = {}
    unreadable = []
    files = sorted(settings.quarantine_folder.glob("*.parquet"))
    for file in files:
        try:
            found = pl.scan_parquet(file).group_by("rule").len().collect()
        except pl.exceptions.PolarsError:
            unreadable.append(file.name)
            continue
        for rule, count in found.iter_rows():
            rules[str(rule)] = rules.get(str(rule), 0) + count
    return {"files": len(files), "rules": dict(sorted(rules.items())), "unreadable": unreadable}
