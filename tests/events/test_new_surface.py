"""What becomes of a file of a new surface's first interactions: read whole, or refused with a reason."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recmeta.contexts import Contexts, ExplicitNegatives, ExposureNegatives, SampledNegatives, load_contexts
from recmeta.errors import ContextError, InputError, NotFoundError, SchemaError
from recmeta.events.new_surface import (
    ANCHORS_PER_POSITIVE,
    NewSurface,
    label_new_surface,
    positives_without_row,
    read_new_surface,
    with_surface,
)
from recmeta.events.schema import INTERACTION_SCHEMA
from recmeta.events.store import event_span, ingest, scan_events
from recmeta.settings import Settings, load_settings

NOW = datetime(2026, 7, 5, tzinfo=UTC)
Read = Callable[..., NewSurface]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A product with three surfaces and twelve days of their log, which end with June 2026."""
    settings = load_settings(tmp_path_factory.mktemp("product") / "workspace")
    ingest(settings, "simulator", users=40, items=40, days=12, now=NOW)
    return settings


@pytest.fixture(scope="module")
def contexts(product: Settings) -> Contexts:
    return load_contexts(product.contexts_file)


@pytest.fixture(scope="module")
def shares(product: Settings) -> pl.DataFrame:
    """Six people share what they read, two hours after they read it, late in the log."""
    reads = scan_events(product).filter(pl.col("context") == "reading").collect()
    firsts = reads.sort("event_timestamp", "event_id").unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )
    return (
        firsts.tail(60)
        .gather_every(10)
        .select("user_id", "item_id", pl.col("event_timestamp") + pl.duration(hours=2))
    )


def moved(rows: pl.DataFrame, hours: dict[int, int]) -> pl.DataFrame:
    """The rows with some of them, by their number, so many hours later."""
    by = pl.Series([timedelta(hours=hours.get(row, 0)) for row in range(rows.height)])
    return rows.with_columns(pl.col("event_timestamp") + by)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(rows: pl.DataFrame | bytes | str, name: str = "shares.csv") -> Path:
        path = tmp_path / name
        if isinstance(rows, str):
            rows = rows.encode()
        if isinstance(rows, bytes):
            path.write_bytes(rows)
            return path
        plain = name.removesuffix(".gz")
        written = tmp_path / plain
        if plain.endswith(".parquet"):
            rows.write_parquet(written)
        elif plain.endswith(".jsonl"):
            rows.with_columns(pl.col(pl.Datetime).dt.strftime("%+")).write_ndjson(written)
        else:
            rows.write_csv(written, datetime_format="%+")
        if name != plain:
            path.write_bytes(gzip.compress(written.read_bytes()))
            written.unlink()
        return path

    return write


@pytest.fixture
def read(product: Settings, contexts: Contexts, write: Write) -> Read:
    """Read a frame or a file's content as the first interactions of ``sharing``."""

    def read(
        rows: pl.DataFrame | bytes | str | Path, file: str = "shares.csv", name: str = "sharing", **more: Any
    ) -> NewSurface:
        path = rows if isinstance(rows, Path) else write(rows, file)
        span = event_span(product)
        assert span is not None
        options = {"now": NOW, **more}
        declared = options.pop("contexts", contexts)
        return read_new_surface(path, name, declared, scan_events(product), span, **options)

    return read


# What is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["s.parquet", "s.csv", "s.csv.gz", "s.jsonl", "s.jsonl.gz"])
def test_one_surface_reads_the_same_from_every_format(read: Read, shares: pl.DataFrame, file: str) -> None:
    surface = read(shares, file)
    assert surface.interactions.schema == INTERACTION_SCHEMA
    assert_frame_equal(surface.interactions, read(shares).interactions)
    assert_frame_equal(surface.interactions.select(shares.columns), shares.sort("event_timestamp"))
    assert set(surface.interactions["context"]) == {"sharing"}
    assert surface.interactions["label"].to_list() == [1] * 6


def test_seconds_since_1970_are_instants(read: Read, shares: pl.DataFrame) -> None:
    whole = shares.with_columns(pl.col("event_timestamp").dt.truncate("1s"))
    numbers = whole.with_columns(pl.col("event_timestamp").dt.epoch("s"))
    assert_frame_equal(read(numbers).interactions, read(whole).interactions)
    assert_frame_equal(read(numbers, "s.parquet").interactions, read(whole).interactions)


