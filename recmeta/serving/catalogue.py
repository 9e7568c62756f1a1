"""The items that a bundle knows: what they are about, and when they were last touched.

It must never know a user or a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from recmeta.errors import IntegrityError
from recmeta.events.schema import known_timestamp
from recmeta.features.met import Int64s, UInt64s, item_codes

NEVER = -(2**62)
"""The instant of what has not happened, before all others."""

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
    """A bundle's items, the most recently touched first; each is known by its place in this order."""

    def __init__(self, path: Path) -> None:
        """Read catalogue.parquet.

        Raises:
            IntegrityError: its columns are not item_id, categories, first_known, last_known.
        """
        table = pl.read_parquet(path)
        if table.schema != SCHEMA:
            raise IntegrityError(f"{path}: expected columns {dict(SCHEMA)}, found {dict(table.schema)}")
        table = table.sort("last_known", "item_id", descending=[True, False], nulls_last=True)
        self.ids: list[str] = table["item_id"].to_list()
        self.categories: list[tuple[str, ...]] = [tuple(of or ()) for of in table["categories"].to_list()]
        self.first_known = _microseconds(table["first_known"])
        """When each became known, microseconds since 1970, UTC; `NEVER` where nobody touched it."""
        self._last_known = _microseconds(table["last_known"])
        self._places = {item: place for place, item in enumerate(self.ids)}
        self._codes = item_codes(self.ids)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.ids)

    def __contains__(self, item_id: object) -> bool:
        """Whether the bundle knows this item."""
        return item_id in self._places

    def places(self, item_ids: Sequence[str]) -> Int64s:
        """Where items stand, [n]; -1 where one is unknown."""
        try:  # hundreds at a time, nearly always all known
            return np.array(list(map(self._places.__getitem__, item_ids)), dtype=np.int64)
        except KeyError:
            find = self._places.get
            return np.array([find(item, -1) for item in item_ids], dtype=np.int64)

    def codes(self, item_ids: Sequence[str], places: Int64s) -> UInt64s:
        """`met.item_codes` of items, [n], known (at ``places``, as the method has them) or not."""
        unknown = np.flatnonzero(places < 0)
        if not len(unknown):
            return self._codes[places]
        codes = np.zeros(len(places), dtype=np.uint64)
        codes[places >= 0] = self._codes[places[places >= 0]]
        codes[unknown] = item_codes([item_ids[place] for place in unknown.tolist()])
        return codes

    def categories_of(self, item_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """The categories of each item; none where it is unknown."""
        places = self._places
        return [self.categories[places[item]] if item in places else () for item in item_ids]

    def alive(self, now: datetime, within: timedelta) -> int:
        """How many items somebody touched since ``now - within``: the first of all."""
        since = np.datetime64((now - within).astimezone(UTC).replace(tzinfo=None), "us").astype(np.int64)
        return int(np.searchsorted(-self._last_known, -since, side="right"))


def _microseconds(instants: pl.Series) -> Int64s:
    return instants.dt.epoch("us").fill_null(NEVER).to_numpy()
