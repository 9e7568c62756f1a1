"""The items that a bundle knows: what they are about, and when they were last touched.

It must never know a user or a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from recmeta.errors import IntegrityError
from recmeta.events.schema import known_timestamp

CATALOGUE = "catalogue.parquet"
SCHEMA = pl.Schema(
    {
        "item_id": pl.String(),
        "categories": pl.List(pl.String()),
        "first_known": pl.Datetime("us", "UTC"),
        "last_known": pl.Datetime("us", "UTC"),
    }
)


def catalogue_table(events: pl.LazyFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Make the table of all items of a log (columns of ``Interaction``) and of the item table, by item_id.

    An item that no interaction touched has no instants, and is never alive.
    """
    touched = (
        events.select("item_id", known_timestamp())
        .group_by("item_id")
        .agg(
            pl.col("known_timestamp").min().alias("first_known"),
            pl.col("known_timestamp").max().alias("last_known"),
        )
    )
    return (
        touched.join(items.lazy(), on="item_id", how="full", coalesce=True)
        .with_columns(pl.col("categories").fill_null([]))
        .select(list(SCHEMA))
        .cast(SCHEMA)
        .sort("item_id")
        .collect()
    )


class Catalogue:
    """A bundle's items, the most recently touched first."""

    def __init__(self, path: Path) -> None:
        """Read catalogue.parquet.

        Raises:
            IntegrityError: its columns are not item_id, categories, first_known, last_known.
        """
        table = pl.read_parquet(path)
        if table.schema != SCHEMA:
            raise IntegrityError(f"{path}: expected columns {dict(SCHEMA)}, found {dict(table.schema)}")
        table = table.sort("last_known", "item_id", descending=[True, False], nulls_last=True)
        self._ids: list[str] = table["item_id"].to_list()
        self._last: list[datetime | None] = table["last_known"].to_list()
        self._categories: dict[str, tuple[str, ...]] = {
            item: tuple(found or ())
            for item, found in zip(self._ids, table["categories"].to_list(), strict=True)
        }

    def __len__(self) -> int:
        """Number of items."""
        return len(self._ids)

    def __contains__(self, item_id: object) -> bool:
        """Whether the bundle knows this item."""
        return item_id in self._categories

    def categories(self, item_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """The categories of each item; none where it is unknown."""
        return [self._categories.get(item, ()) for item in item_ids]

    def alive(self, now: datetime, within: timedelta) -> list[str]:
        """Items that somebody touched since ``now - within``, the most recently touched first."""
        since = now - within
        return [
            item
            for item, last in zip(self._ids, self._last, strict=True)
            if last is not None and last >= since
        ]

    def latest(self, count: int) -> list[str]:
        """The ``count`` most recently touched items."""
        return self._ids[:count]
