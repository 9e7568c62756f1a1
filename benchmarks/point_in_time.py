"""Point-in-time joins and materialization, beside what one could take instead.

    python benchmarks/point_in_time.py --out benchmarks/point_in_time.md

Joins: label rows against three views of 20 Float32 columns, as many rows in each view as there are
labels, 100,000 users, a tenth of the feature rows recorded late. Each way runs in a process of its own,
reading Parquet, so that its peak memory is its own; times leave imports out. "bare" is one Polars
`join_asof` a view on the event time alone, which is not right where rows are late. Ours is compared with
Feast on DuckDB on every value.

Materialization: 100,000 users, 20 counters a row, through the whole of `FeatureStore.materialize`
(Feast's DuckDB reads, what is newer online is looked up and kept, rows are written), into Redis
(`--redis host:port,db=n`, which is flushed before) and into SQLite.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

VIEWS = ("one", "two", "three")
COLUMNS = tuple(f"f{number}" for number in range(20))
USERS = 100_000
START = datetime(2024, 1, 1, tzinfo=UTC)
SPAN = 60 * 86_400 * 1_000_000
"""Microseconds that events are spread over."""

WAYS = ("ours", "bare", "feast_duckdb", "feast_dask")


def make_data(folder: Path, rows: int) -> None:
    """Write labels.parquet and one file a view."""
    rng = np.random.default_rng(0)
    first = int(START.timestamp()) * 1_000_000
    instant = pl.Datetime("us", "UTC")

    def users(count: int) -> pl.Series:
        names = pl.Series([f"user{number:06d}" for number in range(USERS)])
        return names.gather(rng.integers(0, USERS, count))

    def some(count: int) -> pl.DataFrame:
        event = first + rng.integers(0, SPAN, count)
        return pl.DataFrame({"user_id": users(count), "event_timestamp": pl.Series(event).cast(instant)})

    some(rows).with_row_index("at").write_parquet(folder / "labels.parquet")
    for name in VIEWS:
        late = np.where(rng.random(rows) < 0.1, rng.integers(1, 3 * 86_400 * 1_000_000, rows), 0)
        created = pl.col("event_timestamp") + pl.Series(late).cast(pl.Duration("us"))
        values = {column: rng.random(rows, dtype=np.float32) for column in COLUMNS}
        view = some(rows).with_columns(created.alias("created_timestamp"), **values)
        view.sort("event_timestamp").write_parquet(folder / f"{name}.parquet")


def ours(folder: Path) -> pl.DataFrame:
    """recmeta's join."""
    from recmeta.features.point_in_time import join_as_of

    joined = pl.read_parquet(folder / "labels.parquet")
    for name in VIEWS:
        view = pl.read_parquet(folder / f"{name}.parquet")
        renamed = view.rename({column: f"{name}__{column}" for column in COLUMNS})
        joined = join_as_of(joined, renamed, ["user_id"], [f"{name}__{column}" for column in COLUMNS])
    return joined


def bare(folder: Path) -> pl.DataFrame:
    """Polars' join_asof, on the event time alone."""
    joined = pl.read_parquet(folder / "labels.parquet").sort("event_timestamp")
    for name in VIEWS:
        view = pl.read_parquet(folder / f"{name}.parquet").drop("created_timestamp")
        renamed = view.rename({column: f"{name}__{column}" for column in COLUMNS})
        joined = joined.join_asof(renamed, on="event_timestamp", by="user_id", check_sortedness=False)
    return joined