def test_ids_of_events_are_those_that_the_log_will_give_them(
    read: Read, shares: pl.DataFrame, tmp_path: Path
) -> None:
    """Ingested with their event type later on, they are the same events and count once."""
    surface = read(shares)
    settings = load_settings(tmp_path / "later")
    settings.workspace.mkdir()
    settings.contexts_file.write_text(
        "contexts: {sharing: {positives: [SHARING], negatives: {sample: {}}}}\n"
        "source: {columns: {user_id: user_id, item_id: item_id, event_type: how,"
        " event_timestamp: event_timestamp}}"
    )
    shares.with_columns(how=pl.lit("SHARING")).write_parquet(tmp_path / "later.parquet")
    ingest(settings, "generic", tmp_path / "later.parquet", now=NOW)
    assert_frame_equal(scan_events(settings).collect(), surface.interactions)


def test_optional_columns_are_taken_and_blanks_stand_for_what_is_usual(
    read: Read, shares: pl.DataFrame
) -> None:
    full = shares.head(2).with_columns(
        pl.col("event_timestamp").dt.truncate("1s"),
        created_timestamp=pl.col("event_timestamp").dt.truncate("1s") + pl.duration(hours=5),
        weight=pl.lit(2.5),
        event_id=pl.Series(["a", "b"]),
    )
    blank = pl.col("event_id") == "b"
    full = full.with_columns(
        pl.when(~blank).then("created_timestamp").alias("created_timestamp"),
        pl.when(~blank).then("weight").alias("weight"),
    )
    rows = read(full).interactions.sort("event_id")
    assert rows["event_id"].to_list() == ["a", "b"]
    assert rows["weight"].to_list() == [2.5, 1.0]
    late = (rows["created_timestamp"] - rows["event_timestamp"]).to_list()
    assert late == [timedelta(hours=5), timedelta(0)]


def test_labels_may_be_numbers_or_truth_values(read: Read, shares: pl.DataFrame) -> None:
    for values in (
        [1, 0, 1, 1, 0, 1],
        [1.0, 0.0, 1.0, 1.0, 0.0, 1.0],
        [True, False, True, True, False, True],
    ):
        for file in ("s.parquet", "s.jsonl"):
            surface = read(shares.with_columns(label=pl.Series(values)), file)
            assert surface.interactions["label"].sum() == 4


# What is declared ---------------------------------------------------------------------------------


def test_a_surface_has_roles_alone_and_reads_all_others(
    read: Read, shares: pl.DataFrame, contexts: Contexts
) -> None:
    surface = read(shares)
    declared = surface.declaration
    assert (declared.name, declared.columns, declared.positives) == ("sharing", "roles", ["SHARING"])
    joined = with_surface(contexts, declared)
    assert joined.feature_sources("sharing") == ("commenting", "feed", "reading", "sharing")
    assert joined.named == contexts.named
    more = with_surface(joined, contexts["reading"].model_copy(update={"name": "watching"}))
    assert more.feature_sources("sharing") == joined.feature_sources("sharing")
    assert (surface.known_users, surface.known_items) == (
        shares["user_id"].n_unique(),
        shares["item_id"].n_unique(),
    )
    assert surface.warnings == ()


def test_rows_of_label_0_are_the_negatives(read: Read, shares: pl.DataFrame, contexts: Contexts) -> None:
    surface = read(shares.with_columns(label=pl.Series([1, 0, 1, 0, 1, 1])), exposure="reading")
    assert surface.declaration.negatives.source == ExplicitNegatives(events=["NO_SHARING"])
    assert [text for text in surface.warnings if "exposure reading is not used" in text]


def test_without_rows_of_label_0_the_exposure_says_what_was_met(read: Read, shares: pl.DataFrame) -> None:
    ones = shares.with_columns(label=pl.lit(1))
    assert read(ones, exposure="reading").declaration.negatives.source == ExposureNegatives(
        context="reading", within=timedelta(days=3)
    )
    day = timedelta(days=1)
    assert read(shares, exposure="reading", within=day).declaration.outcome_window == day


def test_without_either_negatives_are_sampled(read: Read, shares: pl.DataFrame) -> None:
    expected = SampledNegatives(per_positive=8, alive_within=timedelta(days=14))
    assert read(shares).declaration.negatives.source == expected
    assert read(shares.with_columns(label=pl.lit(1))).declaration.negatives.source == expected


