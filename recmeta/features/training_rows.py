"""Labelled rows with the features of their instant: what every model is trained and judged on.

Each row sees only what was known strictly before its instant. Rows are made for the days whose labels
and features are finished, once, and kept by month; the join is ours or Feast's (settings), with the
same values. This module must never know a model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta import artifacts
from recmeta.contexts import Contexts
from recmeta.events.labels import LABEL_SCHEMA, scan_labels
from recmeta.events.ledger import DAY, Interval, Ledger, missing
from recmeta.events.store import read_items
from recmeta.features.assembly import FeatureSpace, stored_block
from recmeta.features.counters import Float32s
from recmeta.features.partitions import INSTANT, Partitions, View, floats, months, views_of
from recmeta.features.point_in_time import latest_row
from recmeta.features.schema import HISTORY_VIEW, ROW_TIME, counter_names
from recmeta.settings import Settings

SLICE = 32_768
"""Rows that are joined and assembled at once; bounds memory at about a hundred megabytes."""

_ORDER = ("event_timestamp", "group", "user_id", "item_id", "label", "known_timestamp", "position")


def feature_space(settings: Settings, contexts: Contexts) -> FeatureSpace:
    """The dense columns that this workspace's settings and contexts give."""
    return FeatureSpace(contexts, settings.features.half_lives, settings.features.history_length)


def row_schema(size: int) -> pl.Schema:
    """Columns of a file of training rows whose feature space has ``size`` columns."""
    return pl.Schema(
        {
            **LABEL_SCHEMA,
            "mature_timestamp": INSTANT,
            "dense": pl.Array(pl.Float32, size),
            "history": pl.List(pl.String),
        }
    )


def build_rows(
    settings: Settings,
    contexts: Contexts,
    until: datetime,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[str, int]]:
    """Make the training rows of every finished label day before ``until`` that has none yet.

    Returns for each context ``rows`` (all that there are), and ``built`` (made now).
    """
    ledger = Ledger(settings.ledger_folder)
    space = feature_space(settings, contexts)
    _forget_other_spaces(settings, contexts, space, ledger)
    report = {}
    for number, context in enumerate(contexts.names):
        if progress is not None:
            progress("rows", number, len(contexts.names))
        built = 0
        for interval in _open_intervals(ledger, context, until):
            for start, end in months(interval.start, interval.end):
                built += _build_month(settings, contexts, space, context, Interval(start, end))
                ledger.mark(f"rows.{context}", Interval(start, end))
        report[context] = {"rows": _count(settings, context), "built": built}
    if progress is not None:
        progress("rows", len(contexts.names), len(contexts.names))
    return report


def load_rows(
    settings: Settings,
    contexts: str | Sequence[str],
    start: datetime | None = None,
    end: datetime | None = None,
) -> pl.DataFrame:
    """Load the training rows of one or several contexts.

    Args:
        settings: of the workspace.
        contexts: one name, or several.
        start: only rows whose instant is not before this.
        end: only rows whose label was final by then, so that an earlier night can be repeated as it was.

    Returns:
        The columns of `row_schema` and ``categories`` (List(String), of the item), in the order of the
        contexts, then of the months in which they became known, then of the instants. ``dense`` is
        Array(Float32, size of the feature space).
    """
    names = [contexts] if isinstance(contexts, str) else list(contexts)
    files = [file for name in names for file in _files(settings, name)]
    if not files:
        return row_schema(0).to_frame().with_columns(categories=pl.lit(None, dtype=pl.List(pl.String)))
    parts = []
    for file in files:
        rows = pl.scan_parquet(file)
        if start is not None:
            rows = rows.filter(pl.col("event_timestamp") >= start)
        if end is not None:
            rows = rows.filter(pl.col("mature_timestamp") <= end)
        parts.append(rows)
    loaded = pl.concat(pl.collect_all(parts), rechunk=True)
    known = loaded.select("item_id").join(
        read_items(settings), on="item_id", how="left", maintain_order="left"
    )
    categories = known["categories"].fill_null(pl.Series([[]], dtype=pl.List(pl.String)))
    return loaded.with_columns(categories.alias("categories"))


