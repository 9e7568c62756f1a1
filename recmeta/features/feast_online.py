"""Rows of a view in Feast's online store: read by key, write; whichever store it is.

One row of the history view, under a key that no user can have, says how
new the newest row is: as long as that is old, writing needs no look at what stands there. This module
must never know a context or a counter.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta.features.counters import Float32s
from recmeta.features.direct_online import Backend, ItemRows, Lookup, ManyRows, UserRows
from recmeta.features.met import Int64s, UInt64s, codes_in, maybe_met_of_each
from recmeta.features.partitions import HISTORY, MET, View, counter_view
from recmeta.features.schema import ITEM, ITEM_CODES, ITEMS, USER, USER_ITEM, VALUES

READ_BATCH = 2_000
WRITE_BATCH = 5_000
"""Rows; well under the number of parameters that SQLite takes, and a few milliseconds of lock."""


_PACKED = {VALUES: "float_list_val", ITEMS: "string_list_val", ITEM_CODES: "bytes_val"}
"""Where Feast's message for a value has that of a column."""

_NEWEST = ("\x00newest",)
"""No user's id has control characters."""


@dataclass(frozen=True)
class OnlineRows:
    """What a store holds for n keys."""

    there: npt.NDArray[np.bool_]
    values: list[Any]
    """List of numbers or strings, or bytes, of each key; None where there is no row."""
    stamps: list[datetime | None]
    """When the row was stamped, UTC; SQLite keeps whole seconds only."""

    def matrix(self, width: int) -> Float32s:
        """Counters as [n, width]; zeros where there is no row."""
        found: Float32s = np.zeros((len(self.values), width), dtype=np.float32)
        for place in np.flatnonzero(self.there).tolist():
            found[place] = self.values[place]
        return found


class FeastRows:
    """Rows through Feast's own online store interface, in batches.

    What costs time is Python's conversion of each value, and these rows have one.

    Args:
        store: a `feast.FeatureStore`.
        views: Feast's view objects by name.
    """

    def __init__(self, store: Any, views: dict[str, Any]) -> None:
        self._store = store
        self._config = store.config
        self._provider = store._get_provider()  # what get_online_features calls, without its conversions
        self._views = views

    def close(self) -> None:
        """Close the store's connection; the next call opens it again."""
        online = self._provider.online_store
        for name in ("_conn", "_client"):  # SQLite and PostgreSQL, Redis; Feast's own close is async only
            connection = getattr(online, name, None)
            if connection is not None:
                connection.close()
                setattr(online, name, None)

    def holds(self, view: View) -> bool:
        """As `Backend.holds`: Feast has made a place for what is registered."""
        from feast.errors import FeatureViewNotFoundException

        try:
            self._store.get_feature_view(view.name)
        except FeatureViewNotFoundException:
            return False
        return True

    def get(self, view: View, keys: Sequence[tuple[str, ...]]) -> list[tuple[datetime, Any] | None]:
        """As `Backend.get`."""
        packed = _PACKED[view.column]
        rows = self._provider.online_read(
            config=self._config,
            table=self._views[view.name],
            entity_keys=_entity_keys(view, keys),
            requested_features=[view.column],
        )
        found: list[tuple[datetime, Any] | None] = []
        for stamp, features in rows:
            # Redis: a key that is not there comes as an empty value of the year 1970.
            held = features is not None and stamp and features[view.column].HasField(packed)
            value = getattr(features[view.column], packed) if held else None
            found.append((stamp, getattr(value, "val", value)) if held else None)  # bytes are in no list
        return found

    def put(
        self,
        view: View,
        keys: Sequence[tuple[str, ...]],
        values: Sequence[Any],
        stamps: Sequence[datetime],
    ) -> None:
        """As `Backend.put`."""
        packed = zip(_entity_keys(view, keys), _packed(view, values), stamps, strict=True)
        data = [(key, {view.column: value}, stamp, stamp) for key, value, stamp in packed]
        self._provider.online_write_batch(self._config, self._views[view.name], data, None)


