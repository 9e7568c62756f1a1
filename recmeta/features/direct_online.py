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
from functools import cache
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

SCRIPTS_AT_ONCE = 100
"""Of one journey to Redis, when many users are read; each is of at most `KEYS_AT_ONCE` items, so that
requests of others find their turn in between."""

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
  local keys = list(ARGV[4])
  for place, head in ipairs(keys) do keys[place] = head .. tail end
  for first = 1, #keys, 8 do
    local last = math.min(first + 7, #keys)
    if redis.call('EXISTS', unpack(keys, first, last)) > 0 then
      for place = first, last do
        local row = redis.call('HMGET', keys[place], unpack(fields))
        local there = false
        for number = 1, #fields do there = there or row[number] end
        if there then
          found[#found + 1] = place - 1
          found[#found + 1] = row
        end
      end
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
class ManyRows:
    """What a store holds of U users, and of n pairs of a user and an item; S contexts are read."""

    users: Float32s
    """[S, U, W + 3]; zeros where there is no row."""
    knows_user: npt.NDArray[np.bool_]
    """[S, U]."""
    histories: list[tuple[str, ...]]
    """Of each user, as `UserRows.history`."""
    met: npt.NDArray[np.int64]
    """The pairs, by their place among those asked for, of which there is any row, [m]."""
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
    """What is read: by request, of many users, of all items at once. Not to be shared between threads."""

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

    def many(
        self,
        contexts: Sequence[str],
        users: Sequence[str],
        whose: npt.NDArray[np.int64],
        items: Sequence[str],
        heads: Sequence[bytes],
    ) -> ManyRows:
        """Many users in some contexts, and n pairs of a user and an item: what `request` says of each.

        Args:
            contexts: whose rows are read, S names.
            users: U ids, all different.
            whose: the user of each pair by their place, ascending, [n].
            items: of each pair, n ids; a user has an item once.
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
    flat = [row[view] for view in range(views) for row in stored]
    usable = [layout.fits(row, width) for row in flat]
    there = np.array(usable, dtype=np.bool_)
    values = np.zeros((len(flat), width), dtype=np.float32)
    rows = [row for row, fits in zip(flat, usable, strict=True) if fits and row is not None]
    values[there] = layout.numbers(rows, width)
    return values.reshape(views, len(stored), width), there.reshape(views, len(stored))


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
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            # Redis' own client waits a second and asks again where nothing came in time, three times over;
            # a request has no such time. A connection that was closed meanwhile is opened again at once.
            again = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
            self._client = redis.Redis(
                **self._address,
                socket_timeout=self._timeout,
                socket_connect_timeout=self._timeout,
                retry=again,
                single_connection_client=True,  # a pool looks at its connection before each use
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
        found = self._script(**_asked(user_id, *_fields_of(tuple(contexts)), heads), client=client)
        user, knows = as_matrix([found[0][:-1]], len(contexts), self._width)
        pairs, knows_pair = as_matrix(found[2::2], len(contexts), self._width)
        met = np.array(found[1::2], dtype=np.int64)
        return UserRows(user[:, 0], knows[:, 0], _history(found[0][-1]), met, pairs, knows_pair)

    def many(
        self,
        contexts: Sequence[str],
        users: Sequence[str],
        whose: npt.NDArray[np.int64],
        items: Sequence[str],
        heads: Sequence[bytes],
    ) -> ManyRows:
        """As `Reader.many`."""
        client, fields = self._redis(), _fields_of(tuple(contexts))
        borders = np.searchsorted(whose, np.arange(len(users) + 1)).tolist()
        parts = [
            (user, start, min(start + KEYS_AT_ONCE, borders[user + 1]))
            for user in range(len(users))
            for start in range(borders[user], max(borders[user + 1], borders[user] + 1), KEYS_AT_ONCE)
        ]
        own: list[Any] = [None] * len(users)
        met: list[int] = []
        stored: list[list[bytes | None]] = []
        for first in range(0, len(parts), SCRIPTS_AT_ONCE):
            asked = parts[first : first + SCRIPTS_AT_ONCE]
            with client.pipeline(transaction=False) as pipe:
                for user, start, end in asked:
                    self._script(**_asked(users[user], *fields, heads[start:end]), client=pipe)
                answers = pipe.execute()
            for (user, start, _), found in zip(asked, answers, strict=True):
                own[user] = found[0]
                met += [start + place for place in found[1::2]]
                stored += found[2::2]
        values, knows = as_matrix([found[:-1] for found in own], len(contexts), self._width)
        pairs, knows_pair = as_matrix(stored, len(contexts), self._width)
        histories = [_history(found[-1]) for found in own]
        return ManyRows(values, knows, histories, np.array(met, dtype=np.int64), pairs, knows_pair)

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

    def many(
        self,
        contexts: Sequence[str],
        users: Sequence[str],
        whose: npt.NDArray[np.int64],
        items: Sequence[str],
        heads: Sequence[bytes],
    ) -> ManyRows:
        """As `Reader.many`."""
        keys = [layout.entity_key(HISTORY, (user,)) for user in users]
        of_users = [self._values(counter_view(USER, name), keys) for name in contexts]
        values, knows = as_matrix(
            [[of.get(key) for of in of_users] for key in keys], len(contexts), self._width
        )
        tails = [layout.pair_tail(user) for user in users]
        rows: dict[int, list[bytes | None]] = {}
        for number, name in enumerate(contexts):
            asked = np.flatnonzero(knows[number, whose]).tolist()
            places = {heads[pair] + tails[whose[pair]]: pair for pair in asked}
            for key, value in self._values(counter_view(USER_ITEM, name), list(places)).items():
                rows.setdefault(places[key], [None] * len(contexts))[number] = value
        met = np.array(sorted(rows), dtype=np.int64)
        pairs, knows_pair = as_matrix([rows[place] for place in met.tolist()], len(contexts), self._width)
        stored = self._values(HISTORY, keys)
        return ManyRows(values, knows, [_history(stored.get(key)) for key in keys], met, pairs, knows_pair)

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


@cache
def _fields_of(contexts: tuple[str, ...]) -> tuple[bytes, bytes]:
    """The fields of a user and of a pair, as the script takes them."""
    user = [layout.field_name(counter_view(USER, name).name, VALUES) for name in contexts]
    pair = [layout.field_name(counter_view(USER_ITEM, name).name, VALUES) for name in contexts]
    return _listed([*user, layout.field_name(HISTORY.name, HISTORY.column)]), _listed(pair)


def _asked(user_id: str, user_fields: bytes, pair_fields: bytes, heads: Sequence[bytes]) -> dict[str, Any]:
    """Keys and arguments of the script."""
    return {
        "keys": [layout.entity_key(HISTORY, (user_id,)) + layout.PROJECT.encode()],
        "args": [
            user_fields,
            pair_fields if heads else b"",
            layout.pair_tail(user_id) + layout.PROJECT.encode(),
            _listed(heads),
        ],
    }


def _listed(parts: Sequence[bytes]) -> bytes:
    """Parts, each after its length: what `list` in the script takes apart."""
    return b"".join([len(part).to_bytes(4, "little") + part for part in parts])


def _plain(value: str) -> Any:
    """A value of the connection string, as Feast reads it: JSON where it is any."""
    try:
        return msgspec.json.decode(value.encode())
    except msgspec.DecodeError:
        return value
