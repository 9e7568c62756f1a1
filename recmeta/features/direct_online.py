"""Reads and writes Feast's online rows without Feast: what a server does a thousand times a second.

Feast's own call is the reference, and a test holds the two equal; it is slow because it converts each
value, and because importing it takes seconds. SQLite and Redis are spoken to here; another store is
reached through Feast. This module must never know what a number of a row means.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from recmeta.errors import InputError
from recmeta.features import feast_layout as layout
from recmeta.features.counters import Float32s
from recmeta.features.feast_definitions import online_file
from recmeta.features.partitions import HISTORY, View, counter_view
from recmeta.features.schema import ITEM, USER, USER_ITEM, VALUES
from recmeta.settings import Settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KEYS_AT_ONCE = 900
"""Of one statement: SQLite takes 999 parameters where it is old."""

_READ = """
local function list(text)
  local parts, at = {}, 1
  while at <= #text do
    local size = struct.unpack('<I4', text, at)
    parts[#parts + 1] = string.sub(text, at + 4, at + 3 + size)
    at = at + 4 + size
  end
  return parts
end
local found = {redis.call('HMGET', KEYS[1], unpack(list(ARGV[1])))}
local fields = list(ARGV[2])
local tail = ARGV[3]
if #fields > 0 and redis.call('EXISTS', KEYS[1]) == 1 then
  for place, head in ipairs(list(ARGV[4])) do
    local row = redis.call('HMGET', head .. tail, unpack(fields))
    local there = false
    for number = 1, #fields do there = there or row[number] end
    if there then
      found[#found + 1] = place - 1
      found[#found + 1] = row
    end
  end
end
return found
"""
"""A user's rows, and those of the user and each item where there are any: one journey, one pass.

Who has no row has none with any item: every interaction is folded into both."""


@dataclass(frozen=True)
class UserRows:
    """What a store holds of one user, and of the user with some of n items; S contexts are read."""

    user: Float32s
    """[S, W + 3]; zeros where there is no row."""
    knows_user: npt.NDArray[np.bool_]
    """Whether there is a row, [S]."""
    history: tuple[str, ...]
    """Items that the user engaged with in any context, the most recent first."""
    met: npt.NDArray[np.int64]
    """The items, by their place among those asked for, with which the user has any row, [m]."""
    pairs: Float32s
    """[S, m, W + 3]; zeros where there is no row."""
    knows_pair: npt.NDArray[np.bool_]
    """[S, m]."""


@dataclass(frozen=True)
class ItemRows:
    """The rows in one context of those items that have one."""

    places: npt.NDArray[np.int64]
    """Which items, by their place among those asked for, ascending, [m]."""
    values: Float32s
    """[m, W + 3]."""


class Backend(Protocol):
    """Rows as Feast stores them: one packed list a key."""

    def get(self, view: View, keys: Sequence[tuple[str, ...]]) -> list[tuple[datetime, list[Any]] | None]:
        """Stamp and values of some keys of one view, in their order; keys must differ from each other."""
        ...

    def put(
        self,
        view: View,
        keys: Sequence[tuple[str, ...]],
        values: Sequence[Sequence[Any]],
        stamps: Sequence[datetime],
    ) -> None:
        """Write rows over what stands there."""
        ...

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        ...


class Reader(Protocol):
    """What a server reads: by request, and of all items at once. Not to be shared between threads."""

    def request(
        self, user_id: str, contexts: Sequence[str], items: Sequence[str], heads: Sequence[bytes]
    ) -> UserRows:
        """One user in some contexts, and the user's rows with some items.

        Args:
            user_id: any string.
            contexts: whose rows are read, S names.
            items: n ids.
            heads: `feast_layout.pair_head` of each.
        """
        ...

    def items(self, contexts: Sequence[str], items: Sequence[str]) -> dict[str, ItemRows]:
        """The rows of items by context, in each the items that have one; items must differ."""
        ...

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        ...


def as_matrix(
    stored: Sequence[Sequence[bytes | None]], views: int, width: int
) -> tuple[Float32s, npt.NDArray[np.bool_]]:
    """Packed rows of n keys in some views as [views, n, width], and where there is one."""
    values = np.zeros((views, len(stored), width), dtype=np.float32)
    there = np.zeros((views, len(stored)), dtype=np.bool_)
    for view in range(views):
        found = as_rows({place: row[view] for place, row in enumerate(stored)}, width)
        there[view, found.places] = True
        values[view, found.places] = found.values
    return values, there


def as_rows(stored: Mapping[int, bytes | None], width: int) -> ItemRows:
    """Packed rows by place; what is no row of this width is left out."""
    usable = {place: row for place, row in stored.items() if row is not None and layout.fits(row, width)}
    places = np.fromiter(usable, dtype=np.int64, count=len(usable))
    order = np.argsort(places, kind="stable")
    return ItemRows(places[order], layout.numbers(list(usable.values()), width)[order])


def _history(stored: bytes | None) -> tuple[str, ...]:
    return () if stored is None else tuple(layout.unpack(HISTORY, stored) or ())


class RedisRows:
    """Feast's rows in Redis: a hash at each key, two fields a view."""

    def __init__(self, connection: str, width: int, timeout: float | None = None) -> None:
        """Connect when first asked.

        Args:
            connection: 'host:port,db=0,password=...', as Feast takes it.
            width: numbers of a counter row, its instant among them.
            timeout: seconds that an answer may take; None: any time.
        """
        address, *options = connection.split(",")
        host, _, port = address.partition(":")
        try:
            parsed = dict(option.split("=", 1) for option in options)
            self._address: dict[str, Any] = {"host": host, "port": int(port or 6379)}
            self._address |= {name: _plain(value) for name, value in parsed.items()}
        except ValueError:
            raise InputError(f"stores.redis: expected host:port,name=value..., found {address!r}") from None
        self._width = width
        self._timeout = timeout
        self._client: Any = None

    def _redis(self) -> Any:
        if self._client is None:
            import redis

            self._client = redis.Redis(
                **self._address, socket_timeout=self._timeout, socket_connect_timeout=self._timeout
            )
            self._script = self._client.register_script(_READ)
        return self._client

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def request(
        self, user_id: str, contexts: Sequence[str], items: Sequence[str], heads: Sequence[bytes]
    ) -> UserRows:
        """As `Reader.request`."""
        client = self._redis()
        user_fields = [layout.field_name(counter_view(USER, name).name, VALUES) for name in contexts]
        pair_fields = [layout.field_name(counter_view(USER_ITEM, name).name, VALUES) for name in contexts]
        found = self._script(
            keys=[layout.entity_key(HISTORY, (user_id,)) + layout.PROJECT.encode()],
            args=[
                _listed([*user_fields, layout.field_name(HISTORY.name, HISTORY.column)]),
                _listed(pair_fields if heads else []),
                layout.pair_tail(user_id) + layout.PROJECT.encode(),
                _listed(heads),
            ],
            client=client,
        )
        user, knows = as_matrix([found[0][:-1]], len(contexts), self._width)
        pairs, knows_pair = as_matrix(found[2::2], len(contexts), self._width)
        met = np.array(found[1::2], dtype=np.int64)
        return UserRows(user[:, 0], knows[:, 0], _history(found[0][-1]), met, pairs, knows_pair)

    def items(self, contexts: Sequence[str], items: Sequence[str]) -> dict[str, ItemRows]:
        """As `Reader.items`."""
        of_field = {layout.field_name(counter_view(ITEM, name).name, VALUES): name for name in contexts}
        stored: dict[str, dict[int, bytes | None]] = {name: {} for name in contexts}
        for start in range(0, len(items), KEYS_AT_ONCE):
            with self._redis().pipeline(transaction=False) as pipe:
                for item in items[start : start + KEYS_AT_ONCE]:
                    pipe.hgetall(layout.item_key(item) + layout.PROJECT.encode())
                rows: list[dict[bytes, bytes]] = pipe.execute()
            for place, row in enumerate(rows, start):
                for field, value in row.items():
                    name = of_field.get(field)
                    if name is not None:
                        stored[name][place] = value
        return {name: as_rows(rows, self._width) for name, rows in stored.items()}

    def _fields(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> list[list[bytes | None]]:
        with self._redis().pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key, fields)
            found: list[list[bytes | None]] = pipe.execute()
        return found

    def get(self, view: View, keys: Sequence[tuple[str, ...]]) -> list[tuple[datetime, list[Any]] | None]:
        """As `Backend.get`."""
        fields = [layout.field_name(view.name, view.column), layout.stamp_name(view.name)]
        rows = self._fields([self._key(view, key) for key in keys], fields)
        found: list[tuple[datetime, list[Any]] | None] = []
        for value, stamp in rows:
            held = None if value is None else layout.unpack(view, value)
            since = timedelta(microseconds=0 if stamp is None else layout.unpack_stamp(stamp))
            found.append(None if held is None or stamp is None else (EPOCH + since, held))
        return found

    def put(
        self,
        view: View,
        keys: Sequence[tuple[str, ...]],
        values: Sequence[Sequence[Any]],
        stamps: Sequence[datetime],
    ) -> None:
        """As `Backend.put`."""
        with self._redis().pipeline(transaction=False) as pipe:
            for key, row, stamp in zip(keys, values, stamps, strict=True):
                since = (stamp - EPOCH) // timedelta(microseconds=1)
                fields = {
                    layout.stamp_name(view.name): layout.pack_stamp(since),
                    layout.field_name(view.name, view.column): layout.pack(view, row),
                }
                pipe.hset(self._key(view, key), mapping=fields)
            pipe.execute()

    def _key(self, view: View, key: tuple[str, ...]) -> bytes:
        return layout.entity_key(view, key) + layout.PROJECT.encode()


class SqliteRows:
    """Feast's rows in SQLite: a table a view."""

    def __init__(self, path: Path, width: int) -> None:
        """Open ``path`` when first asked; ``width`` as in `RedisRows`."""
        self._path = path
        self._width = width
        self._connection: sqlite3.Connection | None = None
        self._user_query: dict[tuple[str, ...], str] = {}

    def _sqlite(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(self._path, check_same_thread=False, timeout=5.0)
        return self._connection

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(
        self, user_id: str, contexts: Sequence[str], items: Sequence[str], heads: Sequence[bytes]
    ) -> UserRows:
        """As `Reader.request`."""
        key = layout.entity_key(HISTORY, (user_id,))
        views = [counter_view(USER, name) for name in contexts]
        query = self._user_query.get(tuple(contexts))
        if query is None:
            selects = [
                f'SELECT {number}, value FROM "{layout.table_name(view.name)}" '
                f"WHERE entity_key = ?1 AND feature_name = '{view.column}'"
                for number, view in enumerate((*views, HISTORY))
            ]
            query = self._user_query[tuple(contexts)] = " UNION ALL ".join(selects)
        with closing(self._sqlite().execute(query, (key,))) as cursor:
            stored: dict[int, bytes] = dict(cursor.fetchall())
        user, knows = as_matrix([[stored.get(n) for n in range(len(views))]], len(views), self._width)
        tail = layout.pair_tail(user_id)
        places = {head + tail: place for place, head in enumerate(heads)} if knows.any() else {}
        rows: dict[int, list[bytes | None]] = {}
        for number, name in enumerate(contexts):
            if places and knows[number, 0]:
                found = self._values(counter_view(USER_ITEM, name), list(places))
                for pair, value in found.items():
                    rows.setdefault(places[pair], [None] * len(views))[number] = value
        met = np.array(sorted(rows), dtype=np.int64)
        pairs, knows_pair = as_matrix([rows[place] for place in met.tolist()], len(views), self._width)
        return UserRows(user[:, 0], knows[:, 0], _history(stored.get(len(views))), met, pairs, knows_pair)

    def items(self, contexts: Sequence[str], items: Sequence[str]) -> dict[str, ItemRows]:
        """As `Reader.items`."""
        places = {layout.item_key(item): place for place, item in enumerate(items)}
        found: dict[str, ItemRows] = {}
        for name in contexts:
            stored = self._values(counter_view(ITEM, name), list(places))
            found[name] = as_rows({places[key]: value for key, value in stored.items()}, self._width)
        return found

    def _values(self, view: View, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        if len(keys) > KEYS_AT_ONCE and (whole := self._whole(view, len(keys))) is not None:
            return {key: whole[key] for key in keys if key in whole}
        for start in range(0, len(keys), KEYS_AT_ONCE):
            part = keys[start : start + KEYS_AT_ONCE]
            marks = ",".join("?" * len(part))
            query = (
                f'SELECT entity_key, value FROM "{layout.table_name(view.name)}" '
                f"WHERE feature_name = '{view.column}' AND entity_key IN ({marks})"
            )
            with closing(self._sqlite().execute(query, part)) as cursor:
                found.update(cursor.fetchall())
        return found

    def _whole(self, view: View, most: int) -> dict[bytes, bytes] | None:
        """A whole table, where it has few rows for what is asked of it."""
        table = layout.table_name(view.name)
        with closing(self._sqlite().execute(f'SELECT count(*) FROM "{table}"')) as cursor:
            (rows,) = cursor.fetchone()
        if rows > 4 * most:
            return None
        query = f"SELECT entity_key, value FROM \"{table}\" WHERE feature_name = '{view.column}'"
        with closing(self._sqlite().execute(query)) as cursor:
            return dict(cursor.fetchall())

    def get(self, view: View, keys: Sequence[tuple[str, ...]]) -> list[tuple[datetime, list[Any]] | None]:
        """As `Backend.get`."""
        found: dict[bytes, tuple[datetime, list[Any]]] = {}
        wanted = [layout.entity_key(view, key) for key in keys]
        for start in range(0, len(wanted), KEYS_AT_ONCE):
            part = wanted[start : start + KEYS_AT_ONCE]
            query = (
                f'SELECT entity_key, value, event_ts FROM "{layout.table_name(view.name)}" '
                f"WHERE feature_name = '{view.column}' AND entity_key IN ({','.join('?' * len(part))})"
            )
            with closing(self._sqlite().execute(query, part)) as cursor:
                for key, value, stamp in cursor:
                    held = layout.unpack(view, value)
                    if held is not None:
                        # Feast keeps whole seconds, of a UTC time that it takes for a local one.
                        found[key] = (datetime.fromtimestamp(stamp).replace(tzinfo=UTC), held)  # noqa: DTZ006
        return [found.get(key) for key in wanted]

    def put(
        self,
        view: View,
        keys: Sequence[tuple[str, ...]],
        values: Sequence[Sequence[Any]],
        stamps: Sequence[datetime],
    ) -> None:
        """As `Backend.put`."""
        rows = []
        for key, row, stamp in zip(keys, values, stamps, strict=True):
            told = int(stamp.astimezone(UTC).replace(tzinfo=None).timestamp())
            rows.append((layout.entity_key(view, key), view.column, layout.pack(view, row), told, told))
        with self._sqlite() as connection:
            connection.executemany(
                f'INSERT INTO "{layout.table_name(view.name)}" '
                "(entity_key, feature_name, value, event_ts, created_ts) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (entity_key, feature_name) DO UPDATE SET "
                "value = excluded.value, event_ts = excluded.event_ts, created_ts = excluded.created_ts",
                rows,
            )


def open_rows(settings: Settings, width: int, timeout: float | None = None) -> RedisRows | SqliteRows | None:
    """The rows of the workspace's online store; None where only Feast can read it.

    Raises:
        InputError: the address in the settings is none.
    """
    if settings.stores.online == "redis":
        return RedisRows(settings.stores.redis, width, timeout)
    if settings.stores.online == "sqlite":
        return SqliteRows(online_file(settings), width)
    return None


def _listed(parts: Sequence[bytes]) -> bytes:
    """Parts, each after its length: what `list` in the script takes apart."""
    return b"".join([len(part).to_bytes(4, "little") + part for part in parts])


def _plain(value: str) -> Any:
    """A value of the connection string, as Feast reads it: JSON where it is any."""
    try:
        return msgspec.json.decode(value.encode())
    except msgspec.DecodeError:
        return value