# What is said -------------------------------------------------------------------------------------


def test_one_engagement_is_taken_and_said_to_be_served_zero_shot(read: Read, shares: pl.DataFrame) -> None:
    surface = read(shares.head(1))
    assert surface.interactions.height == 1
    (warning,) = surface.warnings
    assert "zero-shot" in warning


def test_repeated_rows_count_once_and_are_said(read: Read, shares: pl.DataFrame) -> None:
    surface = read(pl.concat([shares, shares.head(2)]))
    assert_frame_equal(surface.interactions, read(shares).interactions)
    (warning,) = surface.warnings
    assert "2 of 8 rows" in warning
    assert "first row 7" in warning


def test_strangers_are_said_where_the_items_are_known(read: Read, shares: pl.DataFrame) -> None:
    surface = read(shares.with_columns(pl.format("stranger {}", "user_id").alias("user_id")))
    assert (surface.known_users, surface.known_items > 0) == (0, True)
    assert surface.warnings[0].startswith("none of the ")
    assert "users is in the log" in surface.warnings[0]


def test_new_items_are_said_where_the_people_are_known(read: Read, shares: pl.DataFrame) -> None:
    surface = read(shares.with_columns(pl.format("new {}", "item_id").alias("item_id")))
    assert (surface.known_users > 0, surface.known_items) == (True, 0)
    assert "items is in the log" in surface.warnings[0]
    first_of_each = f"{shares['item_id'].n_unique()} of 6 engagements are of items without any event"
    assert surface.warnings[1].startswith(first_of_each)


def test_engagements_without_an_exposure_are_counted(read: Read, shares: pl.DataFrame) -> None:
    surface = read(moved(shares, {0: -4, 1: -4}), exposure="reading")
    assert any(text.startswith("2 of 6 engagements follow no first exposure") for text in surface.warnings)


def test_interactions_after_the_logs_end_are_said(read: Read, shares: pl.DataFrame) -> None:
    later = shares.with_columns(pl.col("event_timestamp") + pl.duration(days=4))
    assert any("after the log's end" in text for text in read(later).warnings)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("s.csv", b"user_id,item_id,event_timestamp\n"),
        ("s.csv", b""),
        ("s.jsonl", b""),
        ("s.parquet", b"PAR1"),
        ("s.jsonl.gz", b"no gzip"),
        ("s.jsonl.gz", gzip.compress(b'{"user_id": "u"', mtime=0)),
        ("s.jsonl.gz", gzip.compress(b'{"user_id": "u"}', mtime=0)[:12] + b"\xff" * 20),
        ("s.csv.gz", gzip.compress(b"user_id,item_id,event_timestamp\n", mtime=0)[:-4]),
    ],
)
def test_a_file_without_interactions_is_refused(read: Read, file: str, content: bytes) -> None:
    with pytest.raises(SchemaError, match=rf"/{file}: .*(found none|is it whole)"):
        read(content, file)


def test_a_frame_without_rows_is_refused(read: Read, shares: pl.DataFrame) -> None:
    with pytest.raises(SchemaError, match="expected at least one row, found none"):
        read(shares.clear(), "s.parquet")


def test_no_such_file_and_no_such_format(read: Read, tmp_path: Path) -> None:
    for name in ("nowhere.csv", "nowhere.jsonl.gz"):
        with pytest.raises(NotFoundError, match=f"{name} does not exist"):
            read(tmp_path / name)
    with pytest.raises(InputError, match=r"ends in \.parquet"):
        read("user_id\n", "s.txt")


def test_a_file_of_refusals_alone_is_refused(read: Read, shares: pl.DataFrame) -> None:
    with pytest.raises(InputError, match=r"expected at least one engagement .*found 6 rows of label 0"):
        read(shares.with_columns(label=pl.lit(0)))


def test_people_and_items_that_the_log_never_saw_are_refused(read: Read, shares: pl.DataFrame) -> None:
    with pytest.raises(
        InputError, match=r"that the log knows, found .* users and .* items that it never saw"
    ):
        read(shares.with_columns(pl.format("x{}", "user_id"), pl.format("x{}", "item_id").alias("item_id")))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("reading", "found 'reading', which exists"),
        ("Reading", "differs from 'reading' only in case"),
        (" reading", "differs from 'reading' only in case or blanks"),
        ("Sharing", "must match"),
        ("", "must match"),
        ("sharing posts", "must match"),
        ("s" * 64, "must match"),
        ("../sharing", "must match"),
        ("read", "events READ are nobody's, .*context reading"),
    ],
)
def test_a_name_that_is_taken_or_no_name_is_refused(
    read: Read, shares: pl.DataFrame, name: str, text: str
) -> None:
    with pytest.raises(ContextError, match=text):
        read(shares, name=name)


