"""The door to Feast: register, join point in time, materialize; online features are read through it.

Feast's own incremental materialization is not used: it forgets late rows and, after one end in the
future, serves stale values in silence. Windows come from our ledger; whether an online row may be
overwritten is decided here, alike for every store, because the stores differ (SQLite overwrites newer
rows, Redis refuses corrected ones). This module must never know a model.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from recmeta import artifacts
from recmeta.contexts import Contexts
from recmeta.errors import IntervalError
from recmeta.events.ledger import Interval, Ledger, check_interval
from recmeta.events.store import event_span
from recmeta.features.feast_definitions import (
    definitions,
    online_file,
    registry_file,
    repo_config,
    service_views,
    store_identity,
)
from recmeta.features.feast_online import FeastRows, OnlineStore, collector_paused
from recmeta.features.live import LiveFeatures, row_width
from recmeta.features.partitions import MET, Partitions, View, counter_view, views_of
from recmeta.features.schema import USER_ITEM
from recmeta.settings import Settings

STAGE = "materialize"

OVERLAP = timedelta(days=1)
"""Each window starts this much before what is missing: a store that lost its last writes (Redis, after a
crash, has the last snapshot) has them again by the next night."""


class FeatureStore(LiveFeatures):
    """Feast for one workspace. Importing Feast takes seconds: make one and keep it."""

    def __init__(self, settings: Settings, contexts: Contexts) -> None:
        feast = _import_feast()
        settings.feast_folder.mkdir(parents=True, exist_ok=True)
        self._store = feast.FeatureStore(config=repo_config(settings))
        self._objects = definitions(settings, contexts)
        views = {made.name: made for made in self._objects if isinstance(made, feast.FeatureView)}
        super().__init__(settings, contexts, OnlineStore(FeastRows(self._store, views), row_width(settings)))

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
        done["rows"] += self._index(self._pairs_of_active(start, end), end, whole_until=end)
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
        """What was written to another online store, or by a recmeta without the index, is not in this one."""
        file = self._settings.feast_folder / "online.json"
        identity = {"store": store_identity(self._settings), "index": MET.name}
        if file.exists() and artifacts.read_json(file) == identity:
            return
        if done := ledger.done(STAGE):
            ledger.reopen(STAGE, Interval(done[0].start, done[-1].end))
        artifacts.write_json(file, identity)

    def _pairs_of_active(self, start: datetime, end: datetime) -> pl.DataFrame:
        """Every pair with a row by ``end``, of the users who have one in [start, end]: user_id, item_id."""
        views = [
            Partitions(self._settings.features_folder, counter_view(USER_ITEM, name))
            for name in self._contexts.names
        ]
        active = pl.concat([view.touched(start, end).select("user_id") for view in views]).unique()
        pairs = pl.concat([view.keys(end) for view in views])
        return pairs.join(active, on="user_id", how="semi").unique().collect()

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