def feast_store(folder: Path, offline: str) -> Callable[[Path], pl.DataFrame]:
    """Feast's get_historical_features on one of its embedded offline stores."""
    import feast
    from feast.repo_config import RepoConfig
    from feast.types import Float32, String

    store = feast.FeatureStore(
        config=RepoConfig(
            project="benchmark",
            provider="local",
            registry=str(folder / f"{offline}.registry"),
            online_store={"type": "sqlite", "path": str(folder / f"{offline}.db")},
            offline_store={"type": offline},
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
    user = feast.Entity(name="user_id", join_keys=["user_id"], value_type=feast.ValueType.STRING)
    views = [
        feast.FeatureView(
            name=name,
            entities=[user],
            schema=[feast.Field(name="user_id", dtype=String)]
            + [feast.Field(name=column, dtype=Float32) for column in COLUMNS],
            source=feast.FileSource(
                name=name,
                path=str(folder / f"{name}.parquet"),
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
            ),
            ttl=timedelta(0),
        )
        for name in VIEWS
    ]
    store.apply([user, *views])

    def join(folder: Path) -> pl.DataFrame:
        entities = pl.read_parquet(folder / "labels.parquet").to_pandas()
        joined = store.get_historical_features(
            entity_df=entities,
            features=[f"{name}:{column}" for name in VIEWS for column in COLUMNS],
            full_feature_names=True,
            filter_by_created_timestamp=True,
        ).to_arrow()
        return pl.DataFrame(joined)

    return join


def run_way(way: str, folder: Path) -> None:
    """Run one way in this process and print its seconds, peak memory and a digest of its values."""
    if way == "ours":
        import recmeta.features.point_in_time  # noqa: F401  (imports are not part of the time)

        join: Callable[[Path], pl.DataFrame] = ours
    else:
        join = bare if way == "bare" else feast_store(folder, "duckdb" if way == "feast_duckdb" else "file")
    before = time.perf_counter()
    joined = join(folder)
    seconds = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    values = joined.sort("at").select(f"{name}__{column}" for name in VIEWS for column in COLUMNS)
    digest = int(values.hash_rows(seed=0).cast(pl.UInt64).implode().hash(seed=0).item())
    print(json.dumps({"seconds": seconds, "gib": peak, "rows": len(joined), "digest": digest}))


def measure_way(way: str, folder: Path, limit: float) -> dict[str, float] | str:
    """Run one way in a process of its own; say why where it has no result."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"longer than {limit:.0f} s"
    if run.returncode != 0:
        return "killed (out of memory)" if run.returncode in (-9, 137) else "failed: " + run.stderr[-300:]
    return json.loads(run.stdout.strip().splitlines()[-1])


def joins(sizes: list[int], ways: list[str], limit: float) -> list[str]:
    """The table of joins."""
    lines = [
        "| label rows | way | seconds | to bare | peak GiB | every value as Feast on DuckDB |",
        "| ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_data(folder, rows)
            found = {way: measure_way(way, folder, limit) for way in ways}
        for way, result in found.items():
            if isinstance(result, str):
                lines.append(f"| {rows:,} | {way} | {result} | | | |")
                continue
            plain, exact = found.get("bare"), found.get("feast_duckdb")
            ratio = f"{result['seconds'] / plain['seconds']:.1f}" if isinstance(plain, dict) else ""
            equal = (
                ("yes" if result["digest"] == exact["digest"] else "no") if isinstance(exact, dict) else ""
            )
            lines.append(
                f"| {rows:,} | {way} | {result['seconds']:.2f} | {ratio} | {result['gib']:.2f} | {equal} |"
            )
            print(lines[-1], flush=True)
    return lines


CONTEXTS = """
contexts:
  reading: {positives: [READ], negatives: {sample: {}}}
source:
  columns: {user_id: user, item_id: item, event_type: type, event_timestamp: time}
"""


def materialization(online: str, redis: str, users: int) -> list[str]:
    """The table's row of one online store."""
    from recmeta.contexts import load_contexts
    from recmeta.events.store import ingest
    from recmeta.features.build import build_features
    from recmeta.features.feast_store import FeatureStore
    from recmeta.settings import load_settings

    if online == "redis":
        from redis import Redis

        host, _, rest = redis.partition(":")
        port, _, database = rest.partition(",db=")
        with Redis(host=host, port=int(port), db=int(database or 0)) as client:
            client.flushdb()
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name) / "w"
        workspace.mkdir()
        (workspace / "contexts.yaml").write_text(CONTEXTS)
        half_lives = [timedelta(days=days) for days in (1, 2, 4, 7, 14, 28, 56, 112)]  # 20 counters a row
        settings = load_settings(
            workspace, features={"half_lives": half_lives}, stores={"online": online, "redis": redis}
        )
        log = pl.DataFrame(
            {
                "user": [f"user{number:06d}" for number in range(users)],
                "item": [f"item{number % 1000}" for number in range(users)],
                "type": ["READ"] * users,
                "time": [START + timedelta(seconds=number) for number in range(users)],
            }
        )
        log.write_parquet(Path(name) / "log.parquet")
        ingest(settings, "generic", Path(name) / "log.parquet")
        contexts, until = load_contexts(settings.contexts_file), START + timedelta(days=3)
        build_features(settings, contexts, until)
        with FeatureStore(settings, contexts) as store:
            store.apply()
            before = time.perf_counter()
            report = store.materialize(until)
            seconds = time.perf_counter() - before
    rate = report["rows"] / seconds
    return [f"| {online} | {users:,} | {report['rows']:,} | {seconds:.1f} | {rate:,.0f} |"]


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that one way may take")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--stores", nargs="*", choices=("redis", "sqlite"), default=["redis", "sqlite"])
    parser.add_argument("--redis", default="127.0.0.1:6379,db=9", help="host:port,db=n; db n is flushed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        run_way(arguments.way, arguments.folder)
        return
    lines = ["# Point-in-time joins and materialization", "", "```", __doc__.strip(), "```", ""]
    lines += joins(arguments.sizes, arguments.ways, arguments.limit)
    lines += [
        "",
        "| online store | users | rows written | seconds | rows/s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for online in arguments.stores:
        lines += materialization(online, arguments.redis, arguments.users)
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