def test_a_name_whose_events_the_log_ignores_is_refused(
    read: Read, shares: pl.DataFrame, parse_contexts: Callable[[str], Contexts]
) -> None:
    declared = parse_contexts(
        "contexts: {reading: {positives: [READ], negatives: {sample: {}}}}\n"
        "source: {columns: {user_id: u, item_id: i, event_type: t, event_timestamp: e}, ignore: [NO_SHARING]}"
    )
    with pytest.raises(ContextError, match=r"events NO_SHARING are nobody's.*source\.ignore"):
        read(shares, contexts=declared)


def test_an_exposure_must_be_another_declared_context(read: Read, shares: pl.DataFrame) -> None:
    with pytest.raises(ContextError, match="unknown context 'watching'"):
        read(shares, exposure="watching")
    with pytest.raises(ContextError, match="found itself"):
        read(shares, exposure="sharing")
    with pytest.raises(InputError, match="within needs an exposure"):
        read(shares, within=timedelta(days=1))
    for window in (timedelta(0), -timedelta(days=1), timedelta(days=366), timedelta.max):
        with pytest.raises(InputError, match="within: expected more than none"):
            read(shares, exposure="reading", within=window)


def test_an_exposure_that_no_engagement_follows_is_refused(read: Read, shares: pl.DataFrame) -> None:
    with pytest.raises(InputError, match=r"follow an exposure in reading, found none of 6 within 1h of one"):
        read(shares, exposure="reading", within=timedelta(hours=1))
    lone = read(shares.head(1), exposure="reading", within=timedelta(hours=1))
    assert lone.warnings[-1].startswith("1 of 1 engagements follow no first exposure in reading within 1h")


def test_rows_in_the_future_and_before_the_log_are_refused(read: Read, shares: pl.DataFrame) -> None:
    with pytest.raises(
        InputError,
        match=r"found 3 of 6 .*before_the_log: 2 rows, first row 2; in_the_future: 1 row, first row 5",
    ):
        read(moved(shares, {4: 720, 1: -720, 3: -720}))
    with pytest.raises(InputError, match="in_the_future: 6 rows, first row 1"):
        read(shares, now=datetime(2026, 6, 20, tzinfo=UTC))


def test_every_refused_row_is_counted_under_its_rule(read: Read, shares: pl.DataFrame) -> None:
    bad = shares.with_columns(
        pl.Series("user_id", ["", *shares["user_id"][1:]]),
        pl.col("event_timestamp").dt.strftime("%+").str.replace("2026", "never").alias("when"),
        label=pl.Series(["1", "1", "2", "yes", "1", "1"]),
        weight=pl.Series([1.0, 1.0, 1.0, 1.0, 1.0, -2.0]),
    ).with_row_index()
    bad = bad.with_columns(
        event_timestamp=pl.when(pl.col("index") == 1)
        .then("when")
        .otherwise(pl.col("event_timestamp").dt.strftime("%+"))
    )
    with pytest.raises(InputError) as refusal:
        read(bad.drop("when", "index"), "s.jsonl")
    for fault in (
        "found 5 of 6",
        "user_id_empty: 1 row, first row 1",
        "unreadable_timestamp: 1 row, first row 2",
        "label_not_0_or_1: 2 rows, first row 3",
        "weight_not_positive: 1 row, first row 6",
    ):
        assert fault in str(refusal.value)


def test_a_blank_label_is_no_label(read: Read, shares: pl.DataFrame) -> None:
    with pytest.raises(InputError, match="label_not_0_or_1: 1 row, first row 2"):
        read(shares.with_columns(label=pl.Series([1, None, 1, 1, 0, 1])))


def test_stamps_without_a_zone_are_refused(read: Read, shares: pl.DataFrame) -> None:
    plain = shares.with_columns(pl.col("event_timestamp").dt.replace_time_zone(None))
    with pytest.raises(SchemaError, match="found stamps without one; write them as 2026-01-31T12:00:00Z"):
        read(plain, "s.parquet")
    with pytest.raises(SchemaError, match="column event_timestamp: expected instants"):
        read(shares.with_columns(event_timestamp=pl.lit("yesterday")))


