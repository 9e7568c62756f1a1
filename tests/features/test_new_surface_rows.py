"""Rows of a surface that no night has seen: those that a night would make, strictly in time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import yaml
from feature_logs import bytes_below
from polars.testing import assert_frame_equal

from recmeta.contexts import Contexts, load_contexts
from recmeta.errors import InputError, NotFoundError, SchemaError
from recmeta.events.labels import build_labels
from recmeta.events.new_surface import read_new_surface, with_surface
from recmeta.events.schema import INTERACTION_SCHEMA
from recmeta.events.store import event_span, ingest, scan_events
from recmeta.features.build import build_features
from recmeta.features.new_surface import surface_rows
from recmeta.features.training_rows import build_rows, feature_space, load_rows
from recmeta.settings import Settings, load_settings

UNTIL = datetime(2026, 6, 30, tzinfo=UTC)
NOW = datetime(2028, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)

CONTEXTS = """
version: 1
contexts:
  reading: {positives: [READ], negatives: {sample: {per_positive: 2, alive_within: 14d}}}
  commenting: {positives: [COMMENT], negatives: {exposure: {context: reading, within: 1d}}}
  feed: {positives: [CLICK], negatives: {impressions: {events: [IMPRESSION], within: 30m}}}
source:
  columns: {user_id: user_id, item_id: item_id, event_type: how, event_timestamp: event_timestamp,
            created_timestamp: created_timestamp, weight: weight}
"""


@dataclass(frozen=True)
class Product:
    """A workspace whose nights are done."""

    settings: Settings
    contexts: Contexts


def finished(folder: Path, extra: dict[str, object] | None = None, log: Path | None = None) -> Product:
    """Take in the simulator's log, and a file of a further context, and build all there is to build."""
    settings = load_settings(folder)
    folder.mkdir(parents=True)
    declared = yaml.safe_load(CONTEXTS)
    declared["contexts"].update(extra or {})
    settings.contexts_file.write_text(yaml.safe_dump(declared))
    ingest(settings, "simulator", users=30, items=30, days=12, now=NOW)
    if log is not None:
        ingest(settings, "generic", log, now=NOW)
    contexts = load_contexts(settings.contexts_file)
    build_features(settings, contexts, UNTIL)
    build_labels(settings, contexts, UNTIL)
    build_rows(settings, contexts, UNTIL)
    return Product(settings, contexts)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Product:
    return finished(tmp_path_factory.mktemp("product") / "workspace")


