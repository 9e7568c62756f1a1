"""The as-of join is Feast's answer, on every value: late rows, ties, strangers, repeats."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from recmeta.errors import SchemaError
from recmeta.features.point_in_time import join_as_of, latest_row

START = datetime(2024, 3, 1, tzinfo=UTC)
INSTANT = pl.Datetime("us", "UTC")


def instants(minutes: list[int]) -> pl.Series:
    return pl.Series([START + timedelta(minutes=minute) for minute in minutes], dtype=INSTANT)


def features(rows: list[tuple[str, str, int, int]]) -> pl.DataFrame:
    """(user, item, event minute, minutes until recorded); no two are equal in all of these."""
    distinct = sorted(set(rows), key=rows.index)
    user, item, event, late = (
        (list(part) for part in zip(*distinct, strict=True)) if distinct else ([], [], [], [])
    )
    return pl.DataFrame(
        {
            "user_id": pl.Series(user, dtype=pl.String),
            "item_id": pl.Series(item, dtype=pl.String),
            "event_timestamp": instants(event),
            "created_timestamp": instants([e + by for e, by in zip(event, late, strict=True)]),
            "value": pl.Series(range(len(distinct)), dtype=pl.Int64),
        }
    )


def asked(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    user, item, minute = zip(*rows, strict=True)
    return pl.DataFrame({"user_id": user, "item_id": item, "event_timestamp": instants(list(minute))})


def by_definition(rows: pl.DataFrame, views: pl.DataFrame, keys: list[str]) -> list[int | None]:
    """One row after another, as the definition says it."""
    found = []
    for row in rows.iter_rows(named=True):
        t = row["event_timestamp"]
        met = [
            view
            for view in views.iter_rows(named=True)
            if all(view[key] == row[key] for key in keys)
            and view["event_timestamp"] <= t
            and view["created_timestamp"] <= t
        ]
        best = max(met, key=lambda view: (view["event_timestamp"], view["created_timestamp"]), default=None)
        found.append(best["value"] if best else None)
    return found


ids = st.sampled_from(["a", "b", "c"])
minutes = st.integers(0, 12)


@given(
    st.lists(st.tuples(ids, ids, minutes, st.sampled_from([0, 0, 0, 1, 5])), max_size=30),
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "stranger"]), ids, st.integers(-2, 20)), min_size=1, max_size=20
    ),
)
@settings(max_examples=150, deadline=None)
def test_every_answer_is_the_definitions(
    views: list[tuple[str, str, int, int]], rows: list[tuple[str, str, int]]
) -> None:
    made, question, keys = features(views), asked(rows), ["user_id", "item_id"]
    answer = join_as_of(question, made, keys, ["value"])
    assert answer["value"].to_list() == by_definition(question, made, keys)
    assert_frame_equal(answer.drop("value"), question)


def test_a_row_recorded_later_is_not_seen_before_and_the_one_before_it_is() -> None:
    views = features([("a", "a", 0, 0), ("a", "a", 5, 60)])
    rows = asked([("a", "a", 10), ("a", "a", 64), ("a", "a", 65)])
    assert latest_row(rows, views, ["user_id"]).to_list() == [0, 0, 1]


def test_an_old_row_recorded_late_does_not_replace_a_newer_one() -> None:
    views = features([("a", "a", 0, 30), ("a", "a", 20, 0)])
    assert latest_row(asked([("a", "a", 40)]), views, ["user_id"]).to_list() == [1]


def test_without_features_every_value_is_null() -> None:
    rows = asked([("a", "a", 1), ("b", "a", 2)])
    answer = join_as_of(rows, features([]), ["user_id", "item_id"], ["value"])
    assert answer["value"].to_list() == [None, None]


@pytest.mark.parametrize(
    ("rows", "views", "says"),
    [
        (asked([("a", "a", 1)]).drop("user_id"), features([]), "expected a column 'user_id'"),
        (
            asked([("a", "a", 1)]),
            features([]).drop("created_timestamp"),
            "expected a column 'created_timestamp'",
        ),
        (
            asked([("a", "a", 1)]).with_columns(pl.col("event_timestamp").dt.replace_time_zone(None)),
            features([]),
            "expected a column 'event_timestamp' of type Datetime",
        ),
        (asked([("a", "a", 1)]).with_columns(pl.lit(1).alias("user_id")), features([]), "found Int32"),
    ],
)
def test_a_missing_or_wrongly_typed_column_is_refused(
    rows: pl.DataFrame, views: pl.DataFrame, says: str
) -> None:
    with pytest.raises(SchemaError, match=says):
        join_as_of(rows, views, ["user_id"], ["value"])


def test_a_column_that_rows_have_already_is_refused() -> None:
    with pytest.raises(SchemaError, match="'value'"):
        join_as_of(asked([("a", "a", 1)]).with_columns(value=pl.lit(1)), features([]), ["user_id"], ["value"])


def random_view(rng: np.random.Generator, rows: int, columns: int, late: float) -> pl.DataFrame:
    event = rng.choice(20_000, rows, replace=False)  # minutes; no two rows of a key are equal
    by = np.where(rng.random(rows) < late, rng.integers(1, 3_000, rows), 0)
    return pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 40, rows)],
            "event_timestamp": instants((event // 3).tolist()),
            "created_timestamp": instants((event // 3 + by + event % 3).tolist()),
            **{f"f{n}": rng.random(rows, dtype=np.float32) for n in range(columns)},
        }
    )


def test_every_value_equals_feasts_duckdb(tmp_path: Path) -> None:
    """Two views of 20 columns; late rows, ties in event time, users without rows, repeated questions."""
    rng = np.random.default_rng(5)
    views = {"one": random_view(rng, 900, 20, 0.3), "two": random_view(rng, 500, 20, 0.0)}
    minute = rng.integers(-100, 9_000, 700)
    rows = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 45, 700)],
            "event_timestamp": instants(minute.tolist()),
        }
    )
    rows = pl.concat([rows, rows.head(50)])
    theirs = feast_answer(tmp_path, rows, views)
    ours = rows
    for name, view in views.items():
        columns = [column for column in view.columns if column.startswith("f")]
        joined = join_as_of(rows, view, ["user_id"], columns).select(columns)
        ours = ours.hstack(joined.rename({column: f"{name}__{column}" for column in columns}))
    assert ours["one__f0"].null_count() > 20
    assert_frame_equal(ours, theirs.select(ours.columns), check_exact=True)


def feast_answer(folder: Path, rows: pl.DataFrame, views: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """What Feast's DuckDB store joins, in the order of ``rows``."""
    from recmeta.features.feast_store import _import_feast, _offline_query

    feast: Any = _import_feast()
    from feast.repo_config import RepoConfig
    from feast.types import Float32, String

    store = feast.FeatureStore(
        config=RepoConfig(
            project="test",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            offline_store={"type": "duckdb"},
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
    entity = feast.Entity(name="user_id", join_keys=["user_id"], value_type=feast.ValueType.STRING)
    made = []
    for name, view in views.items():
        view.write_parquet(folder / f"{name}.parquet")
        made.append(
            feast.FeatureView(
                name=name,
                entities=[entity],
                schema=[
                    feast.Field(name="user_id", dtype=String),
                    *(feast.Field(name=c, dtype=Float32) for c in view.columns if c.startswith("f")),
                ],
                source=feast.FileSource(
                    name=name,
                    path=str(folder / f"{name}.parquet"),
                    timestamp_field="event_timestamp",
                    created_timestamp_column="created_timestamp",
                ),
                ttl=timedelta(0),
            )
        )
    store.apply([entity, *made])
    references = [f"{name}:{c}" for name, view in views.items() for c in view.columns if c.startswith("f")]
    with _offline_query():
        joined = store.get_historical_features(
            entity_df=rows.with_row_index("at").to_pandas(),
            features=references,
            full_feature_names=True,
            filter_by_created_timestamp=True,
        ).to_arrow()
    return pl.DataFrame(joined).sort("at").cast({"event_timestamp": INSTANT})
