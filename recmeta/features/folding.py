"""From interactions and the rows before them to the rows after them, as data frames.

The nightly build and the live online store call the same two functions: the rows before come from files
there and from the online store here. This module must never know which.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import polars as pl

from recmeta.events.schema import known_timestamp
from recmeta.features.counters import (
    VISIBLE_AFTER,
    Float32s,
    Occurrences,
    empty_state,
    fold,
    split_row_time,
    with_row_time,
)
from recmeta.features.partitions import HISTORY, INSTANT, View, floats, lists
from recmeta.features.schema import ITEMS, ROW_TIME, VALUES


def in_order_of_knowledge(events: pl.LazyFrame) -> pl.LazyFrame:
    """Interactions with their ``known_timestamp``, in the one order in which they are folded."""
    columns = ("user_id", "item_id", "context", "event_timestamp", "known_timestamp", "label", "weight")
    return events.with_columns(known_timestamp()).sort("known_timestamp", "event_id").select(columns)


def counter_rows(
    events: pl.DataFrame, view: View, before: pl.DataFrame, half_lives: Sequence[timedelta]
) -> pl.DataFrame:
    """Counters of one view after each interaction; several that became known at once give one row.

    Args:
        events: of the view's context, as `in_order_of_knowledge` gives them.
        view: a counter view.
        before: the latest row of each entity (keys and values); entities that are new are left out.
        half_lives: of the fading windows.

    Returns:
        Rows as the view's schema has them. What is recorded before the entity's row in ``before`` counts
        as known at that row's instant.
    """
    if events.is_empty():
        return view.schema.to_frame()
    keys = list(view.keys)
    entities = events.select(keys).unique(maintain_order=True).with_row_index("entity")
    numbers = events.select(keys).join(entities, on=keys, how="left", maintain_order="left")["entity"]
    entity = numbers.to_numpy().astype(np.int64)
    state = empty_state(len(entities), half_lives)
    since = np.zeros(len(entities), dtype=np.int64)
    known = entities.join(before.select(*keys, VALUES), on=keys, how="inner")
    if len(known):
        counters, instants = split_row_time(floats(known[VALUES], state.shape[1] + len(ROW_TIME)))
        place = known["entity"].to_numpy()
        state[place], since[place] = counters, instants - VISIBLE_AFTER
    occurrences = _occurrences(events)
    occurrences = Occurrences(
        np.maximum(occurrences.known, since[entity]),
        occurrences.event,
        occurrences.positive,
        occurrences.weight,
    )
    return _stamped(
        events.select(keys), view, occurrences, fold(entity, occurrences, state, since, half_lives)
    )


def _occurrences(events: pl.DataFrame) -> Occurrences:
    return Occurrences(
        known=events["known_timestamp"].dt.epoch("us").to_numpy().astype(np.int64),
        event=events["event_timestamp"].dt.epoch("us").to_numpy().astype(np.int64),
        positive=events["label"].to_numpy() == 1,
        weight=events["weight"].to_numpy().astype(np.float64),
    )


def _stamped(keys: pl.DataFrame, view: View, occurrences: Occurrences, counters: Float32s) -> pl.DataFrame:
    stamps = occurrences.known + VISIBLE_AFTER
    instant = pl.Series("event_timestamp", stamps).cast(INSTANT)
    return (
        keys.with_columns(instant, instant.alias("created_timestamp"), lists(with_row_time(counters, stamps)))
        .unique([*view.keys, "event_timestamp"], keep="last", maintain_order=True)
        .cast(view.schema)
    )


def history_rows(events: pl.DataFrame, before: pl.DataFrame, length: int) -> pl.DataFrame:
    """The users' last items after each engagement that changed them, as the history's schema.

    ``before`` holds user_id and items; ``events`` as for `counter_rows`, of all contexts.
    """
    engaged = events.filter(pl.col("label") == 1)
    histories: dict[str, tuple[str, ...]] = {
        user: tuple(items) for user, items in before.select("user_id", ITEMS).iter_rows()
    }
    changed, after = [], []
    for user, item in engaged.select("user_id", "item_id").iter_rows():
        history = prepended(histories.get(user, ()), item, length)
        changed.append(history is not histories.get(user))
        histories[user] = history
        after.append(history)
    instant = pl.col("known_timestamp") + pl.duration(microseconds=VISIBLE_AFTER)
    return (
        engaged.select(
            "user_id",
            instant.alias("event_timestamp"),
            instant.alias("created_timestamp"),
            pl.Series(ITEMS, after, dtype=pl.List(pl.String)),
        )
        .filter(pl.Series(changed, dtype=pl.Boolean))
        .unique(["user_id", "event_timestamp"], keep="last", maintain_order=True)
        .cast(HISTORY.schema)
    )


def prepended(history: tuple[str, ...], item: str, length: int) -> tuple[str, ...]:
    """Put an item at the front of a history of at most ``length``; the same again changes nothing."""
    return history if history[:1] == (item,) else (item, *history[: length - 1])
