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
from recmeta.features.direct_online import Backend, ItemRows, ManyRows, UserRows
from recmeta.features.partitions import HISTORY, View, counter_view
from recmeta.features.schema import ITEM, USER, USER_ITEM, VALUES

READ_BATCH = 2_000
WRITE_BATCH = 5_000
"""Rows; well under the number of parameters that SQLite takes, and a few milliseconds of lock."""


_NEWEST = ("\x00newest",)
"""No user's id has control characters."""


@dataclass(frozen=True)
class OnlineRows:
    """What a store holds for n keys."""

    there: npt.NDArray[np.bool_]
    values: list[Any]
    """List of numbers or strings of each key; None where there is no row."""
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

    def get(self, view: View, keys: Sequence[tuple[str, ...]]) -> list[tuple[datetime, list[Any]] | None]:
        """As `Backend.get`."""
        packed = "float_list_val" if view.column == VALUES else "string_list_val"
        rows = self._provider.online_read(
            config=self._config,
            table=self._views[view.name],
            entity_keys=_entity_keys(view, keys),
            requested_features=[view.column],
        )
        found: list[tuple[datetime, list[Any]] | None] = []
        for stamp, features in rows:
            # Redis: a key that is not there comes as an empty value of the year 1970.
            held = features is not None and stamp and features[view.column].HasField(packed)
            found.append((stamp, getattr(features[view.column], packed).val) if held else None)
        return found

    def put(
        self,
        view: View,
        keys: Sequence[tuple[str, ...]],
        values: Sequence[Sequence[Any]],
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

    def read(self, view: View, keys: Sequence[tuple[str, ...]]) -> OnlineRows:
        """Read the rows of some keys, in their order; keys must differ from each other."""
        values: list[Any] = []
        stamps: list[datetime | None] = []
        with self._lock:
            for batch in _batches(keys, READ_BATCH):
                for row in self._backend.get(view, batch):
                    usable = row is not None and (view.column != VALUES or len(row[1]) == self._width)
                    values.append(row[1] if row is not None and usable else None)
                    stamps.append(row[0] if row is not None and usable else None)
        there = np.fromiter((value is not None for value in values), dtype=np.bool_, count=len(values))
        return OnlineRows(there, values, stamps)

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

    def close(self) -> None:
        """As `Reader.close`."""
        self._online.close()

    def request(
        self, user_id: str, contexts: Sequence[str], items: Sequence[str], heads: Sequence[bytes]
    ) -> UserRows:
        """As `Reader.request`."""
        user, knows = self._rows(USER, contexts, [(user_id,)])
        history = self._online.read(HISTORY, [(user_id,)]).values[0]
        pairs, knows_pair = self._rows(USER_ITEM, contexts, [(user_id, item) for item in items])
        met = np.flatnonzero(knows_pair.any(axis=0))
        return UserRows(user[:, 0], knows[:, 0], tuple(history or ()), met, pairs[:, met], knows_pair[:, met])

    def many(
        self,
        contexts: Sequence[str],
        users: Sequence[str],
        whose: npt.NDArray[np.int64],
        items: Sequence[str],
        heads: Sequence[bytes],
    ) -> ManyRows:
        """As `Reader.many`."""
        values, knows = self._rows(USER, contexts, [(user,) for user in users])
        histories = self._online.read(HISTORY, [(user,) for user in users]).values
        keys = [(users[user], item) for user, item in zip(whose.tolist(), items, strict=True)]
        pairs, knows_pair = self._rows(USER_ITEM, contexts, keys)
        met = np.flatnonzero(knows_pair.any(axis=0))
        told = [tuple(history or ()) for history in histories]
        return ManyRows(values, knows, told, met, pairs[:, met], knows_pair[:, met])

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
        values = np.stack([rows.matrix(self._width) for rows in found])
        return values, np.stack([rows.there for rows in found])


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


def _packed(view: View, rows: Sequence[Sequence[Any]]) -> list[Any]:
    from feast.protos.feast.types.Value_pb2 import FloatList, StringList, Value

    if view.column == VALUES:
        return [Value(float_list_val=FloatList(val=values)) for values in rows]
    return [Value(string_list_val=StringList(val=values)) for values in rows]