def features_as_of(settings: Settings, contexts: Contexts, context: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Join to each row what was known at its instant: one List column a view, null where there is none.

    Args:
        settings: of the workspace; ``stores.point_in_time`` says who joins.
        contexts: as declared.
        context: whose views are joined.
        rows: user_id, item_id, event_timestamp.
    """
    if settings.stores.point_in_time == "feast":
        from recmeta.features.feast_store import FeatureStore

        return FeatureStore(settings, contexts).training_rows(rows, context)
    read = {HISTORY_VIEW, *feature_space(settings, contexts).views(context)}
    return pl.DataFrame(
        [view_as_of(settings, view, rows) for view in views_of(contexts) if view.name in read]
    )


def view_as_of(settings: Settings, view: View, rows: pl.DataFrame) -> pl.Series:
    """What one view held of each row's entity at the row's instant, null where nothing; named as the view.

    Args:
        settings: of the workspace.
        view: which features.
        rows: the view's keys and event_timestamp; not empty.
    """
    first, last = rows["event_timestamp"].min(), rows["event_timestamp"].max()
    assert isinstance(first, datetime) and isinstance(last, datetime)  # noqa: S101  (rows is not empty)
    stored = Partitions(settings.features_folder, view).window(first, last, rows).collect()
    return stored[view.column].gather(latest_row(rows, stored, view.keys)).alias(view.name)


def _open_intervals(ledger: Ledger, context: str, until: datetime) -> list[Interval]:
    """Days whose labels and features are finished, and whose rows are not."""
    made = ledger.done(f"rows.{context}")
    features = ledger.done("features")
    todo: list[Interval] = []
    for labelled in ledger.done(f"labels.{context}"):
        for featured in features:
            start = max(labelled.start, featured.start)
            end = min(labelled.end, featured.end, until)
            if start < end:
                todo += missing(made, Interval(start, end))
    return todo


def _build_month(
    settings: Settings, contexts: Contexts, space: FeatureSpace, context: str, interval: Interval
) -> int:
    """Write the rows of an interval that lies in one month; return how many they are."""
    window = contexts[context].outcome_window
    known = pl.col("known_timestamp")
    labels = (
        scan_labels(settings, context, interval.start, interval.end)
        .with_columns((known.dt.truncate("1d") + DAY + window).alias("mature_timestamp"))
        .collect()
        .sort(_ORDER, nulls_last=True, maintain_order=True)
    )
    schema = row_schema(space.size)
    parts = [schema.to_frame()]
    for labelled in labels.iter_slices(SLICE):
        found = features_as_of(settings, contexts, context, labelled)
        dense, history = dense_rows(space, context, found, labelled["event_timestamp"])
        parts.append(labelled.with_columns(dense, history.alias("history")).select(schema.names()))
    file = settings.rows_folder / context / f"{interval.start:%Y-%m}.parquet"
    if file.exists():
        outside = (known < interval.start) | (known >= interval.end)
        parts.insert(0, pl.scan_parquet(file).filter(outside).collect())
    merged = pl.concat(parts).sort(_ORDER, nulls_last=True, maintain_order=True).rechunk()
    with artifacts.replacing(file) as temporary:
        merged.write_parquet(temporary, compression="zstd", row_group_size=SLICE)
    return len(labels)


def dense_rows(
    space: FeatureSpace, context: str, found: pl.DataFrame, instants: pl.Series
) -> tuple[pl.Series, pl.Series]:
    """Turn joined views into ``dense`` (Array(Float32, size)) and the history (List(String), never null)."""
    times: npt.NDArray[np.int64] = instants.dt.epoch("us").to_numpy().astype(np.int64)
    width = len(counter_names(space.half_lives)) + len(ROW_TIME)
    blocks = {}
    for view in space.views(context):
        blocks[view] = stored_block(*stored_rows(found[view], width), times)
    dense = space.assemble(context, blocks, times)
    history = found[HISTORY_VIEW].fill_null(pl.Series([[]], dtype=pl.List(pl.String)))
    return pl.Series("dense", dense, dtype=pl.Array(pl.Float32, space.size)), history


def stored_rows(found: pl.Series, width: int) -> tuple[Float32s, npt.NDArray[np.bool_]]:
    """Values of a counter view as an array [n, width], zero where there is no row, and where there is one."""
    there = found.is_not_null().to_numpy()
    values: Float32s = np.zeros((len(found), width), dtype=np.float32)
    values[there] = floats(found.drop_nulls(), width)
    return values, there


def _files(settings: Settings, context: str) -> list[Path]:
    return sorted((settings.rows_folder / context).glob("????-??.parquet"))


def _count(settings: Settings, context: str) -> int:
    files = _files(settings, context)
    return int(pl.scan_parquet(files).select(pl.len()).collect().item()) if files else 0


def _forget_other_spaces(settings: Settings, contexts: Contexts, space: FeatureSpace, ledger: Ledger) -> None:
    """Rows of another layout are of no use: all are made anew."""
    file = settings.rows_folder / "layout.json"
    layout = {"digest": space.digest, "columns": list(space.names)}
    if file.exists() and artifacts.read_json(file) == layout:
        return
    for stage in ledger.stages():
        if stage.startswith("rows.") and (done := ledger.done(stage)):
            ledger.reopen(stage, Interval(done[0].start, done[-1].end))
    if settings.rows_folder.exists():
        shutil.rmtree(settings.rows_folder)
    artifacts.write_json(file, layout)
