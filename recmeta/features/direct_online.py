"""Reads and writes Feast's online rows without Feast: what a server does a thousand times a second.

Feast's own call is the reference, and a test holds the two equal; it is slow because it converts each
value, and because importing it takes seconds. SQLite and Redis are spoken to here; another store is
reached through Feast. A user's row in the index says with which items there are rows, so that of hundreds
of candidates those few are read. This module must never know what a number of a row means.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import chain, pairwise, starmap
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from recmeta.errors import InputError
from recmeta.features import feast_layout as layout
from recmeta.features.counters import Float32s
from recmeta.features.feast_definitions import online_file
from recmeta.features.met import Int64s, UInt64s, maybe_met, maybe_met_of_each
from recmeta.features.partitions import HISTORY, MET, View, counter_view
from recmeta.features.schema import ITEM, USER, USER_ITEM, VALUES
from recmeta.settings import Settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KEYS_AT_ONCE = 900
"""Of one statement: SQLite takes 999 parameters where it is old."""

COMMANDS_AT_ONCE = 1_000
"""Of one journey to Redis, when many are read, so that neither side holds all of them at once."""

USERS_GUESSED = 4_096
"""Who came lately comes again: their pairs are asked for with them, by the index that was read last. 8 bytes
an item that they met."""

_PROJECT = layout.PROJECT.encode()
"""The end of every key in Redis."""


class Lookup(NamedTuple):
    """A user who is looked up, and the items with which the user's rows are wanted."""

    user_id: str
    contexts: Sequence[str]
    """Whose rows are read, S names."""
    items: Sequence[str]
    """n ids, all different."""
    codes: UInt64s
    """`met.item_codes` of each, [n]."""


@dataclass(frozen=True)
class UserRows:
    """What a store holds of one user, and of the user with some of n items; S contexts are read."""

    user: Float32s
    """[S, W + 3]; zeros where there is no row."""
    knows_user: npt.NDArray[np.bool_]
    """Whether there is a row, [S]."""
    history: tuple[str, ...]
    """Items that the user engaged with in any context, the most recent first."""
    met: Int64s
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
    met: Int64s
    """The pairs, by their place among those asked for, of which there is any row, [m]."""
    pairs: Float32s
    """[S, m, W + 3]; zeros where there is no row."""
    knows_pair: npt.NDArray[np.bool_]
    """[S, m]."""


@dataclass(frozen=True)
class ItemRows:
    """The rows in one context of those items that have one."""

    places: Int64s
    """Which items, by their place among those asked for, ascending, [m]."""
    values: Float32s
    """[m, W + 3]."""


class Backend(Protocol):
    """Rows as Feast stores them: one packed value a key."""

    def holds(self, view: View) -> bool:
        """Whether the store has a place for rows of a view; one that an older recmeta made may not."""
        ...

    def get(self, view: View, keys: Sequence[tuple[str, ...]]) -> list[tuple[datetime, Any] | None]:
        """Stamp and value of some keys of one view, in their order; keys must differ from each other."""
        ...

    def put(
        self,
        view: View,
        keys: Sequence[tuple[str, ...]],
        values: Sequence[Any],
        stamps: Sequence[datetime],
    ) -> None:
        """Write rows over what stands there."""
        ...

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        ...


