"""What a bundle's items are by their counters, in memory: read once, and again when the store says so.

Dense columns of items are made for an instant and kept until another is asked for, so that requests of
the same instant share them. This module must never know a user.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt

from recmeta.features.assembly import Block, FeatureSpace, stored_block
from recmeta.features.counters import Float32s, split_row_time
from recmeta.features.direct_online import ItemRows, Reader
from recmeta.features.schema import ITEM
from recmeta.serving.kept_by_context import KeptByContext, Make

Int64s = npt.NDArray[np.int64]


def columns_of(
    space: FeatureSpace, context: str, rows: Mapping[str, ItemRows], places: Int64s, instant: int, width: int
) -> Float32s:
    """The columns at ``space.split.about`` of items as a reader tells of them, [n, K].

    Args:
        space: how columns are made.
        context: the target.
        rows: by context, as `Reader.items` reads them.
        places: of the items among those that were asked for, [n]; those below 0 are of items without rows.
        instant: microseconds since 1970, UTC.
        width: numbers of a stored row.
    """
    sources = space.contexts.feature_sources(context)
    return space.part(ITEM, context, _stored(sources, rows, places, instant, width))


def _stored(
    sources: Sequence[str], rows: Mapping[str, ItemRows], places: Int64s, instant: int, width: int
) -> Block:
    """The views of items in some contexts, [S, n]; arguments as of `columns_of`."""
    values = np.zeros((len(sources), len(places), width), dtype=np.float32)
    there = np.zeros((len(sources), len(places)), dtype=np.bool_)
    for number, name in enumerate(sources):
        held = rows.get(name)
        if held is not None and len(held.places):
            at = np.minimum(np.searchsorted(held.places, places), len(held.places) - 1)
            there[number] = held.places[at] == places
            values[number, there[number]] = held.values[at[there[number]]]
    return stored_block(values, there, instant)


SHARED_UP_TO = 256
"""Rows of a context's own: with more of them its columns are kept by themselves."""

_NONE: Int64s = np.zeros(0, dtype=np.int64)


class ItemMemory:
    """Counters of n items in all contexts. One thread asks and updates; another may `load` meanwhile."""

    def __init__(self, space: FeatureSpace, items: Sequence[str], width: int, most_bytes: int) -> None:
        """Know nothing yet: `load` first.

        Args:
            space: how columns are made.
            items: ids, in the order of their places.
            width: numbers of a stored row.
            most_bytes: of kept columns; a context beyond that has its columns made anew each time.
        """
        self._space, self._items, self.width = space, items, width
        self.changes: Int64s = np.zeros(len(items) + 1, dtype=np.int64)
        """Raised for an item when its rows were read again; the last is of items that nobody touched."""
        self._kept = KeptByContext(self.changes, most_bytes)
        self._rows: dict[str, ItemRows] = {}
        """As they were read."""
        self._meanwhile: list[Int64s] | None = None
        """What was updated while all is read; None while it is not."""
        self._changing = Lock()

    def load(self, reader: Reader) -> None:
        """Read the rows of all items in all contexts of the space."""
        missed: list[Int64s] = []
        self._meanwhile = missed
        try:
            self._rows = reader.items(self._space.contexts.names, self._items)
            self.changes += 1
        finally:
            self._meanwhile = None
        if missed:
            self.update(reader, np.concatenate(missed))

    def update(self, reader: Reader, places: Int64s) -> None:
        """Read some items again: they were just touched."""
        meanwhile = self._meanwhile
        if meanwhile is not None:
            meanwhile.append(places)
        touched = np.unique(places)
        fresh = reader.items(self._space.contexts.names, [self._items[place] for place in touched.tolist()])
        with self._changing:
            self._put(self._rows, touched, fresh)
            self.changes[touched] += 1

    def _put(self, all_rows: dict[str, ItemRows], touched: Int64s, fresh: dict[str, ItemRows]) -> None:
        for name, rows in fresh.items():
            if not len(rows.places):
                continue
            held = all_rows.get(name)
            at, values = touched[rows.places], rows.values
            if held is not None:
                stay = ~np.isin(held.places, at)
                at = np.concatenate([held.places[stay], at])
                values = np.concatenate([held.values[stay], values])
            order = np.argsort(at, kind="stable")
            all_rows[name] = ItemRows(at[order], values[order])

    def newest(self) -> int:
        """When the newest of all rows became known, microseconds since 1970, UTC; 0 where there is none."""
        rows = [found.values for found in self._rows.values() if len(found.values)]
        return max((int(split_row_time(values)[1].max()) for values in rows), default=0)

    def columns(self, context: str, places: Int64s, instant: int) -> Float32s:
        """The columns at ``space.split.about`` of some items at an instant, [n, I].

        Args:
            context: the target.
            places: of the items, [n]; those below 0 are of items that nobody touched.
            instant: microseconds since 1970, UTC.
        """
        alike = self._space.alike(context)
        rows = self._rows
        own = rows[context].places if context in rows else _NONE
        if alike is None or len(own) > SHARED_UP_TO:
            return self._taken(context, places, instant, lambda some: self.made(context, some, instant))
        sources = self._space.contexts.feature_sources(context)
        others = {name: rows[name] for name in sources if name != context and name in rows}

        def of_others(some: Int64s) -> Float32s:
            return columns_of(self._space, context, others, some, instant, self.width)

        found = self._taken(alike, places, instant, of_others)
        if len(own) and (touched := np.isin(places, own)).any():
            found[touched] = self.made(context, places[touched], instant)
        return found

    def _taken(self, context: Hashable, places: Int64s, instant: int, make: Make) -> Float32s:
        found = self._kept.take(context, places, instant, len(self._space.split.about), make)
        return make(places) if found is None else found

    def made(self, context: str, places: Int64s, instant: int) -> Float32s:
        """As `columns`, made anew."""
        return columns_of(self._space, context, self._rows, places, instant, self.width)

    def columns_of_all(self, sources: Sequence[str], places: Int64s, instant: int) -> Float32s:
        """What some items are whoever asks: `FeatureSpace.item_columns` of these contexts, made anew."""
        return self._space.item_columns(_stored(sources, self._rows, places, instant, self.width))