@pytest.fixture(scope="module")
def shares(product: Product) -> pl.DataFrame:
    """Twenty shares of what was read an hour before; some known late, some of the same person or item."""
    reads = scan_events(product.settings).filter(pl.col("context") == "reading").collect()
    firsts = reads.sort("event_timestamp", "event_id").unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )
    rows = firsts.gather_every(max(1, firsts.height // 30)).slice(8, 20)
    late = pl.Series([timedelta(hours=9 if row % 4 == 0 else 0) for row in range(rows.height)])
    happened = pl.col("event_timestamp") + HOUR
    return rows.select(
        "user_id",
        "item_id",
        happened,
        (happened + late).alias("created_timestamp"),
        pl.Series("weight", [1.0, 3.0] * 10),
    )


def onboarded(
    product: Product, rows: pl.DataFrame, folder: Path, exposure: str | None = None
) -> tuple[Contexts, pl.DataFrame]:
    """The contexts with ``sharing``, and its interactions."""
    file = folder / "shares.parquet"
    rows.write_parquet(file)
    span = event_span(product.settings)
    assert span is not None
    surface = read_new_surface(
        file, "sharing", product.contexts, scan_events(product.settings), span, now=NOW, exposure=exposure
    )
    return with_surface(product.contexts, surface.declaration), surface.interactions


def dense(rows: pl.DataFrame) -> npt.NDArray[np.float32]:
    return rows["dense"].to_numpy()


@pytest.mark.parametrize("exposure", ["reading", None])
def test_rows_are_those_of_a_night_that_knew_the_surface(
    product: Product, shares: pl.DataFrame, tmp_path: Path, exposure: str | None
) -> None:
    contexts, interactions = onboarded(product, shares, tmp_path, exposure)
    made = surface_rows(product.settings, contexts, "sharing", interactions)
    shares.with_columns(how=pl.lit("SHARING")).write_parquet(tmp_path / "log.parquet")
    declared = contexts["sharing"].model_dump(mode="json", exclude_none=True, exclude={"name"})
    knew = finished(tmp_path / "knew", {"sharing": declared}, tmp_path / "log.parquet")
    assert (
        feature_space(knew.settings, knew.contexts).digest
        == feature_space(product.settings, product.contexts).digest
    )
    theirs = load_rows(knew.settings, "sharing")
    assert made.columns == theirs.columns
    assert made.schema == theirs.schema
    # Nights wait for outcomes; a file that was handed over is all there is.
    made = made.filter(pl.col("mature_timestamp") <= UNTIL)
    # The night's exposures reach over the whole log, and its histories hold the shares themselves.
    theirs = theirs.join(made, on=["user_id", "item_id", "event_timestamp", "label"], how="semi")
    order = ["event_timestamp", "user_id", "item_id", "label"]
    assert_frame_equal(made.drop("history").sort(order), theirs.drop("history").sort(order), check_exact=True)
    assert made["label"].sum() > 10
    assert made.height > 3 * made["label"].sum()
    space = feature_space(product.settings, contexts)
    assert (dense(made)[:, space.index("target:item:positives")] > 0).any()


def test_a_row_sees_only_what_was_known_strictly_before_it(
    product: Product, shares: pl.DataFrame, tmp_path: Path
) -> None:
    contexts, interactions = onboarded(product, shares, tmp_path)
    rows = surface_rows(product.settings, contexts, "sharing", interactions)
    space = feature_space(product.settings, contexts)
    known = interactions.with_columns(known=pl.max_horizontal("event_timestamp", "created_timestamp"))
    for kind, key in (("item", "item_id"), ("user", "user_id")):
        column = dense(rows)[:, space.index(f"target:{kind}:positives")]
        counts = [
            known.filter(pl.col(key) == row[key], pl.col("known") < row["event_timestamp"])["weight"].sum()
            for row in rows.iter_rows(named=True)
        ]
        assert max(counts) > 0
        np.testing.assert_allclose(column, np.log1p(counts), rtol=1e-6)


def test_what_becomes_known_at_the_rows_instant_is_not_seen(
    product: Product, shares: pl.DataFrame, tmp_path: Path
) -> None:
    """One item, one instant, three people: none of them sees the others; who comes a tick later does."""
    reader = shares.sort("event_timestamp").tail(1).with_columns(weight=pl.lit(1.0))
    instant = reader["event_timestamp"][0]
    people = scan_events(product.settings).select(pl.col("user_id").unique().sort()).collect()["user_id"]
    crowd = pl.concat(
        [
            reader.with_columns(
                user_id=pl.lit(person),
                event_timestamp=pl.lit(instant + after).cast(reader.schema["event_timestamp"]),
                created_timestamp=pl.lit(instant + after).cast(reader.schema["event_timestamp"]),
            )
            for person, after in zip(
                people[:4], [timedelta(0)] * 3 + [timedelta(microseconds=1)], strict=True
            )
        ]
    )
    contexts, interactions = onboarded(product, crowd, tmp_path)
    rows = surface_rows(product.settings, contexts, "sharing", interactions).filter(pl.col("label") == 1)
    seen = dense(rows)[:, feature_space(product.settings, contexts).index("target:item:positives")]
    np.testing.assert_allclose(seen, np.log1p([0, 0, 0, 3]).astype(np.float32))


def test_no_positive_changes_when_all_later_interactions_are_unknown(
    product: Product, shares: pl.DataFrame, tmp_path: Path
) -> None:
    contexts, interactions = onboarded(product, shares, tmp_path)
    keys = ["user_id", "item_id", "event_timestamp", "label"]
    whole = surface_rows(product.settings, contexts, "sharing", interactions)
    for number in (5, 12):
        cut = interactions.head(number)
        until = cut["event_timestamp"].max()
        rows = surface_rows(product.settings, contexts, "sharing", cut)
        part = whole.join(rows, on=keys, how="semi", maintain_order="left")
        assert part.height == rows.height
        assert_frame_equal(rows.sort(keys), part.sort(keys), check_exact=True)
        assert rows["event_timestamp"].max() <= until


def test_rows_of_a_log_with_refusals_are_the_files_own(
    product: Product, shares: pl.DataFrame, tmp_path: Path
) -> None:
    labelled = shares.with_columns(
        pl.Series("item_id", [*shares["item_id"][:-1], "new"]), label=pl.Series([1, 0] * 10)
    )
    contexts, interactions = onboarded(product, labelled, tmp_path)
    rows = surface_rows(product.settings, contexts, "sharing", interactions)
    new = pl.col("item_id") == "new"
    assert rows.filter(new)["categories"].to_list() == [[]]
    assert rows.filter(~new)["categories"].list.len().min() == 1
    assert_frame_equal(
        rows.select("user_id", "item_id", "event_timestamp", pl.col("label").cast(pl.Int64)).sort(pl.all()),
        labelled.select("user_id", "item_id", "event_timestamp", "label").sort(pl.all()),
    )


def test_instants_after_the_last_night_see_its_latest_rows(
    product: Product, shares: pl.DataFrame, tmp_path: Path
) -> None:
    """Months later no file holds anything, and what was known by then still counts."""
    labelled = shares.with_columns(label=pl.Series([1, 0] * 10))
    space = feature_space(product.settings, product.contexts)
    total, fading = space.index("reading:item:positives"), space.index("reading:item:positives_7d")
    found = []
    for days in (15, 100, 400):
        moved = labelled.with_columns(pl.col("event_timestamp", "created_timestamp") + timedelta(days=days))
        contexts, interactions = onboarded(product, moved, tmp_path)
        rows = surface_rows(product.settings, contexts, "sharing", interactions)
        found.append(dense(rows.sort("user_id", "item_id")))
        assert rows["history"].list.len().min() > 0  # type: ignore[operator]
    reads = (
        scan_events(product.settings)
        .filter(pl.col("context") == "reading")
        .group_by("item_id")
        .agg(reads=pl.col("weight").sum())
        .collect()
    )
    counts = labelled.sort("user_id", "item_id").join(reads, on="item_id", maintain_order="left")["reads"]
    for later in found:
        np.testing.assert_allclose(later[:, total], np.log1p(counts.to_numpy()), rtol=1e-5)
    assert (found[0][:, fading] > found[1][:, fading]).all()


def test_an_instant_in_the_middle_of_the_log_sees_nothing_of_the_rest(
    product: Product, shares: pl.DataFrame, tmp_path: Path
) -> None:
    contexts, interactions = onboarded(product, shares, tmp_path)
    rows = surface_rows(product.settings, contexts, "sharing", interactions).head(40)
    reads = scan_events(product.settings).filter(pl.col("context") == "reading").collect()
    space = feature_space(product.settings, contexts)
    counts = [
        reads.filter(
            pl.col("item_id") == row["item_id"],
            pl.max_horizontal("event_timestamp", "created_timestamp") < row["event_timestamp"],
        )["weight"].sum()
        for row in rows.iter_rows(named=True)
    ]
    column = dense(rows)[:, space.index("reading:item:positives")]
    np.testing.assert_allclose(column, np.log1p(counts), rtol=1e-5)
    engaged = scan_events(product.settings).filter(pl.col("label") == 1).collect()
    for row in rows.iter_rows(named=True):
        known = pl.max_horizontal("event_timestamp", "created_timestamp").alias("known")
        before = engaged.with_columns(known).filter(
            pl.col("user_id") == row["user_id"], pl.col("known") < row["event_timestamp"]
        )
        assert row["history"][:1] == before.sort("known", "event_id")["item_id"].to_list()[-1:]


def test_the_workspace_is_not_touched_and_the_same_input_gives_the_same_rows(
    product: Product, shares: pl.DataFrame, tmp_path: Path
) -> None:
    before = bytes_below(product.settings.workspace)
    contexts, interactions = onboarded(product, shares, tmp_path, "reading")
    rows = surface_rows(product.settings, contexts, "sharing", interactions)
    shuffled = interactions.sample(fraction=1.0, shuffle=True, seed=3)
    assert_frame_equal(rows, surface_rows(product.settings, contexts, "sharing", shuffled), check_exact=True)
    assert bytes_below(product.settings.workspace) == before


def test_engagements_that_cannot_be_labelled_give_an_empty_frame_of_the_same_columns(
    product: Product, shares: pl.DataFrame, tmp_path: Path
) -> None:
    new = shares.head(3).with_columns(item_id=pl.Series(["new 1", "new 2", "new 3"]))
    contexts, interactions = onboarded(product, new, tmp_path)
    rows = surface_rows(product.settings, contexts, "sharing", interactions)
    full = surface_rows(product.settings, *_all(product, shares, tmp_path))
    assert rows.height == 0
    assert rows.schema == full.schema


def _all(product: Product, shares: pl.DataFrame, folder: Path) -> tuple[Contexts, str, pl.DataFrame]:
    contexts, interactions = onboarded(product, shares, folder)
    return contexts, "sharing", interactions


def test_without_interactions_there_are_no_rows_to_make(
    product: Product, shares: pl.DataFrame, tmp_path: Path
) -> None:
    contexts, _ = onboarded(product, shares, tmp_path)
    with pytest.raises(InputError, match="expected at least one interaction"):
        surface_rows(product.settings, contexts, "sharing", pl.DataFrame(schema=INTERACTION_SCHEMA))


def test_a_log_without_features_and_features_of_other_settings_are_refused(
    product: Product, shares: pl.DataFrame, tmp_path: Path
) -> None:
    contexts, interactions = onboarded(product, shares, tmp_path)
    fresh = load_settings(tmp_path / "fresh")
    with pytest.raises(NotFoundError, match="expected the features of the log, found none"):
        surface_rows(fresh, contexts, "sharing", interactions)
    other = load_settings(product.settings.workspace, features={"half_lives": ["5h", "50d"]})
    with pytest.raises(SchemaError, match="expected features of counters"):
        surface_rows(other, contexts, "sharing", interactions)