def test_another_schema_is_refused_with_the_nearest_names(read: Read, shares: pl.DataFrame) -> None:
    other = shares.rename({"user_id": "UserId", "event_timestamp": "timestamp"}).with_columns(
        lable=pl.lit(0), colour=pl.lit("red")
    )
    with pytest.raises(SchemaError) as refusal:
        read(other)
    for part in (
        "expected columns user_id, item_id, event_timestamp and, where known, label",
        "missing column user_id, event_timestamp",
        "'UserId' (is it user_id?)",
        "'timestamp' (is it event_timestamp?)",
        "'lable' (is it label?)",
        "'colour'",
    ):
        assert part in str(refusal.value)


def test_an_unknown_column_alone_is_refused(read: Read, shares: pl.DataFrame) -> None:
    """A misspelt label would make engagements of refusals."""
    with pytest.raises(SchemaError, match=r"unknown column 'lable' \(is it label\?\)"):
        read(shares.with_columns(lable=pl.lit(0)))


def test_both_labels_for_one_instant_are_refused(read: Read, shares: pl.DataFrame) -> None:
    torn = pl.concat([shares.with_columns(label=pl.lit(1)), shares.tail(2).with_columns(label=pl.lit(0))])
    with pytest.raises(InputError, match="found 0 and 1 for 2 of them; first row 5: user"):
        read(torn)


def test_one_id_for_several_interactions_is_refused(read: Read, shares: pl.DataFrame) -> None:
    with pytest.raises(InputError, match=r"each event_id once, found 1 .*first row 1: 'same'"):
        read(shares.with_columns(event_id=pl.lit("same")))


# What is labelled ---------------------------------------------------------------------------------


def test_anchors_beyond_fifty_a_positive_are_thinned_and_keep_their_weight(
    product: Settings, contexts: Contexts, read: Read, shares: pl.DataFrame
) -> None:
    surface = read(shares.gather([0, 5]), exposure="reading")
    declared = with_surface(contexts, surface.declaration)
    lone = surface.interactions.head(1)
    early = lone.with_columns(pl.col("event_timestamp", "created_timestamp") - pl.duration(days=20))
    everywhere = pl.concat([early, surface.interactions])  # so that the interval is the whole log
    labels = label_new_surface(declared, scan_events(product), "sharing", everywhere)
    negatives = labels.filter(pl.col("label") == 0)
    positives = labels.height - negatives.height
    reads = scan_events(product).filter(pl.col("context") == "reading").collect()
    until = surface.interactions["event_timestamp"].max()
    pairs = reads.filter(pl.col("event_timestamp") <= until).select("user_id", "item_id").n_unique()
    assert positives == 2
    assert negatives.height == ANCHORS_PER_POSITIVE * positives < pairs - positives
    assert negatives["weight"].sum() == pytest.approx(pairs - positives, rel=1e-5)
    assert set(labels.filter(pl.col("label") == 1)["weight"]) == {1.0}
    again = label_new_surface(declared, scan_events(product), "sharing", everywhere)
    assert_frame_equal(labels, again)
    other = label_new_surface(declared, scan_events(product), "sharing", everywhere, seed=1)
    assert not labels.equals(other)


def test_what_the_log_holds_of_the_surface_is_left_aside(
    product: Settings, contexts: Contexts, read: Read, shares: pl.DataFrame
) -> None:
    surface = read(shares)
    declared = with_surface(contexts, surface.declaration)
    with_itself = pl.concat([scan_events(product), surface.interactions.lazy()])
    expected = label_new_surface(declared, scan_events(product), "sharing", surface.interactions)
    assert_frame_equal(label_new_surface(declared, with_itself, "sharing", surface.interactions), expected)
    assert positives_without_row(surface.interactions, expected).is_empty()
    assert expected["label"].sum() == 6


def test_nothing_to_label_is_refused(
    product: Settings, contexts: Contexts, read: Read, shares: pl.DataFrame
) -> None:
    surface = read(shares)
    declared = with_surface(contexts, surface.declaration)
    with pytest.raises(InputError, match="expected at least one interaction"):
        label_new_surface(declared, scan_events(product), "sharing", surface.interactions.clear())
