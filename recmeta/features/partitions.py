"""Feature rows on disk: one folder a view, one Parquet file a month, and what each month starts from.

A row with ``event_timestamp`` t is what became known just before t, so the file of a month holds the
rows with month < t <= next month. Beside it lies the month's *carry*: the latest row of every entity
as the month starts. The rows as of any instant are in one carry and one month file, so that a
night reads at most a month and never the whole history. Feast reads the month files only.

This module moves rows; it must never compute a feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from recmeta import artifacts
from recmeta.contexts import Contexts
from recmeta.features.counters import Float32s
from recmeta.features.schema import (
    HISTORY_VIEW,
    ITEM_CODES,
    ITEMS,
    KEYS,
    KINDS,
    MET_VIEW,
    USER,
    VALUES,
    view_name,
)

INSTANT = pl.Datetime("us", "UTC")
FORMAT = 1
"""Raised when the meaning of stored rows changes, so that old files are made anew."""

TICK = timedelta(microseconds=1)
ROW_GROUP = 131_072
"""Rows; fixed, so that a file's bytes depend on its rows alone."""


_TYPES = {VALUES: pl.List(pl.Float32()), ITEMS: pl.List(pl.String()), ITEM_CODES: pl.Binary()}


@dataclass(frozen=True)
class View:
    """One feature view: its name, its keys and its one column of values."""

    name: str
    keys: tuple[str, ...]
    column: str

    @property
    def schema(self) -> pl.Schema:
        """Columns of its files, in order."""
        return pl.Schema(
            {
                **dict.fromkeys(self.keys, pl.String()),
                "event_timestamp": INSTANT,
                "created_timestamp": INSTANT,
                self.column: _TYPES[self.column],
            }
        )


HISTORY = View(HISTORY_VIEW, KEYS[USER], ITEMS)

MET = View(MET_VIEW, KEYS[USER], ITEM_CODES)
"""In the online store only: it has no files."""


def counter_view(kind: str, context: str) -> View:
    """The view of one kind's counters in one context."""
    return View(view_name(kind, context), KEYS[kind], VALUES)


def views_of(contexts: Contexts) -> tuple[View, ...]:
    """Every view with files that the declared contexts have, the history first."""
    return (HISTORY, *(counter_view(kind, name) for name in contexts.names for kind in KINDS))


def month_of(instant: datetime) -> datetime:
    """The first instant, UTC, of the calendar month of ``instant``."""
    return instant.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month(month: datetime) -> datetime:
    """The first instant of the month after ``month``."""
    return month_of(month + timedelta(days=32))


def months(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Cut [start, end) at the borders of months."""
    while start < end:
        border = min(next_month(month_of(start)), end)
        yield start, border
        start = border


class Partitions:
    """The files of one view below ``folder`` (a workspace's features folder)."""

    def __init__(self, folder: Path, view: View) -> None:
        self.view = view
        self.folder = folder / view.name
        self._carries = folder / "carry" / view.name

    def file(self, month: datetime) -> Path:
        """Where the rows of a month lie."""
        return self.folder / f"{month:%Y-%m}.parquet"

    def _carry(self, month: datetime) -> Path:
        return self._carries / f"{month:%Y-%m}.parquet"

    def _scan(self, path: Path) -> pl.LazyFrame:
        return pl.scan_parquet(path) if path.exists() else self.view.schema.to_frame().lazy()

    def _newest(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        return rows.sort("event_timestamp", maintain_order=True).unique(
            list(self.view.keys), keep="last", maintain_order=True
        )

    def latest(self, instant: datetime, among: pl.DataFrame | None = None) -> pl.DataFrame:
        """The latest row of every entity with event_timestamp <= ``instant``; only ``among`` these keys."""
        month = month_of(instant - TICK)
        parts = [
            self._scan(self._carry(month)),
            self._scan(self.file(month)).filter(pl.col("event_timestamp") <= instant),
        ]
        if among is not None:
            chosen = among.select(self.view.keys).unique().lazy()
            parts = [part.join(chosen, on=self.view.keys, how="semi") for part in parts]
        return self._newest(pl.concat(parts)).collect()

    def window(self, start: datetime, end: datetime, among: pl.DataFrame) -> pl.LazyFrame:
        """All that an as-of join at instants in [start, end] can meet, for the keys of ``among``.

        That is the latest row of each entity at ``start`` and every row after, up to ``end``.
        """
        chosen = among.select(self.view.keys).unique().lazy()
        parts = [self.latest(start, among).lazy()]
        for border, _ in months(month_of(start), end + TICK):
            instant = pl.col("event_timestamp")
            rows = self._scan(self.file(border)).filter(instant > start, instant <= end)
            parts.append(rows.join(chosen, on=self.view.keys, how="semi"))
        return pl.concat(parts)

    def keys(self, instant: datetime) -> pl.LazyFrame:
        """Every entity with a row by ``instant``: its keys, some of them twice."""
        month = month_of(instant - TICK)
        rows = self._scan(self.file(month)).filter(pl.col("event_timestamp") <= instant)
        return pl.concat([part.select(self.view.keys) for part in (self._scan(self._carry(month)), rows)])

    def touched(self, start: datetime, end: datetime) -> pl.LazyFrame:
        """Every entity with a row in [start, end]: its keys, as often as it has one."""
        return pl.concat(
            self._scan(self.file(border))
            .filter(pl.col("event_timestamp").is_between(start, end))
            .select(self.view.keys)
            for border, _ in months(month_of(start - TICK), end + TICK)
        )

    def start_month(self, month: datetime) -> None:
        """Write what a month starts from; call it when all rows before are in place."""
        self._write(self._carry(month), self.latest(month))

    def replace_after(self, instant: datetime, rows: pl.DataFrame) -> None:
        """Put ``rows``, all of one month, in place of that month's rows after ``instant``."""
        file = self.file(month_of(instant))
        kept = self._scan(file).filter(pl.col("event_timestamp") <= instant).collect()
        self._write(file, pl.concat([kept, rows.select(kept.columns)]))

    def _write(self, path: Path, rows: pl.DataFrame) -> None:
        ordered = rows.sort("event_timestamp", *self.view.keys).rechunk()
        with artifacts.replacing(path) as temporary:
            ordered.write_parquet(temporary, compression="zstd", row_group_size=ROW_GROUP)


def floats(values: pl.Series, width: int) -> Float32s:
    """Turn a List(Float32) column, each of ``width`` values, into an array [rows, width]."""
    flat = values.list.explode(empty_as_null=False, keep_nulls=False) if len(values) else values.explode()
    return np.ascontiguousarray(flat.to_numpy().astype(np.float32).reshape(len(values), width))


def lists(values: Float32s) -> pl.Series:
    """Turn an array [rows, width] into a List(Float32) column."""
    return pl.Series(VALUES, values, dtype=pl.Array(pl.Float32, values.shape[1])).arr.to_list()
