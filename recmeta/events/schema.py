"""The canonical interaction table and the item table: columns, types, and the rules of every row.

The rules are dataframely's, so that a refused row knows which rule refused it. This module must
never know where rows come from or where they go.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dataframely as dy
import polars as pl

INSTANT = pl.Datetime("us", "UTC")

LONGEST_ID = 256
"""Bytes; longer ids are data in the wrong column more often than ids."""

OLDEST = datetime(2000, 1, 1, tzinfo=UTC)
"""Earlier stamps are zeros, or seconds read in the wrong unit: no log of that age exists."""

CLOCK_SKEW = timedelta(days=1)
"""How far before its event a row may have been recorded: clocks and zones of devices are wrong by hours."""


def known_timestamp() -> pl.Expr:
    """The instant from which an interaction may be used: the later of happening and being recorded."""
    return pl.max_horizontal("event_timestamp", "created_timestamp").alias("known_timestamp")


def _identifier() -> dy.String:
    return dy.String(
        nullable=False,
        check={
            "empty": lambda column: column.str.len_bytes() > 0,
            "too_long": lambda column: column.str.len_bytes() <= LONGEST_ID,
            "control_character": lambda column: ~column.str.contains(r"\p{Cc}"),
        },
    )


def _instant() -> dy.Datetime:
    return dy.Datetime(nullable=False, time_unit="us", time_zone="UTC")


class Interaction(dy.Schema):
    """One row of the event log; instants are UTC, in microseconds."""

    event_id = dy.String(nullable=False, check={"empty": lambda column: column.str.len_bytes() > 0})
    user_id = _identifier()
    item_id = _identifier()
    context = dy.String(nullable=False)
    event_timestamp = dy.Datetime(
        nullable=False,
        time_unit="us",
        time_zone="UTC",
        check={"before_2000": lambda column: column >= OLDEST},
    )
    created_timestamp = _instant()
    label = dy.UInt8(nullable=False, is_in=[0, 1])
    weight = dy.Float32(
        nullable=False,
        allow_inf=True,
        allow_nan=True,
        check={
            "not_finite": lambda column: column.is_finite(),
            "not_positive": lambda column: column > 0,
        },
    )
    position = dy.Int32(nullable=True, check={"not_a_position": lambda column: column >= 0})
    propensity = dy.Float32(
        nullable=True,
        allow_inf=True,
        allow_nan=True,
        check={"out_of_range": lambda column: column.is_between(0, 1, closed="right")},
    )

    @dy.rule()
    def created_before_event(cls) -> pl.Expr:  # noqa: N805  (dataframely passes the class)
        """A row cannot have been recorded more than `CLOCK_SKEW` before its event."""
        return pl.col("created_timestamp") >= pl.col("event_timestamp") - CLOCK_SKEW


class Item(dy.Schema):
    """What is known of an item apart from who engaged with it."""

    item_id = _identifier()
    categories = dy.List(dy.String(nullable=False), nullable=False)


INTERACTION_SCHEMA = Interaction.create_empty().schema
ITEM_SCHEMA = Item.create_empty().schema


@dataclass(frozen=True)
class RawLog:
    """What a source holds, before any row is judged."""

    rows: pl.DataFrame
    items: pl.DataFrame | None
    origin: str
    """The source, for people: the reader's name and the file's."""
    left_out: int = 0
    """Rows that the publisher's layout says are no interaction of anybody."""
