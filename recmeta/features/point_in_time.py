"""The as-of join: for each row, the newest feature row that was known at the row's instant.

The answer is Feast's with ``filter_by_created_timestamp=True``: among a key's rows with event_timestamp
<= t and created_timestamp <= t, the one with the greatest event_timestamp, then created_timestamp.

A feature row can be met from v = max(event_timestamp, created_timestamp) on. Per key and in the order of
v, the answer at t is the greatest (event_timestamp, created_timestamp) so far: a running maximum. So one
ordinary as-of join on v is exact, late rows included, and where nothing is late it is the plain join.
Only row numbers go through the join; values are gathered once, at the end.

This module knows data frames; it must never know what a column means.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from recmeta.errors import SchemaError

EVENT, CREATED, VISIBLE = "event_timestamp", "created_timestamp", "visible_timestamp"


def latest_row(rows: pl.DataFrame, views: pl.DataFrame, keys: Sequence[str]) -> pl.Series:
    """For each of ``rows`` the number of its row in ``views``: UInt32, null where there is none.

    Args:
        rows: ``keys`` and event_timestamp, the instant of each; in any order, repeats allowed.
        views: ``keys``, event_timestamp and created_timestamp; in any order, no nulls. Of rows that are
            equal in all of these any one may be met, as in Feast: there should be none.
        keys: join keys, at least one.

    Raises:
        SchemaError: a key or a time stamp is missing, or of another type on the other side.
    """
    _check(rows, views, keys)
    visible = pl.max_horizontal(EVENT, CREATED).alias(VISIBLE)
    order = (
        views.select(*keys, EVENT, CREATED)
        .with_row_index("row")
        .sort(EVENT, CREATED, maintain_order=True)
        .with_columns(visible)
    )
    if order.select((pl.col(VISIBLE) > pl.col(EVENT)).any()).item():
        order = order.with_row_index("place")
        newest = (
            order.sort(VISIBLE, maintain_order=True)
            .with_columns(pl.col("place").cum_max().over(keys))
            .select(*keys, VISIBLE, "place")
        )
        order = newest.with_columns(order["row"].gather(newest["place"]).alias("row"))
    return (
        rows.select(*keys, EVENT)
        .with_row_index("at")
        .sort(EVENT)
        .join_asof(
            order.select(*keys, VISIBLE, "row"),
            left_on=EVENT,
            right_on=VISIBLE,
            by=list(keys),
            strategy="backward",
            check_sortedness=False,  # sorted above; polars cannot see it through ``by``
        )
        .sort("at")["row"]
    )


def join_as_of(
    rows: pl.DataFrame, views: pl.DataFrame, keys: Sequence[str], columns: Sequence[str]
) -> pl.DataFrame:
    """Return ``rows``, in their order, with ``columns`` of each one's row in ``views`` (null: no row).

    Raises:
        SchemaError: as `latest_row`, or one of ``columns`` is missing or stands in ``rows`` already.
    """
    for name in columns:
        if name not in views.columns or name in rows.columns:
            raise SchemaError(f"expected {name!r} to be a column of the features alone, found it otherwise")
    found = latest_row(rows, views, keys)
    return rows.hstack(views.select(pl.col(columns).gather(found)))


def _check(rows: pl.DataFrame, views: pl.DataFrame, keys: Sequence[str]) -> None:
    if not keys:
        raise SchemaError("expected at least one join key, found none")
    for name in (*keys, EVENT, CREATED):
        expected = views.schema.get(name)
        if expected is None:
            raise SchemaError(f"features: expected a column {name!r}, found {', '.join(views.columns)}")
        if name != CREATED and rows.schema.get(name) != expected:
            raise SchemaError(
                f"rows: expected a column {name!r} of type {expected}, as in the features; "
                f"found {rows.schema.get(name, 'none')}"
            )