class Reader(Protocol):
    """What is read: by request, of many users, of all items at once. Not to be shared between threads."""

    def requests(self, asked: Sequence[Lookup]) -> list[UserRows]:
        """Of each lookup, the user and the user's rows with the items; in all as many contexts are read."""
        ...

    def many(
        self,
        contexts: Sequence[str],
        users: Sequence[str],
        whose: Int64s,
        items: Sequence[str],
        codes: UInt64s,
    ) -> ManyRows:
        """Many users in some contexts, and n pairs of a user and an item: what `requests` says of each.

        Args:
            contexts: whose rows are read, S names.
            users: U ids, all different.
            whose: the user of each pair by their place, ascending, [n].
            items: of each pair, n ids; a user has an item once.
            codes: `met.item_codes` of each, [n].
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
    shape = (views, len(stored))
    values = np.zeros((*shape, width), dtype=np.float32)
    if not stored:
        return values, np.zeros(shape, dtype=np.bool_)
    flat = [row[view] for view in range(views) for row in stored]
    usable = layout.fit(flat, width)
    there = np.array(usable, dtype=np.bool_).reshape(shape)
    rows = [row for row, fits in zip(flat, usable, strict=True) if fits and row is not None]
    values[there] = layout.numbers(rows, width)
    return values, there


def as_rows(stored: Mapping[int, bytes | None], width: int) -> ItemRows:
    """Packed rows by place; what is no row of this width is left out."""
    fit = layout.fit(stored.values(), width)
    usable = {
        place: row for (place, row), fits in zip(stored.items(), fit, strict=True) if fits and row is not None
    }
    places = np.fromiter(usable, dtype=np.int64, count=len(usable))
    order = np.argsort(places, kind="stable")
    return ItemRows(places[order], layout.numbers(list(usable.values()), width)[order])


def _index(stored: bytes | None) -> bytes | None:
    return None if stored is None else layout.unpack(MET, stored)


def _history(stored: bytes | None) -> tuple[str, ...]:
    return () if stored is None else tuple(layout.unpack(HISTORY, stored) or ())


def _pair_commands(read: _Read, asked: Lookup, places: Int64s) -> list[bytes]:
    """What reads the user's rows with some of the items."""
    tail = layout.pair_tail(asked.user_id)
    return [read.command(layout.pair_head(asked.items[place]) + tail) for place in places.tolist()]


def _met(
    places: Int64s, rows: Sequence[Sequence[bytes | None]], knows: npt.NDArray[np.bool_], width: int
) -> tuple[Int64s, Float32s, npt.NDArray[np.bool_]]:
    """Of pairs that may have rows, the places of those that do, and what `as_matrix` makes of these."""
    there = [number for number, row in enumerate(rows) if row.count(None) < len(row)]
    return places[there], *as_matrix([rows[number] for number in there], len(knows), width)


