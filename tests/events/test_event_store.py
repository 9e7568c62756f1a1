"""What is taken in, what is refused and why, and that the order of ingestion never matters."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from filelock import FileLock

from recmeta.errors import BusyError, ContextError, InputError, QuarantineError, SchemaError
from recmeta.events import store
from recmeta.events.ledger import DAY, Interval, Ledger
from recmeta.events.schema import INTERACTION_SCHEMA, Interaction, known_timestamp
from recmeta.events.store import IngestReport, event_span, ingest, read_items, scan_events
from recmeta.settings import EventSettings, Settings, load_settings

Digests = Callable[[Path], dict[str, str]]


def take(settings: Settings, log: pl.DataFrame, name: str = "log.parquet") -> IngestReport:
    """Ingest a frame as a generic log."""
    path = settings.workspace / name
    log.write_parquet(path)
    return ingest(settings, "generic", path)


def beside(settings: Settings, name: str) -> Settings:
    """An empty workspace with the same contexts."""
    other = load_settings(settings.workspace.parent / name, events=settings.events)
    other.workspace.mkdir()
    other.contexts_file.write_bytes(settings.contexts_file.read_bytes())
    return other


def test_rows_become_interactions_of_their_context(generic_settings: Settings, log: pl.DataFrame) -> None:
    report = take(generic_settings, log)
    rows = scan_events(generic_settings).collect()
    assert (report.rows, report.accepted, report.duplicates, report.refused) == (30, 30, 0, {})
    assert rows.schema == INTERACTION_SCHEMA
    assert Interaction.is_valid(rows)
    counts = {
        (context, label): count for context, label, count in rows.group_by("context", "label").len().rows()
    }
    assert counts == {("viewing", 1): 10, ("shopping", 1): 10, ("shopping", 0): 10}


def test_a_month_lies_in_its_own_file_in_the_order_of_knowing(
    generic_settings: Settings, log: pl.DataFrame
) -> None:
    take(generic_settings, log.sample(fraction=1, shuffle=True, seed=1))
    files = sorted(file.name for file in generic_settings.events_folder.iterdir())
    assert files == ["2026-01.parquet", "2026-02.parquet"]
    for file in files:
        rows = pl.read_parquet(generic_settings.events_folder / file).with_columns(known_timestamp())
        assert rows.get_column("known_timestamp").is_sorted()
        assert set(rows.get_column("known_timestamp").dt.strftime("%Y-%m")) == {file[:7]}


def test_a_scan_holds_its_start_and_not_its_end(generic_settings: Settings, log: pl.DataFrame) -> None:
    take(generic_settings, log)
    instants = sorted(log.get_column("when"))
    for first, last in ((0, 30), (3, 20), (5, 5), (25, 29)):
        end = instants[last] if last < 30 else None
        found = scan_events(generic_settings, instants[first], end).collect()
        assert sorted(found.get_column("event_timestamp")) == instants[first:last]
    span = event_span(generic_settings)
    assert span is not None
    assert span.start == instants[0].replace(hour=0) and span.end == datetime(2026, 2, 19, tzinfo=UTC)


def test_an_empty_workspace_has_typed_and_empty_tables(settings: Settings) -> None:
    assert event_span(settings) is None
    assert scan_events(settings).collect().schema == INTERACTION_SCHEMA
    assert read_items(settings).height == 0


@pytest.mark.parametrize("times", [1, 2, 10])
def test_duplicates_leave_the_same_bytes(
    generic_settings: Settings, log: pl.DataFrame, digests: Digests, times: int
) -> None:
    once = beside(generic_settings, "once")
    take(once, log)
    report = take(generic_settings, pl.concat([log] * times).sample(fraction=1, shuffle=True, seed=times))
    assert (report.accepted, report.duplicates) == (30, 30 * (times - 1))
    assert digests(generic_settings.events_folder) == digests(once.events_folder)
    again = take(generic_settings, log)
    assert (again.accepted, again.duplicates, again.days_reopened) == (0, 30, 0)
    assert digests(generic_settings.events_folder) == digests(once.events_folder)


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_ingestion_ends_in_the_same_bytes(
    full_settings: Settings, full_log: pl.DataFrame, digests: Digests, seed: int
) -> None:
    # Some events are told twice, with other stamps and weights the second time.
    retold = full_log.head(12).with_columns(pl.col("made") + pl.duration(days=20), heft=pl.lit(2.0))
    everything = pl.concat([full_log, retold])
    whole = beside(full_settings, "whole")
    take(whole, everything)
    shuffled = everything.sample(fraction=1, shuffle=True, seed=seed)
    for start in range(0, shuffled.height, 9):
        take(full_settings, shuffled.slice(start, 9))
    assert digests(full_settings.events_folder) == digests(whole.events_folder)
    assert full_settings.items_file.read_bytes() == whole.items_file.read_bytes()
    assert scan_events(full_settings).collect().height == 30


def test_of_an_event_that_is_told_twice_the_earliest_telling_stays(
    full_settings: Settings, full_log: pl.DataFrame
) -> None:
    late = full_log.with_columns(pl.col("made") + pl.duration(days=31))
    take(full_settings, late)
    assert take(full_settings, full_log).accepted == 30
    rows = scan_events(full_settings).collect()
    assert sorted(rows.get_column("created_timestamp")) == sorted(full_log.get_column("made"))


FAR = datetime(2200, 1, 1, tzinfo=UTC)
BAD_VALUES = [
    ("how", "SHRUG", "unknown_event_type"),
    ("how", None, "unknown_event_type"),
    ("who", "", "user_id_empty"),
    ("who", None, "user_id_missing"),
    ("who", "u" * 4096, "user_id_too_long"),
    ("who", "u\x001", "user_id_control_character"),
    ("what", "", "item_id_empty"),
    ("what", None, "item_id_missing"),
    ("what", "\u00e9" * 200, "item_id_too_long"),
    ("what", "i\n1", "item_id_control_character"),
    ("when", None, "unreadable_timestamp"),
    ("when", FAR, "in_the_future"),
    ("when", datetime(1970, 1, 1, tzinfo=UTC), "event_timestamp_before_2000"),
    ("made", FAR, "in_the_future"),
    ("made", datetime(2025, 1, 1, tzinfo=UTC), "created_before_event"),
    ("heft", float("nan"), "weight_not_finite"),
    ("heft", float("inf"), "weight_not_finite"),
    ("heft", 1e300, "weight_not_finite"),
    ("heft", 0.0, "weight_not_positive"),
    ("heft", -1.0, "weight_not_positive"),
    ("heft", 1e-300, "weight_not_positive"),
    ("place", -1, "position_not_a_position"),
    ("place", 2**40, "position_not_a_position"),
    ("chance", 0.0, "propensity_out_of_range"),
    ("chance", 1.5, "propensity_out_of_range"),
    ("chance", float("nan"), "propensity_out_of_range"),
    ("chance", float("-inf"), "propensity_out_of_range"),
]


@pytest.mark.parametrize(("column", "value", "rule"), BAD_VALUES, ids=[f"{c}-{r}" for c, _, r in BAD_VALUES])
def test_a_bad_value_is_quarantined_with_its_rule_and_row(
    full_settings: Settings, full_log: pl.DataFrame, column: str, value: object, rule: str
) -> None:
    bad = pl.int_range(pl.len()) == 4
    wrong = pl.lit(value, dtype=full_log.schema[column])
    report = take(
        full_settings, full_log.with_columns(pl.when(bad).then(wrong).otherwise(column).alias(column))
    )
    assert report.refused == {rule: 1}
    assert report.accepted == 29
    assert report.quarantine is not None
    refused = pl.read_parquet(report.quarantine)
    assert refused.select("rule", "row", "file").rows() == [(rule, 5, "log.parquet")]
    assert scan_events(full_settings).collect().height == 29


def test_ordinary_odd_values_pass(full_settings: Settings, full_log: pl.DataFrame) -> None:
    odd = full_log.with_columns(
        who=pl.lit("../u 読者 '\"; DROP"),
        what=pl.lit("\u00e9" * 128),
        heft=pl.lit(None, dtype=pl.Float64),
        place=pl.lit(None, dtype=pl.Int32),
        chance=pl.lit(1.0),
        name=pl.lit(None, dtype=pl.String),
        # A clock that is some hours wrong, and rows out of order.
        made=pl.col("when") - pl.duration(hours=20),
    ).reverse()
    report = take(full_settings, odd)
    assert report.refused == {}
    rows = scan_events(full_settings).collect()
    assert rows.get_column("weight").unique().to_list() == [1.0]
    assert rows.select(known_timestamp() == pl.col("event_timestamp")).to_series().all()


def test_too_many_bad_rows_take_nothing_and_keep_the_evidence(
    generic_settings: Settings, log: pl.DataFrame
) -> None:
    bad = log.with_columns(how=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("SHRUG")).otherwise("how"))
    with pytest.raises(QuarantineError, match=r"at most 1\.0%.*found 10\.0% \(3 of 30\).*'SHRUG'") as refusal:
        take(generic_settings, bad)
    assert event_span(generic_settings) is None
    (file,) = generic_settings.quarantine_folder.iterdir()
    assert str(file) in str(refusal.value)
    assert pl.read_parquet(file).get_column("rule").to_list() == ["unknown_event_type"] * 3


def test_the_share_of_bad_rows_that_is_allowed_is_a_setting(
    generic_settings: Settings, log: pl.DataFrame
) -> None:
    bad = log.with_columns(who=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("")).otherwise("who"))
    patient = load_settings(generic_settings.workspace, events=EventSettings(quarantine_share=0.1))
    assert take(patient, bad).refused == {"user_id_empty": 3}


def test_the_same_refusals_are_the_same_file(full_settings: Settings, full_log: pl.DataFrame) -> None:
    bad = full_log.with_columns(who=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("")).otherwise("who"))
    assert take(full_settings, bad).quarantine == take(full_settings, bad).quarantine
    assert len(list(full_settings.quarantine_folder.iterdir())) == 1


def test_declared_event_types_may_be_ignored(generic_settings: Settings, log: pl.DataFrame) -> None:
    text = generic_settings.contexts_file.read_text().replace("source:", "source:\n  ignore: [SHRUG]")
    generic_settings.contexts_file.write_text(text)
    bad = log.with_columns(how=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("SHRUG")).otherwise("how"))
    report = take(generic_settings, bad)
    assert (report.ignored, report.accepted, report.rows) == (3, 27, 30)


def test_an_event_type_of_two_contexts_is_a_row_of_each(
    generic_settings: Settings, log: pl.DataFrame
) -> None:
    text = generic_settings.contexts_file.read_text().replace("positives: [BUY]", "positives: [BUY, VIEW]")
    generic_settings.contexts_file.write_text(text)
    report = take(generic_settings, log)
    assert report.accepted == report.rows == 40
    views = scan_events(generic_settings).collect().group_by("context").len()
    assert dict(views.rows()) == {"shopping": 30, "viewing": 10}


def test_zero_rows_are_refused_and_leave_nothing(generic_settings: Settings, log: pl.DataFrame) -> None:
    with pytest.raises(SchemaError, match="at least one row"):
        take(generic_settings, log.clear())
    assert not generic_settings.events_folder.exists()


def test_a_truncated_parquet_leaves_nothing(generic_settings: Settings, log: pl.DataFrame) -> None:
    path = generic_settings.workspace / "log.parquet"
    log.write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SchemaError, match="is it whole"):
        ingest(generic_settings, "generic", path)
    assert not generic_settings.events_folder.exists()


def test_a_context_with_one_event_and_one_with_none(generic_settings: Settings, log: pl.DataFrame) -> None:
    report = take(generic_settings, log.filter(pl.col("how") == "VIEW").head(1))
    assert report.accepted == 1
    assert scan_events(generic_settings).collect().get_column("context").to_list() == ["viewing"]
    span = event_span(generic_settings)
    assert span is not None and len(span.days()) == 1


def test_an_event_at_midnight_belongs_to_the_day_that_begins(
    generic_settings: Settings, log: pl.DataFrame
) -> None:
    midnight = datetime(2026, 3, 1, tzinfo=UTC)
    take(generic_settings, log.head(1).with_columns(when=pl.lit(midnight)))
    assert event_span(generic_settings) == Interval(midnight, midnight + DAY)


def test_a_generic_source_needs_contexts(settings: Settings, log: pl.DataFrame) -> None:
    settings.workspace.mkdir()
    with pytest.raises(ContextError, match="write one"):
        take(settings, log)


def test_a_source_with_contexts_of_its_own_writes_them_once_it_was_taken(settings: Settings) -> None:
    small = {"users": 20, "items": 60, "days": 3}
    with pytest.raises(InputError, match="relatedness"):
        ingest(settings, "simulator", relatedness=2.0)
    assert not settings.contexts_file.exists()
    report = ingest(settings, "simulator", **small)
    assert report.accepted == report.rows > 100
    assert "feed" in settings.contexts_file.read_text()
    assert read_items(settings).height == 60
    assert report.as_json()["last_known"].startswith("2026-06-29")


def test_options_of_the_simulator_belong_to_it_alone(generic_settings: Settings) -> None:
    with pytest.raises(InputError, match="takes no options"):
        ingest(generic_settings, "generic", generic_settings.contexts_file, users=3)
    with pytest.raises(InputError, match="colour"):
        ingest(load_settings(generic_settings.workspace.parent / "other"), "simulator", colour=3)


def test_progress_is_told(generic_settings: Settings, log: pl.DataFrame) -> None:
    path = generic_settings.workspace / "log.parquet"
    log.write_parquet(path)
    told: list[tuple[str, int, int]] = []
    ingest(generic_settings, "generic", path, progress=lambda *step: told.append(step))
    assert told == [("read", 0, 1), ("read", 1, 1), ("store", 0, 2), ("store", 1, 2), ("store", 2, 2)]


def finished(settings: Settings, log: pl.DataFrame) -> Ledger:
    """Take all but the last day of a log in and mark it done, as a night would."""
    take(settings, log)
    ledger, span = Ledger(settings.ledger_folder), event_span(settings)
    assert span is not None
    ledger.mark("features", span)
    ledger.mark("labels.viewing", Interval(span.start, span.end - DAY))
    return ledger


def test_a_late_row_reopens_the_days_from_its_own_to_the_frontier(
    generic_settings: Settings, log: pl.DataFrame
) -> None:
    ledger = finished(generic_settings, log)
    frontier = ledger.frontier("features")
    assert frontier is not None
    late = log.head(1).with_columns(when=pl.lit(frontier - timedelta(days=3, hours=5)))
    report = take(generic_settings, late)
    assert (report.accepted, report.days_reopened) == (1, 4)
    assert ledger.gaps("features") == ()
    assert ledger.frontier("features") == ledger.frontier("labels.viewing") == frontier - timedelta(days=4)


def test_rows_after_the_frontier_reopen_nothing(generic_settings: Settings, log: pl.DataFrame) -> None:
    ledger = finished(generic_settings, log)
    before = ledger.done("features")
    frontier = ledger.frontier("features")
    report = take(generic_settings, log.head(1).with_columns(when=pl.lit(frontier)))
    assert (report.accepted, report.days_reopened) == (1, 0)
    assert ledger.done("features") == before


def test_a_late_outcome_reopens_the_days_of_its_exposures(settings: Settings) -> None:
    ingest(settings, "simulator", users=20, items=60, days=6)
    ledger, span = Ledger(settings.ledger_folder), event_span(settings)
    assert span is not None
    ledger.mark("labels.commenting", span)
    text = settings.contexts_file.read_text() + (
        "source: {columns: {user_id: who, item_id: what, event_type: how, event_timestamp: when}}\n"
    )
    settings.contexts_file.write_text(text)
    comment = pl.DataFrame(
        {
            "who": ["user-0001"],
            "what": ["film-001"],
            "how": ["COMMENT"],
            "when": [span.end - timedelta(hours=30)],
        }
    )
    take(settings, comment)
    # Comments count for a day after the read, so a read of the day before may have become a positive.
    assert ledger.frontier("labels.commenting") == span.end - 3 * DAY


def test_a_row_that_is_later_than_the_lateness_is_refused(
    generic_settings: Settings, log: pl.DataFrame
) -> None:
    ledger = finished(generic_settings, log)
    patient = load_settings(generic_settings.workspace, events=EventSettings(quarantine_share=1))
    frontier, done = ledger.frontier("features"), ledger.done("features")
    assert frontier is not None
    old = log.head(2).with_columns(
        when=pl.Series([frontier - timedelta(days=7), frontier - timedelta(days=7, microseconds=1)])
    )
    report = take(patient, old)
    assert (report.accepted, report.refused) == (1, {"too_late": 1})
    assert ledger.done("features") != done


def test_what_was_taken_before_is_a_duplicate_and_never_too_late(
    generic_settings: Settings, log: pl.DataFrame
) -> None:
    ledger = finished(generic_settings, log)
    done = ledger.done("features")
    report = take(generic_settings, log)
    assert (report.duplicates, report.refused, report.days_reopened) == (30, {}, 0)
    assert ledger.done("features") == done


def test_the_past_of_a_new_context_is_not_late(generic_settings: Settings, log: pl.DataFrame) -> None:
    ledger = finished(generic_settings, log.filter(pl.col("how") == "VIEW"))
    report = take(generic_settings, log)
    assert (report.accepted, report.refused) == (20, {})
    assert ledger.done("features") == (Interval.day(log.get_column("when")[0].date()),)


def test_a_run_killed_between_two_files_is_mended_by_the_next(
    generic_settings: Settings, log: pl.DataFrame, digests: Digests
) -> None:
    whole = beside(generic_settings, "whole")
    finished(whole, log)
    late = log.with_columns(pl.col("when") + pl.duration(hours=1), who=pl.lit("late"))
    take(load_settings(whole.workspace, events=EventSettings(lateness="400d")), late)
    ledger = finished(generic_settings, log)
    path = generic_settings.workspace / "late.parquet"
    late.write_parquet(path)
    program = """
