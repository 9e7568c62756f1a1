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

import numpy as np
import polars as pl

from recmeta import artifacts
from recmeta.contexts import Contexts
from recmeta.events.ledger import Interval, Ledger, check_interval
from recmeta.events.schema import known_timestamp
from recmeta.events.store import event_span, scan_events
from recmeta.features.counters import (
    VISIBLE_AFTER,
    Occurrences,
    empty_state,
    fold,
    split_row_time,
    with_row_time,
)
from recmeta.features.partitions import (
    FORMAT,
    HISTORY,
    TICK,
    Partitions,
    View,
    counter_view,
    floats,
    lists,
    month_of,
    months,
)
from recmeta.features.schema import ITEMS, KINDS, ROW_TIME, VALUES, counter_names
from recmeta.settings import FeatureSettings, Settings

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
    """Rows of other half-lives or contexts cannot be continued: all are made anew."""
    file = settings.features_folder / "layout.json"
    layout = layout_of(settings, contexts)
    if file.exists() and artifacts.read_json(file) == layout:
        return
    done = ledger.done(STAGE)
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
    events = _read_events(settings, contexts, start, end)
    starts_month = start == month_of(start)
    by_context = {str(name[0]): rows for name, rows in events.group_by("context", maintain_order=True)}
    written = 0
    for view, context in [(HISTORY, None)] + [
        (counter_view(kind, name), name) for name in contexts.names for kind in KINDS
    ]:
        partitions = Partitions(settings.features_folder, view)
        if starts_month:
            partitions.start_month(start)
        if context is None:
            rows = _history_rows(events, partitions, start, settings.features.history_length)
        else:
            own = by_context.get(context, events.clear())
            rows = _counter_rows(own, partitions, start, settings.features)
        partitions.replace_after(start, rows)
        written += len(rows)
    return len(events), written


def _read_events(settings: Settings, contexts: Contexts, start: datetime, end: datetime) -> pl.DataFrame:
    """Interactions known in [start, end), in the order in which they became known."""
    return (
        scan_events(settings, start, end)
        .filter(pl.col("context").is_in(contexts.names))
        .with_columns(known_timestamp())
        .sort("known_timestamp", "event_id")
        .select("user_id", "item_id", "context", "event_timestamp", "known_timestamp", "label", "weight")
        .collect()
    )


def _counter_rows(
    events: pl.DataFrame, partitions: Partitions, start: datetime, settings: FeatureSettings
) -> pl.DataFrame:
    """Counters of one view after each interaction; several that became known at once give one row."""
    view, half_lives = partitions.view, settings.half_lives
    if events.is_empty():
        return view.schema.to_frame()
    keys = list(view.keys)
    entities = events.select(keys).unique(maintain_order=True).with_row_index("entity")
    entity = events.select(keys).join(entities, on=keys, how="left", maintain_order="left")["entity"]
    state = empty_state(len(entities), half_lives)
    since = np.zeros(len(entities), dtype=np.int64)
    before = entities.join(partitions.latest(start, entities), on=keys, how="inner")
    if len(before):
        counters, instants = split_row_time(floats(before[VALUES], state.shape[1] + len(ROW_TIME)))
        known = before["entity"].to_numpy()
        state[known], since[known] = counters, instants - VISIBLE_AFTER
    occurrences = occurrences_of(events)
    counters = fold(entity.to_numpy().astype(np.int64), occurrences, state, since, half_lives)
    values = with_row_time(counters, occurrences.known + VISIBLE_AFTER)
    return _stamped(events.with_columns(lists(values)), view)


def occurrences_of(events: pl.DataFrame) -> Occurrences:
    """The arrays that the recurrence folds, one row an interaction."""
    return Occurrences(
        known=events["known_timestamp"].dt.epoch("us").to_numpy().astype(np.int64),
        event=events["event_timestamp"].dt.epoch("us").to_numpy().astype(np.int64),
        positive=events["label"].to_numpy() == 1,
        weight=events["weight"].to_numpy().astype(np.float64),
    )


def _stamped(rows: pl.DataFrame, view: View) -> pl.DataFrame:
    """Stamp rows one microsecond after they became known; the last of those known at once stays."""
    instant = pl.col("known_timestamp") + TICK
    return (
        rows.unique([*view.keys, "known_timestamp"], keep="last", maintain_order=True)
        .with_columns(instant.alias("event_timestamp"), instant.alias("created_timestamp"))
        .select(view.schema.names())
        .cast(view.schema)
    )


def _history_rows(events: pl.DataFrame, partitions: Partitions, start: datetime, length: int) -> pl.DataFrame:
    """The users' last items after each engagement that changed them."""
    engaged = events.filter(pl.col("label") == 1)
    if engaged.is_empty():
        return HISTORY.schema.to_frame()
    before = partitions.latest(start, engaged)
    histories: dict[str, tuple[str, ...]] = {
        user: tuple(items) for user, items in before.select("user_id", ITEMS).iter_rows()
    }
    changed, after = [], []
    for user, item in engaged.select("user_id", "item_id").iter_rows():
        history = prepended(histories.get(user, ()), item, length)
        changed.append(history is not histories.get(user))
        histories[user] = history
        after.append(history)
    rows = engaged.with_columns(pl.Series(ITEMS, after, dtype=pl.List(pl.String)))
    return _stamped(rows.filter(pl.Series(changed)), HISTORY)


def prepended(history: tuple[str, ...], item: str, length: int) -> tuple[str, ...]:
    """Put an item at the front of a history of at most ``length``; the same again changes nothing."""
    return history if history[:1] == (item,) else (item, *history[: length - 1])