def _each_user(
    values: Float32s,
    knows: npt.NDArray[np.bool_],
    histories: Sequence[tuple[str, ...]],
    places: Sequence[Int64s],
    rows: Sequence[Sequence[bytes | None]],
    width: int,
) -> list[UserRows]:
    """What a store holds of each user: their counters, and what pairs may have rows, one after another."""
    there, pairs, knows_pair = _met(np.arange(len(rows)), rows, knows, width)
    met = np.concatenate([np.zeros(0, dtype=np.int64), *places])[there]
    ends = np.searchsorted(there, np.cumsum([len(maybe) for maybe in places])).tolist()
    return [
        UserRows(values[:, user], knows[:, user], histories[user], met[of], pairs[:, of], knows_pair[:, of])
        for user, of in enumerate(starmap(slice, pairwise([0, *ends])))
    ]


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
        self._indexes: OrderedDict[str, bytes] = OrderedDict()

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
        return self._client

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def requests(self, asked: Sequence[Lookup]) -> list[UserRows]:
        """As `Reader.requests`: two journeys, however many are looked up, and one for who came lately."""
        reads = [_reads(tuple(one.contexts)) for one in asked]
        guesses = [self._guess(one) for one in asked]
        of_users = [
            of_user.command(layout.entity_key(HISTORY, (one.user_id,)))
            for one, (of_user, _) in zip(asked, reads, strict=True)
        ]
        of_pairs = [
            _pair_commands(of_pair, one, guess)
            for one, (_, of_pair), guess in zip(asked, reads, guesses, strict=True)
        ]
        found = self._answers([*of_users, *chain.from_iterable(of_pairs)])
        found, guessed = found[: len(asked)], iter(found[len(asked) :])
        own = [row[:-2] for row in found]
        places: list[Int64s] = []
        pairs: list[list[Any]] = []
        missing: list[bytes] = []
        late: list[int] = []
        for number, (one, row, counters) in enumerate(zip(asked, found, own, strict=True)):
            maybe = maybe_met(counters.count(None) < len(counters), self._indexed(one, row[-1]), one.codes)
            places.append(maybe)
            pairs.append([next(guessed) for _ in of_pairs[number]])
            if not np.array_equal(maybe, guesses[number]):
                late.append(number)
                pairs[number] = _pair_commands(reads[number][1], one, maybe)
                missing += pairs[number]
        rows = iter(self._answers(missing))
        for number in late:
            pairs[number] = [next(rows) for _ in pairs[number]]
        values, knows = as_matrix(own, len(asked[0].contexts) if asked else 0, self._width)
        histories = [_history(row[-2]) for row in found]
        return _each_user(values, knows, histories, places, [*chain.from_iterable(pairs)], self._width)

    def _guess(self, asked: Lookup) -> Int64s:
        """The items that the user may have met, by the index that was read last; none where none was."""
        index = self._indexes.get(asked.user_id)
        return maybe_met(index is not None, index, asked.codes)

    def _indexed(self, asked: Lookup, stored: bytes | None) -> bytes | None:
        """A user's index, which is kept to guess by."""
        index = _index(stored)
        self._indexes.pop(asked.user_id, None)
        if index is not None:
            self._indexes[asked.user_id] = index
            if len(self._indexes) > USERS_GUESSED:
                self._indexes.popitem(last=False)
        return index

    def many(
        self,
        contexts: Sequence[str],
        users: Sequence[str],
        whose: Int64s,
        items: Sequence[str],
        codes: UInt64s,
    ) -> ManyRows:
        """As `Reader.many`."""
        of_user, of_pair = _reads(tuple(contexts))
        found = self._answers([of_user.command(layout.entity_key(HISTORY, (user,))) for user in users])
        own = [row[:-2] for row in found]
        values, knows = as_matrix(own, len(contexts), self._width)
        known = np.array([row.count(None) < len(row) for row in own], dtype=np.bool_)
        places = maybe_met_of_each(known, [_index(row[-1]) for row in found], whose, codes)
        tails = [layout.pair_tail(user) for user in users]
        asked = [
            of_pair.command(layout.pair_head(items[place]) + tails[user])
            for place, user in zip(places.tolist(), whose[places].tolist(), strict=True)
        ]
        histories = [_history(row[-2]) for row in found]
        return ManyRows(values, knows, histories, *_met(places, self._answers(asked), knows, self._width))

    def _answers(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands over the one connection, and take the answer of each."""
        connection, answers = self._redis().connection, []

        def exchanged(part: Sequence[bytes]) -> list[Any]:
            connection.send_packed_command((b"".join(part),))
            return [connection.read_response() for _ in part]

        try:
            for start in range(0, len(commands), COMMANDS_AT_ONCE):
                part = commands[start : start + COMMANDS_AT_ONCE]
                answers += connection.retry.call_with_retry(partial(exchanged, part), connection.disconnect)
        except BaseException:
            connection.disconnect()  # an answer that nobody took would be taken for that to the next command
            raise
        return answers

    def items(self, contexts: Sequence[str], items: Sequence[str]) -> dict[str, ItemRows]:
        """As `Reader.items`."""
        of_field = {layout.field_name(counter_view(ITEM, name).name, VALUES): name for name in contexts}
        stored: dict[str, dict[int, bytes | None]] = {name: {} for name in contexts}
        for start in range(0, len(items), KEYS_AT_ONCE):
            with self._redis().pipeline(transaction=False) as pipe:
                for item in items[start : start + KEYS_AT_ONCE]:
                    pipe.hgetall(layout.item_key(item) + _PROJECT)
                rows: list[dict[bytes, bytes]] = pipe.execute()
            for place, row in enumerate(rows, start):
                for field, value in row.items():
                    name = of_field.get(field)
                    if name is not None:
                        stored[name][place] = value
        return {name: as_rows(rows, self._width) for name, rows in stored.items()}

    def holds(self, view: View) -> bool:
        """As `Backend.holds`: a hash takes any field."""
        return True

    def get(self, view: View, keys: Sequence[tuple[str, ...]]) -> list[tuple[datetime, Any] | None]:
        """As `Backend.get`."""
        read = _Read((layout.field_name(view.name, view.column), layout.stamp_name(view.name)))
        rows = self._answers([read.command(layout.entity_key(view, key)) for key in keys])
        found: list[tuple[datetime, Any] | None] = []
        for value, stamp in rows:
            held = None if value is None else layout.unpack(view, value)
            since = timedelta(microseconds=0 if stamp is None else layout.unpack_stamp(stamp))
            found.append(None if held is None or stamp is None else (EPOCH + since, held))
        return found

    def put(
        self,
        view: View,
        keys: Sequence[tuple[str, ...]],
        values: Sequence[Any],
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
                pipe.hset(layout.entity_key(view, key) + _PROJECT, mapping=fields)
            pipe.execute()


class SqliteRows:
    """Feast's rows in SQLite: a table a view."""

    def __init__(self, path: Path, width: int) -> None:
        """Open ``path`` when first asked; ``width`` as in `RedisRows`."""
        self._path = path
        self._width = width
        self._connection: sqlite3.Connection | None = None
        self._user_query: dict[tuple[str | int, ...], str] = {}
        self._indexed = False

    def _sqlite(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(self._path, check_same_thread=False, timeout=5.0)
        return self._connection

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection, self._indexed = None, False

    def holds(self, view: View) -> bool:
        """As `Backend.holds`."""
        query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
        with closing(self._sqlite().execute(query, (layout.table_name(view.name),))) as cursor:
            (tables,) = cursor.fetchone()
        return bool(tables)

    def _holds_index(self) -> bool:
        self._indexed = self._indexed or self.holds(MET)
        return self._indexed

    def requests(self, asked: Sequence[Lookup]) -> list[UserRows]:
        """As `Reader.requests`."""
        return [self._request(*one) for one in asked]

    def _request(
        self, user_id: str, contexts: Sequence[str], items: Sequence[str], codes: UInt64s
    ) -> UserRows:
        views = [*(counter_view(USER, name) for name in contexts), HISTORY]
        views += [MET] if self._holds_index() else []
        query = self._user_query.get((*contexts, len(views)))
        if query is None:
            selects = [
                f'SELECT {number}, value FROM "{layout.table_name(view.name)}" '
                f"WHERE entity_key = ?1 AND feature_name = '{view.column}'"
                for number, view in enumerate(views)
            ]
            query = self._user_query[*contexts, len(views)] = " UNION ALL ".join(selects)
        key = layout.entity_key(HISTORY, (user_id,))
        with closing(self._sqlite().execute(query, (key,))) as cursor:
            stored: dict[int, bytes] = dict(cursor.fetchall())
        own = [stored.get(number) for number in range(len(contexts))]
        history, index = stored.get(len(contexts)), stored.get(len(contexts) + 1)
        places = maybe_met(own.count(None) < len(own), _index(index), codes)
        tail = layout.pair_tail(user_id)
        rows = self._pairs(contexts, [layout.pair_head(items[place]) + tail for place in places.tolist()])
        values, knows = as_matrix([own], len(contexts), self._width)
        return _each_user(values, knows, [_history(history)], [places], rows, self._width)[0]

    def many(
        self,
        contexts: Sequence[str],
        users: Sequence[str],
        whose: Int64s,
        items: Sequence[str],
        codes: UInt64s,
    ) -> ManyRows:
        """As `Reader.many`."""
        keys = [layout.entity_key(HISTORY, (user,)) for user in users]
        of_users = [self._values(counter_view(USER, name), keys) for name in contexts]
        own = [[of.get(key) for of in of_users] for key in keys]
        values, knows = as_matrix(own, len(contexts), self._width)
        index = self._values(MET, keys) if self._holds_index() else {}
        known = np.array([row.count(None) < len(row) for row in own], dtype=np.bool_)
        places = maybe_met_of_each(known, [_index(index.get(key)) for key in keys], whose, codes)
        tails = [layout.pair_tail(user) for user in users]
        asked = [
            layout.pair_head(items[place]) + tails[user]
            for place, user in zip(places.tolist(), whose[places].tolist(), strict=True)
        ]
        stored = self._values(HISTORY, keys)
        histories = [_history(stored.get(key)) for key in keys]
        rows = self._pairs(contexts, asked)
        return ManyRows(values, knows, histories, *_met(places, rows, knows, self._width))

    def _pairs(self, contexts: Sequence[str], keys: Sequence[bytes]) -> list[list[bytes | None]]:
        """Packed rows of pairs, in some contexts each."""
        views = [counter_view(USER_ITEM, name) for name in contexts]
        if len(keys) <= KEYS_AT_ONCE:
            return self._few(views, keys)
        found = [self._values(view, keys) for view in views]
        return [[of.get(key) for of in found] for key in keys]

    def items(self, contexts: Sequence[str], items: Sequence[str]) -> dict[str, ItemRows]:
        """As `Reader.items`."""
        places = {layout.item_key(item): place for place, item in enumerate(items)}
        found: dict[str, ItemRows] = {}
        for name in contexts:
            stored = self._values(counter_view(ITEM, name), list(places))
            found[name] = as_rows({places[key]: value for key, value in stored.items()}, self._width)
        return found

    def _few(self, views: Sequence[View], keys: Sequence[bytes]) -> list[list[bytes | None]]:
        """The values in some views of at most `KEYS_AT_ONCE` keys: one statement, which is a third faster."""
        rows: dict[bytes, list[bytes | None]] = {key: [None] * len(views) for key in keys}
        marks = ",".join([f"?{number}" for number in range(1, len(keys) + 1)])
        selects = [
            f'SELECT {number}, entity_key, value FROM "{layout.table_name(view.name)}" '
            f"WHERE feature_name = '{view.column}' AND entity_key IN ({marks})"
            for number, view in enumerate(views)
        ]
        if keys:
            with closing(self._sqlite().execute(" UNION ALL ".join(selects), keys)) as cursor:
                for number, key, value in cursor:
                    rows[key][number] = value
        return list(rows.values())

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

    def get(self, view: View, keys: Sequence[tuple[str, ...]]) -> list[tuple[datetime, Any] | None]:
        """As `Backend.get`."""
        found: dict[bytes, tuple[datetime, Any]] = {}
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
        values: Sequence[Any],
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


class _Read:
    """An HMGET of some fields, packed but for its key."""

    def __init__(self, fields: Sequence[bytes]) -> None:
        self._start = b"*%d\r\n$5\r\nHMGET\r\n$" % (2 + len(fields))
        packed = [b"$%d\r\n%b\r\n" % (len(field), field) for field in fields]
        self._end = _PROJECT + b"\r\n" + b"".join(packed)

    def command(self, entity_key: bytes) -> bytes:
        """The whole command, as Redis takes it over its socket."""
        return b"%b%d\r\n%b%b" % (self._start, len(entity_key) + len(_PROJECT), entity_key, self._end)


@cache
def _reads(contexts: tuple[str, ...]) -> tuple[_Read, _Read]:
    """What is read of a user, the history and the index last, and what of a pair."""
    user = [layout.field_name(counter_view(USER, name).name, VALUES) for name in contexts]
    pair = [layout.field_name(counter_view(USER_ITEM, name).name, VALUES) for name in contexts]
    more = [layout.field_name(view.name, view.column) for view in (HISTORY, MET)]
    return _Read([*user, *more]), _Read(pair)


def _plain(value: str) -> Any:
    """A value of the connection string, as Feast reads it: JSON where it is any."""
    try:
        return msgspec.json.decode(value.encode())
    except msgspec.DecodeError:
        return value