class OnlineStore:
    """The online rows of one workspace; several threads may use it.

    Args:
        backend: who reads and writes them.
        width: values in a counter row; rows of another width, left from other settings, count as none.
    """

    def __init__(self, backend: Backend, width: int) -> None:
        self._backend = backend
        self._width = width
        self._lock = threading.RLock()

    @property
    def lock(self) -> threading.RLock:
        """Held by every call; hold it over a read and the write that rests on it."""
        return self._lock

    def close(self) -> None:
        """Close the store's connection; the next call opens it again."""
        with self._lock:
            self._backend.close()

    def holds(self, view: View) -> bool:
        """Whether the store has a place for rows of a view; one that an older recmeta made may not."""
        with self._lock:
            return self._backend.holds(view)

    def read(self, view: View, keys: Sequence[tuple[str, ...]]) -> OnlineRows:
        """Read the rows of some keys, in their order; keys must differ from each other."""
        values: list[Any] = []
        stamps: list[datetime | None] = []
        with self._lock:
            for batch in _batches(keys, READ_BATCH):
                for row in self._backend.get(view, batch):
                    usable = row is not None and self._is_one_of(view, row[1])
                    values.append(row[1] if row is not None and usable else None)
                    stamps.append(row[0] if row is not None and usable else None)
        there = np.fromiter((value is not None for value in values), dtype=np.bool_, count=len(values))
        return OnlineRows(there, values, stamps)

    def _is_one_of(self, view: View, value: Any) -> bool:
        if view.column == VALUES:
            return len(value) == self._width
        return view.column != ITEM_CODES or codes_in(value) is not None

    def newest(self) -> datetime | None:
        """An instant that no row's stamp is after; None where nothing was ever written."""
        return self.read(HISTORY, [_NEWEST]).stamps[0]

    def announce(self, instant: datetime) -> None:
        """Say, before rows are written, that none of them is stamped after ``instant``."""
        with self._lock:
            newest = self.newest()
            if newest is None or newest < instant:
                up = timedelta(microseconds=-instant.microsecond % 1_000_000)  # SQLite cuts to whole seconds
                stamp = instant + up
                self._backend.put(HISTORY, [_NEWEST], [[]], [stamp])

    def write(self, view: View, rows: pl.DataFrame, *, limit: datetime | None = None) -> int:
        """Write rows (as the view's schema has them, one a key); return how many.

        `announce` their newest stamp before. What stands there is overwritten, but where ``limit`` is given
        what is stamped after it stays.
        """
        written = 0
        for part in rows.iter_slices(WRITE_BATCH):
            keys = list(part.select(view.keys).iter_rows())
            values, stamps = part[view.column].to_list(), part["event_timestamp"].to_list()
            with self._lock:
                newest = self.newest() if limit is not None else None
                if limit is not None and newest is not None and newest > limit:
                    there = self.read(view, keys).stamps
                    chosen = [n for n, stamp in enumerate(there) if stamp is None or stamp <= limit]
                    keys, values, stamps = ([of[n] for n in chosen] for of in (keys, values, stamps))
                if keys:
                    self._backend.put(view, keys, values, stamps)
            written += len(keys)
        return written


class FeastReader:
    """A server's reader of a store that only Feast can read: a call a view, and slower by that.

    Args:
        online: the rows; give the reader a store of its own.
        width: values in a counter row.
    """

    def __init__(self, online: OnlineStore, width: int) -> None:
        self._online = online
        self._width = width
        self._indexed = online.holds(MET)

    def close(self) -> None:
        """As `Reader.close`."""
        self._online.close()

    def requests(self, asked: Sequence[Lookup]) -> list[UserRows]:
        """As `Reader.requests`."""
        return [self._request(*one) for one in asked]

    def _request(
        self, user_id: str, contexts: Sequence[str], items: Sequence[str], codes: UInt64s
    ) -> UserRows:
        found = self.many(contexts, [user_id], np.zeros(len(items), dtype=np.int64), items, codes)
        return UserRows(
            found.users[:, 0],
            found.knows_user[:, 0],
            found.histories[0],
            found.met,
            found.pairs,
            found.knows_pair,
        )

    def many(
        self,
        contexts: Sequence[str],
        users: Sequence[str],
        whose: Int64s,
        items: Sequence[str],
        codes: UInt64s,
    ) -> ManyRows:
        """As `Reader.many`."""
        keys = [(user,) for user in users]
        values, knows = self._rows(USER, contexts, keys)
        histories = [tuple(history or ()) for history in self._online.read(HISTORY, keys).values]
        index = self._online.read(MET, keys).values if self._indexed else [None] * len(users)
        places = maybe_met_of_each(np.logical_or.reduce(knows), index, whose, codes)
        asked = [(users[whose[place]], items[place]) for place in places.tolist()]
        pairs, knows_pair = self._rows(USER_ITEM, contexts, asked)
        there = np.flatnonzero(knows_pair.any(axis=0))
        return ManyRows(values, knows, histories, places[there], pairs[:, there], knows_pair[:, there])

    def items(self, contexts: Sequence[str], items: Sequence[str]) -> dict[str, ItemRows]:
        """As `Reader.items`."""
        found = {}
        for name in contexts:
            rows = self._online.read(counter_view(ITEM, name), [(item,) for item in items])
            places = np.flatnonzero(rows.there)
            found[name] = ItemRows(places, rows.matrix(self._width)[places])
        return found

    def _rows(
        self, kind: str, contexts: Sequence[str], keys: Sequence[tuple[str, ...]]
    ) -> tuple[Float32s, npt.NDArray[np.bool_]]:
        found = [self._online.read(counter_view(kind, name), keys) for name in contexts]
        values = np.array([rows.matrix(self._width) for rows in found], dtype=np.float32)
        there = np.array([rows.there for rows in found], dtype=np.bool_)
        shape = (len(contexts), len(keys))  # also of no contexts
        return values.reshape(*shape, self._width), there.reshape(shape)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's cyclic garbage collector while millions of small messages are made and dropped.

    They form no cycles, but each full collection walks all that Feast and torch have loaded: with it
    a materialization takes two to four times as long (benchmarks/point_in_time.md).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _batches(keys: Sequence[tuple[str, ...]], size: int) -> Iterator[Sequence[tuple[str, ...]]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _entity_keys(view: View, keys: Sequence[tuple[str, ...]]) -> list[Any]:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    names = view.keys
    return [
        EntityKey(join_keys=names, entity_values=[Value(string_val=part) for part in key]) for key in keys
    ]


def _packed(view: View, rows: Sequence[Any]) -> list[Any]:
    from feast.protos.feast.types.Value_pb2 import FloatList, StringList, Value

    if view.column == ITEM_CODES:
        return [Value(bytes_val=value) for value in rows]
    if view.column == VALUES:
        return [Value(float_list_val=FloatList(val=values)) for values in rows]
    return [Value(string_list_val=StringList(val=values)) for values in rows]
