"""What is known online of a user and of items, live interactions folded in; whoever stores the rows.

Online, as offline, a row is read with its own instant and advanced to the instant of the request, so
that the online value equals the offline value of the same instant to the bit. This module must never
know Feast or a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from recmeta.contexts import Contexts
from recmeta.errors import ContextError, InputError, NotFoundError
from recmeta.features.assembly import Block, stored_block
from recmeta.features.counters import VISIBLE_AFTER
from recmeta.features.feast_definitions import registry_file
from recmeta.features.feast_online import WRITE_BATCH, OnlineStore
from recmeta.features.folding import counter_rows, history_rows, in_order_of_knowledge
from recmeta.features.met import merged, met_of_users
from recmeta.features.partitions import HISTORY, MET, View, counter_view
from recmeta.features.schema import ITEM_CODES, KINDS, ROW_TIME, USER, counter_names
from recmeta.settings import Settings


def row_width(settings: Settings) -> int:
    """How many numbers a counter row has, its instant among them."""
    return len(counter_names(settings.features.half_lives)) + len(ROW_TIME)


@dataclass(frozen=True)
class OnlineFeatures:
    """What is known online of one user and n items at one instant."""

    blocks: Mapping[str, Block]
    """By counter view, n rows each; rows of user views are all the same."""
    history: tuple[str, ...]
    """Items that the user engaged with in any context, the most recent first."""
    knows_user: bool
    """Whether the user did anything in any context."""


class LiveFeatures:
    """The online features of one workspace; several threads may use them.

    `read_online` is the plain way, a call a view; a server reads by `Reader`, which a test holds equal to it.
    """

    def __init__(self, settings: Settings, contexts: Contexts, online: OnlineStore) -> None:
        self._settings = settings
        self._contexts = contexts
        self._width = row_width(settings)
        self._online = online

    @property
    def online(self) -> OnlineStore:
        """The rows themselves."""
        return self._online

    def close(self) -> None:
        """Close the connection to the online store; the next call opens it again."""
        self._online.close()

    def read_online(self, user_id: str, item_ids: Sequence[str], now: datetime) -> OnlineFeatures:
        """Read what is known of a user, of items and of their pairs, as it stands at ``now`` (aware).

        Raises:
            InputError: ``now`` has no time zone.
            NotFoundError: nothing was ever materialized in this workspace.
        """
        instant = _microseconds(now)
        unique = list(dict.fromkeys(item_ids))
        place = {item: number for number, item in enumerate(unique)}
        rows = np.fromiter((place[item] for item in item_ids), dtype=np.int64, count=len(item_ids))
        keys: dict[str, list[tuple[str, ...]]] = {
            "user": [(user_id,)],
            "item": [(item,) for item in unique],
            "user_item": [(user_id, item) for item in unique],
        }
        blocks, knows_user = {}, False
        self._check_applied()
        with self._online.lock:
            for name in self._contexts.names:
                for kind in KINDS:
                    view = counter_view(kind, name)
                    found = self._read_block(view, keys[kind], instant)
                    if kind == USER:
                        knows_user |= bool(found.hours[0] >= 0)
                    taken = np.zeros(len(rows), dtype=np.int64) if kind == USER else rows
                    blocks[view.name] = Block(found.values[taken], found.hours[taken])
            items = self._online.read(HISTORY, keys["user"]).values[0]
        return OnlineFeatures(blocks, tuple(items or ()), knows_user)

    def _read_block(self, view: View, keys: Sequence[tuple[str, ...]], instant: int) -> Block:
        found = self._online.read(view, keys)
        instants = np.full(len(keys), instant, dtype=np.int64)
        return stored_block(found.matrix(self._width), found.there, instants)

    def record(self, interactions: pl.DataFrame) -> None:
        """Fold live interactions (columns of ``Interaction``) into the online rows of what they touch.

        The same recurrence as at night, so that the night's rows are these rows. The log is not written.

        Raises:
            ContextError: a row names a context that is not declared.
            NotFoundError: nothing was ever materialized in this workspace.
        """
        undeclared = set(interactions["context"].unique()) - set(self._contexts.names)
        if undeclared:
            raise ContextError(
                f"interactions: expected contexts among {', '.join(self._contexts.names)}, "
                f"found {', '.join(sorted(map(repr, undeclared)))}"
            )
        self._check_applied()
        events = in_order_of_knowledge(interactions.lazy()).collect()
        newest = events["known_timestamp"].max()
        if not isinstance(newest, datetime):
            return
        features = self._settings.features
        with self._online.lock:
            visible = newest + timedelta(microseconds=VISIBLE_AFTER)
            self._online.announce(visible)
            self._index(events, visible)
            for name in self._contexts.names:
                own = events.filter(pl.col("context") == name)
                for kind in KINDS if len(own) else ():
                    view = counter_view(kind, name)
                    rows = counter_rows(own, view, self._before(view, own), features.half_lives)
                    self._write_latest(view, rows)
            rows = history_rows(events, self._before(HISTORY, events), features.history_length)
            self._write_latest(HISTORY, rows)

    def bring_up(self, context: str, interactions: pl.DataFrame, log: pl.LazyFrame) -> int:
        """Write the online rows of a context whose whole log is ``interactions``, and its users' histories.

        All is folded from the beginning and overwrites what stands there, so that it may be repeated, which
        `record` may not. The history of a user who acted since, live, stays; the next night has both.

        Args:
            context: the new context; `apply` has registered its views.
            interactions: columns of ``Interaction``.
            log: the whole log, these interactions among it.

        Returns:
            How many rows were written.

        Raises:
            NotFoundError: nothing was ever materialized in this workspace.
        """
        self._check_applied()
        own = in_order_of_knowledge(interactions.lazy()).collect()
        newest = own["known_timestamp"].max()
        if not isinstance(newest, datetime):
            return 0
        features, written = self._settings.features, 0
        users = own.filter(pl.col("label") == 1).select("user_id").unique()
        declared = pl.col("context").is_in(self._contexts.names)
        theirs = log.filter(declared).join(users.lazy(), on="user_id", how="semi")
        engaged = in_order_of_knowledge(theirs).collect()
        histories = history_rows(engaged, HISTORY.schema.to_frame(), features.history_length)
        with self._online.lock:
            stamps = [newest + timedelta(microseconds=VISIBLE_AFTER), histories["event_timestamp"].max()]
            self._online.announce(max(stamp for stamp in stamps if isinstance(stamp, datetime)))
            written += self._index(own, newest + timedelta(microseconds=VISIBLE_AFTER))
            for kind in KINDS:
                view = counter_view(kind, context)
                rows = counter_rows(own, view, view.schema.to_frame(), features.half_lives)
                written += self._write_latest(view, rows)
            latest = _latest_of_each(HISTORY, histories)
            there = self._online.read(HISTORY, list(latest.select(HISTORY.keys).iter_rows())).stamps
            older = [
                stamp is None or stamp <= made
                for stamp, made in zip(there, latest["event_timestamp"], strict=True)
            ]
            written += self._online.write(HISTORY, latest.filter(pl.Series(older, dtype=pl.Boolean)))
        return written

    def _index(self, pairs: pl.DataFrame, stamp: datetime, *, whole_until: datetime | None = None) -> int:
        """Tell the index of pairs (user_id, item_id) before their rows are written; return rows written.

        The index only grows: what it says of a user is joined with what is new, so that no order of windows,
        and nobody who writes at the same time, takes out a pair that has a row. A user whom an older recmeta
        wrote has rows and no place in the index; such a user gets one only with *all* pairs, since a server
        that finds a place believes it.

        Args:
            pairs: columns user_id and item_id; others are ignored.
            stamp: of the rows; `announce` it before.
            whole_until: the pairs are all that these users have with rows up to here; None: what is new.
        """
        if not self._online.holds(MET):
            return 0
        written = 0
        for part in met_of_users(pairs).iter_slices(WRITE_BATCH):
            keys = list(part.select(MET.keys).iter_rows())
            with self._online.lock:
                there = self._online.read(MET, keys)
                absent = [key for key, value in zip(keys, there.values, strict=True) if value is None]
                kept_out = self._has_rows(absent, whole_until)
                rows = []
                for key, new, old, at in zip(keys, part[ITEM_CODES], there.values, there.stamps, strict=True):
                    value = new if old is None else merged(old, new)
                    if value != old and key not in kept_out:
                        when = stamp if at is None else max(at, stamp)
                        rows.append((*key, when, when, value))
                written += self._online.write(MET, pl.DataFrame(rows, schema=MET.schema, orient="row"))
        return written

    def _has_rows(self, users: Sequence[tuple[str, ...]], after: datetime | None) -> set[tuple[str, ...]]:
        """Those of some users who have counters online; with ``after``, any that are stamped later."""
        newest = self._online.newest() if users else None
        if newest is None or (after is not None and newest <= after):
            return set()
        found: set[tuple[str, ...]] = set()
        for name in self._contexts.names:
            stamps = self._online.read(counter_view(USER, name), users).stamps
            rows = zip(users, stamps, strict=True)
            found.update(user for user, at in rows if at is not None and (after is None or at > after))
        return found

    def _before(self, view: View, events: pl.DataFrame) -> pl.DataFrame:
        """The online rows of what interactions touch: keys and values."""
        keys = list(events.select(view.keys).unique(maintain_order=True).iter_rows())
        found = self._online.read(view, keys)
        chosen = np.flatnonzero(found.there).tolist()
        columns = {
            **{name: [keys[row][part] for row in chosen] for part, name in enumerate(view.keys)},
            view.column: [list(found.values[row]) for row in chosen],
        }
        schema = {name: view.schema[name] for name in (*view.keys, view.column)}
        return pl.DataFrame(columns, schema=schema)

    def _write_latest(self, view: View, rows: pl.DataFrame) -> int:
        return self._online.write(view, _latest_of_each(view, rows))

    def _check_applied(self) -> None:
        if not registry_file(self._settings).exists():
            raise NotFoundError(
                f"{self._settings.workspace} has no online features yet; run `recmeta nightly` first"
            )


def _latest_of_each(view: View, rows: pl.DataFrame) -> pl.DataFrame:
    newest = rows.sort("event_timestamp", maintain_order=True)
    return newest.unique(view.keys, keep="last", maintain_order=True)


def _microseconds(instant: datetime) -> int:
    if instant.tzinfo is None:
        raise InputError(f"now: expected an instant with a time zone, found {instant.isoformat()} without")
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
