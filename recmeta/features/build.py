"""Fold the interaction log into feature rows, only what the ledger says is missing.

A regular night reads one day of interactions and the latest rows of the entities in it. What a late
or backfilled interaction reopened is folded again from the first reopened day to the frontier, because
every later row may rest on it; so any order of backfill ends in the same bytes.

Strictly in time: a row is stamped one microsecond after its interaction became known, and event time
and created time both count. This module must never see a label's outcome or Feast.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import polars as pl

from recmeta import artifacts
from recmeta.contexts import Contexts
from recmeta.events.ledger import Interval, Ledger, check_interval, midnight_before
from recmeta.events.schema import known_timestamp
from recmeta.events.store import event_span, scan_events
from recmeta.features.folding import counter_rows, history_rows, in_order_of_knowledge
from recmeta.features.partitions import (
    FORMAT,
    HISTORY,
    Partitions,
    View,
    counter_view,
    month_of,
    months,
)
from recmeta.features.schema import KINDS, counter_names
from recmeta.settings import Settings

STAGE = "features"


def build_features(
    settings: Settings,
    contexts: Contexts,
    until: datetime,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Bring all feature rows up to ``until`` (a midnight, UTC).

    Returns:
        ``interactions`` folded, ``rows`` written, and ``start`` and ``end`` of what was done (None where
        nothing was missing).

    Raises:
        IntervalError: ``until`` is in the future.
    """
    done: dict[str, Any] = {"interactions": 0, "rows": 0, "start": None, "end": None}
    span = event_span(settings)
    if span is None or until <= span.start:
        return done
    wanted = Interval(span.start, until)
    check_interval(wanted, datetime.now(UTC))
    ledger = Ledger(settings.ledger_folder)
    _forget_other_layouts(settings, contexts, ledger)
    gaps = ledger.missing(STAGE, wanted)
    if not gaps:
        return done
    start = gaps[0].start
    frontier = ledger.frontier(STAGE)
    end = until if frontier is None else max(until, frontier)
    _reopen_what_rests_on(Interval(start, end), contexts, ledger)
    chunks = list(months(start, end))
    for number, (first, last) in enumerate(chunks):
        if progress is not None:
            progress(STAGE, number, len(chunks))
        interactions, rows = _build_chunk(settings, contexts, first, last)
        done["interactions"] += interactions
        done["rows"] += rows
        ledger.mark(STAGE, Interval(first, last))
    if progress is not None:
        progress(STAGE, len(chunks), len(chunks))
    return {**done, "start": start.isoformat(), "end": end.isoformat()}


def layout_of(settings: Settings, contexts: Contexts) -> dict[str, Any]:
    """What stored rows depend on beside the interactions."""
    return {
        "format": FORMAT,
        "contexts": list(contexts.names),
        "counters": list(counter_names(settings.features.half_lives)),
        "history_length": settings.features.history_length,
    }


def _forget_other_layouts(settings: Settings, contexts: Contexts, ledger: Ledger) -> None:
    """Rows of other half-lives or contexts cannot be continued: all are made anew.

    Where contexts only came, what was made stays, and the days since the first interaction of a new one
    are done again.
    """
    file = settings.features_folder / "layout.json"
    layout = layout_of(settings, contexts)
    before = artifacts.read_json(file) if file.exists() else None
    if before == layout:
        return
    done = ledger.done(STAGE)
    earlier = [] if before is None else list(before["contexts"])
    came = sorted(set(contexts.names) - set(earlier))
    if before == {**layout, "contexts": earlier} and set(earlier) <= set(contexts.names):
        first = (
            scan_events(settings)
            .filter(pl.col("context").is_in(came))
            .select(known_timestamp().min())
            .collect()
            .item()
        )
        if first is not None and done and midnight_before(first) < done[-1].end:
            _reopen_what_rests_on(Interval(midnight_before(first), done[-1].end), contexts, ledger)
        artifacts.write_json(file, layout)
        return
    if done:
        everything = Interval(done[0].start, done[-1].end)
        ledger.reopen(STAGE, everything)
        _reopen_what_rests_on(everything, contexts, ledger)
    if settings.features_folder.exists():
        shutil.rmtree(settings.features_folder)
    artifacts.write_json(file, layout)


def _reopen_what_rests_on(interval: Interval, contexts: Contexts, ledger: Ledger) -> None:
    for stage in (STAGE, "materialize", *(f"rows.{name}" for name in contexts.names)):
        ledger.reopen(stage, interval)


def _build_chunk(settings: Settings, contexts: Contexts, start: datetime, end: datetime) -> tuple[int, int]:
    """Write every view's rows of [start, end), which lies in one month; return interactions and rows."""
    declared = pl.col("context").is_in(contexts.names)
    events = in_order_of_knowledge(scan_events(settings, start, end).filter(declared)).collect()
    by_context = {str(name[0]): rows for name, rows in events.group_by("context", maintain_order=True)}
    starts_month = start == month_of(start)
    written = 0

    def opened(view: View) -> Partitions:
        partitions = Partitions(settings.features_folder, view)
        if starts_month:
            partitions.start_month(start)
        return partitions

    history = opened(HISTORY)
    rows = history_rows(events, history.latest(start, events), settings.features.history_length)
    history.replace_after(start, rows)
    written += len(rows)
    for name in contexts.names:
        own = by_context.get(name, events.clear())
        for kind in KINDS:
            view = counter_view(kind, name)
            partitions = opened(view)
            rows = counter_rows(own, view, partitions.latest(start, own), settings.features.half_lives)
            partitions.replace_after(start, rows)
            written += len(rows)
    return len(events), written