import os, signal, sys
from pathlib import Path
from recmeta.events.store import ingest
from recmeta.settings import EventSettings, load_settings
def die(what, done, total):
    if (what, done) == ("store", 1):
        os.kill(os.getpid(), signal.SIGKILL)
settings = load_settings(sys.argv[1], events=EventSettings(lateness="400d"))
ingest(settings, "generic", Path(sys.argv[2]), progress=die)
"""
    killed = subprocess.run(
        [sys.executable, "-c", program, str(generic_settings.workspace), str(path)], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert scan_events(generic_settings).collect().height not in (30, 60)
    assert ledger.frontier("features") is None  # what may have changed is to be done again
    report = ingest(
        load_settings(generic_settings.workspace, events=EventSettings(lateness="400d")), "generic", path
    )
    assert 0 < report.accepted < 30
    assert digests(generic_settings.events_folder) == digests(whole.events_folder)


def test_two_ingestions_at_once_are_kept_apart(
    generic_settings: Settings, log: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_LOCK_SECONDS", 0.05)
    with (
        FileLock(generic_settings.workspace / ".ingest.lock"),
        pytest.raises(BusyError, match="another ingestion"),
    ):
        take(generic_settings, log)
    assert take(generic_settings, log).accepted == 30


def test_deskdrop_is_taken_whole(settings: Settings, real_data: Path) -> None:
    report = ingest(settings, "deskdrop", real_data / "deskdrop" / "users_interactions.csv.gz")
    assert (report.rows, report.refused) == (72_312, {})
    assert report.accepted + report.duplicates == 72_312
    counts = dict(scan_events(settings).collect().get_column("context").value_counts().rows())
    assert counts["reading"] > 58_000 and set(counts) == {
        "bookmarking", "commenting", "following", "liking", "reading",
    }  # fmt: skip
    assert len(list(settings.events_folder.iterdir())) == 12


def test_cofacts_is_taken_with_its_few_bad_rows_set_aside(settings: Settings, real_data: Path) -> None:
    report = ingest(settings, "cofacts", real_data / "cofacts")
    assert report.refused == {"unreadable_timestamp": 34}
    assert report.ignored == 7_617
    assert report.rows == 74_012 + 38_888 + 28_038
    assert report.rows == report.accepted + report.duplicates + report.ignored + 34
    assert read_items(settings).height > 1_000
