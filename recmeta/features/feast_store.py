"""The door to Feast: register, join point in time, materialize, read online, record live interactions.

Feast's own incremental materialization is not used: it forgets late rows and, after one end in the
future, serves stale values in silence. Windows come from our ledger; whether an online row may be
overwritten is decided here, alike for every store, because the stores differ (SQLite overwrites newer
rows, Redis refuses corrected ones). This module must never know a model.

Online, as offline, a row is read with its own instant and advanced to the instant of the request, so
that the online value equals the offline value of the same instant to the bit.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta import artifacts
from recmeta.contexts import Contexts
from recmeta.errors import ContextError, InputError, IntervalError, NotFoundError
from recmeta.events.ledger import Interval, Ledger, check_interval
from recmeta.events.store import event_span
from recmeta.features.assembly import Block, stored_block
from recmeta.features.counters import VISIBLE_AFTER
from recmeta.features.feast_definitions import (
    definitions,
    online_file,
    registry_file,
    repo_config,
    service_views,
    store_identity,
)
from recmeta.features.feast_online import OnlineStore, collector_paused
from recmeta.features.folding import counter_rows, history_rows, in_order_of_knowledge
from recmeta.features.partitions import HISTORY, View, counter_view, views_of
from recmeta.features.schema import KINDS, ROW_TIME, USER, counter_names
from recmeta.settings import Settings

STAGE = "materialize"

OVERLAP = timedelta(days=1)
"""Each window starts this much before what is missing: a store that lost its last writes (Redis, after a
crash, has the last snapshot) has them again by the next night."""


@dataclass(frozen=True)
class OnlineFeatures:
    """What is known online of one user and n items at one instant."""

    blocks: Mapping[str, Block]
    """By counter view, n rows each; rows of user views are all the same."""
    history: tuple[str, ...]
    """Items that the user engaged with in any context, the most recent first."""
    knows_user: bool
    """Whether the user did anything in any context."""

    def take(self, rows: npt.NDArray[np.int64]) -> OnlineFeatures:
        """The same user with some of the items."""
        blocks = {name: Block(block.values[rows], block.hours[rows]) for name, block in self.blocks.items()}
        return OnlineFeatures(blocks, self.history, self.knows_user)


class FeatureStore:
    """Feast for one workspace. Importing Feast takes seconds: make one and keep it."""

    def __init__(self, settings: Settings, contexts: Contexts) -> None:
        feast = _import_feast()
        self._settings = settings
        self._contexts = contexts
        self._width = len(counter_names(settings.features.half_lives)) + len(ROW_TIME)
        settings.feast_folder.mkdir(parents=True, exist_ok=True)
        self._store = feast.FeatureStore(config=repo_config(settings))
        self._objects = definitions(settings, contexts)
        views = {made.name: made for made in self._objects if isinstance(made, feast.FeatureView)}
        self._online = OnlineStore(self._store, views, self._width)

    def close(self) -> None:
        """Close the connection to the online store; the next call opens it again."""
        self._online.close()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Registry -------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Register entities, views and services, and remove those of contexts that are gone; repeatable."""
        feast = _import_feast()
        ours = {(type(made), made.name) for made in self._objects}
        gone = [
            found
            for found in (*self._store.list_feature_views(), *self._store.list_feature_services())
            if (type(found), found.name) not in ours
        ]
        gone_views = [found for found in gone if isinstance(found, feast.FeatureView)]
        gone += [view.batch_source for view in gone_views]
        self._store.apply(self._objects, objects_to_delete=gone, partial=False)
        if self._settings.stores.online == "sqlite":
            with closing(sqlite3.connect(online_file(self._settings))) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # readers go on while a night writes

    # Offline --------------------------------------------------------------------------------------

    def training_rows(self, rows: pl.DataFrame, context: str) -> pl.DataFrame:
        """Join to each row, by Feast, what was known at its instant.

        Args:
            rows: user_id, item_id, event_timestamp; further columns are ignored.
            context: whose feature service is joined.

        Returns:
            In the order of ``rows``: one List column a view, by the view's name; null where there is none.
        """
        if not registry_file(self._settings).exists():
            self.apply()
        entities = rows.select("user_id", "item_id", "event_timestamp").with_row_index("at").to_pandas()
        with _offline_query():
            joined = self._store.get_historical_features(
                entity_df=entities,
                features=self._store.get_feature_service(context),
                full_feature_names=True,
                filter_by_created_timestamp=True,
            ).to_arrow()
        found = pl.DataFrame(joined).sort("at")
        by_name = {view.name: view for view in views_of(self._contexts)}
        read = [by_name[name] for name in service_views(self._contexts, context)]
        return found.select(
            pl.col(f"{view.name}__{view.column}").cast(view.schema[view.column]).alias(view.name)
            for view in read
        )

    # Materialization ------------------------------------------------------------------------------

    def materialize(
        self, until: datetime, progress: Callable[[str, int, int], None] | None = None
    ) -> dict[str, Any]:
        """Bring the online store up to ``until`` (a midnight, UTC): write what the ledger says is missing.

        Of each entity with rows in the window the latest is written, late and corrected ones too. A row
        that is newer than the window, recorded live or materialized by a later night, stays.

        Returns:
            ``rows`` written, ``kept`` because newer, and ``start`` and ``end`` of the window.

        Raises:
            IntervalError: ``until`` is in the future, or features are not finished up to it.
        """
        done: dict[str, Any] = {"rows": 0, "kept": 0, "start": None, "end": None}
        span = event_span(self._settings)
        if span is None or until <= span.start:
            return done
        wanted = Interval(span.start, until)
        check_interval(wanted, datetime.now(UTC))
        ledger = Ledger(self._settings.ledger_folder)
        unfinished = ledger.missing("features", wanted)
        if unfinished:
            raise IntervalError(f"cannot materialize up to {until}: features of {unfinished[0]} are missing")
        self._forget_other_store(ledger)
        gaps = ledger.missing(STAGE, wanted)
        if not gaps:
            return done
        start, end = gaps[0].start - OVERLAP, max([until, *(gap.end for gap in ledger.done(STAGE))])
        views = views_of(self._contexts)
        self._online.announce(end)
        for number, view in enumerate(views):
            if progress is not None:
                progress(STAGE, number, len(views))
            rows = self._latest_in(view, start, end)
            with collector_paused():
                written = self._online.write(view, rows, limit=end)
            done["rows"] += written
            done["kept"] += len(rows) - written
        ledger.mark(STAGE, Interval(gaps[0].start, end))
        if progress is not None:
            progress(STAGE, len(views), len(views))
        return {**done, "start": start.isoformat(), "end": end.isoformat()}

    def _forget_other_store(self, ledger: Ledger) -> None:
        """What was written to another online store is not in this one."""
        file = self._settings.feast_folder / "online.json"
        identity = {"store": store_identity(self._settings)}
        if file.exists() and artifacts.read_json(file) == identity:
            return
        if done := ledger.done(STAGE):
            ledger.reopen(STAGE, Interval(done[0].start, done[-1].end))
        artifacts.write_json(file, identity)

    def _latest_in(self, view: View, start: datetime, end: datetime) -> pl.DataFrame:
        """The latest row of each entity that has one in [start, end], by Feast's offline store."""
        made = next(made for made in self._objects if made.name == view.name)
        with _offline_query():
            latest = (
                self._store._get_provider()
                .offline_store.pull_latest_from_table_or_query(
                    config=self._store.config,
                    data_source=made.batch_source,
                    join_key_columns=list(view.keys),
                    feature_name_columns=[view.column],
                    timestamp_field="event_timestamp",
                    created_timestamp_column="created_timestamp",
                    start_date=start,
                    end_date=end,
                )
                .to_arrow()
            )
        return pl.DataFrame(latest).select(view.schema.names()).cast(view.schema)

    # Online ---------------------------------------------------------------------------------------

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
            self._online.announce(newest + timedelta(microseconds=VISIBLE_AFTER))
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


def _import_feast() -> Any:
    """Import Feast, and undo what its import does to the whole process.

    It changes the warning filters; and, where it comes first, it makes prometheus_client keep its metrics
    in files that nobody closes.
    """
    with warnings.catch_warnings():
        import prometheus_client  # noqa: F401
        import feast  # isort: skip
    return feast


@contextmanager
def _offline_query() -> Iterator[None]:
    """Run an offline query in a session of its own, which is closed at the end.

    Without this, Feast's embedded DuckDB lives in a session of ibis that collects a view a query, and
    that DuckDB reports as leaked when a process that also loaded torch ends.
    """
    import ibis

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message="fetch_arrow_table")
        try:
            yield
        finally:
            session = ibis.options.default_backend
            if session is not None:
                session.disconnect()
                ibis.options.default_backend = None


def _microseconds(instant: datetime) -> int:
    if instant.tzinfo is None:
        raise InputError(f"now: expected an instant with a time zone, found {instant.isoformat()} without")
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
