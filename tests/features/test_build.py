"""Feature rows are strictly in time, and any order of work ends in the same bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from feature_logs import FIRST_DAY, Workspace, bytes_below, make_workspace, random_log
from hypothesis import given, settings
from hypothesis import strategies as st

from recmeta.contexts import Contexts
from recmeta.errors import IntervalError
from recmeta.events.ledger import Interval, Ledger
from recmeta.events.store import event_span, scan_events
from recmeta.features.build import build_features
from recmeta.features.partitions import HISTORY, Partitions, counter_view, floats, views_of
from recmeta.features.schema import ROW_TIME, VALUES, counter_names
from recmeta.settings import load_settings

DAY = timedelta(days=1)
UNTIL = FIRST_DAY + 14 * DAY


@pytest.fixture(scope="module")
def built_at_once(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    workspace = make_workspace(tmp_path_factory.mktemp("once") / "w")
    workspace.ingest(random_log(400))
    build_features(workspace.settings, workspace.contexts, UNTIL)
    return bytes_below(workspace.settings.features_folder)


@given(st.randoms(use_true_random=False), st.integers(1, 5))
@settings(max_examples=8, deadline=None)
def test_any_order_of_ingestion_and_building_ends_in_the_same_bytes(
    built_at_once: dict[str, str], random: object, parts: int
) -> None:
    choose = random.sample  # type: ignore[attr-defined]
    log = random_log(400)
    order = choose(range(len(log)), len(log))
    with tempfile.TemporaryDirectory() as name:
        workspace = make_workspace(Path(name) / "w")
        for part in range(parts):
            workspace.ingest(log[sorted(order[part::parts])], f"part{part}")
            until = FIRST_DAY + choose(range(1, 15), 1)[0] * DAY
            build_features(workspace.settings, workspace.contexts, until)
        build_features(workspace.settings, workspace.contexts, UNTIL)
        assert bytes_below(workspace.settings.features_folder) == built_at_once


def test_day_by_day_gives_the_bytes_of_all_at_once(
    built_at_once: dict[str, str], new_workspace: Callable[..., Workspace]
) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(400))
    for day in range(1, 15):
        report = build_features(workspace.settings, workspace.contexts, FIRST_DAY + day * DAY)
        assert report["end"] == (FIRST_DAY + day * DAY).isoformat()
    assert bytes_below(workspace.settings.features_folder) == built_at_once


def test_reopened_days_give_the_bytes_of_all_at_once(
    built_at_once: dict[str, str], new_workspace: Callable[..., Workspace]
) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(400))
    build_features(workspace.settings, workspace.contexts, UNTIL)
    ledger = Ledger(workspace.settings.ledger_folder)
    ledger.reopen("features", Interval(FIRST_DAY + 2 * DAY, FIRST_DAY + 3 * DAY))
    report = build_features(workspace.settings, workspace.contexts, FIRST_DAY + 5 * DAY)
    assert report["start"] == (FIRST_DAY + 2 * DAY).isoformat()
    assert report["end"] == UNTIL.isoformat(), "later rows rest on the reopened day"
    assert bytes_below(workspace.settings.features_folder) == built_at_once


@pytest.mark.parametrize("times", [2, 10])
def test_the_same_rows_many_times_give_the_same_features(
    built_at_once: dict[str, str], new_workspace: Callable[..., Workspace], times: int
) -> None:
    workspace = new_workspace()
    workspace.ingest(pl.concat([random_log(400)] * times))
    build_features(workspace.settings, workspace.contexts, UNTIL)
    assert bytes_below(workspace.settings.features_folder) == built_at_once


def test_a_second_run_has_nothing_to_do(new_workspace: Callable[..., Workspace]) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(50))
    build_features(workspace.settings, workspace.contexts, UNTIL)
    assert build_features(workspace.settings, workspace.contexts, UNTIL)["start"] is None


def test_each_row_is_the_definition_applied_to_what_was_known_before(
    new_workspace: Callable[..., Workspace],
) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(300))
    build_features(workspace.settings, workspace.contexts, UNTIL)
    events = scan_events(workspace.settings).collect()
    names = counter_names(workspace.settings.features.half_lives)
    for context in ("reading", "feed"):
        view = counter_view("user_item", context)
        rows = Partitions(workspace.settings.features_folder, view).latest(UNTIL)
        assert len(rows) > 10
        values = floats(rows[VALUES], len(names) + len(ROW_TIME))
        for row, found in zip(rows.iter_rows(named=True), values, strict=True):
            known = pl.max_horizontal("event_timestamp", "created_timestamp")
            before = events.filter(context=context, user_id=row["user_id"], item_id=row["item_id"]).filter(
                known < row["event_timestamp"]
            )
            assert found[0] == before.filter(label=1)["weight"].sum()
            days = (row["event_timestamp"] - timedelta(microseconds=1) - pl.col("event_timestamp")) / DAY
            fading = before.filter(label=1).select((pl.col("weight") * 2.0 ** (-days / 7)).sum()).item()
            assert found[names.index("positives_7d")] == pytest.approx(fading, rel=1e-4, abs=1e-6)


def test_a_row_becomes_visible_just_after_its_event_was_known_and_not_before(
    new_workspace: Callable[..., Workspace],
) -> None:
    workspace = new_workspace()
    happened, recorded = FIRST_DAY + timedelta(hours=1), FIRST_DAY + timedelta(hours=30)
    row = {"user": "u", "item": "i", "type": "READ", "time": happened, "seen": recorded, "weight": 1.0}
    workspace.ingest(pl.DataFrame([row]))
    build_features(workspace.settings, workspace.contexts, FIRST_DAY + 2 * DAY)
    partitions = Partitions(workspace.settings.features_folder, counter_view("user", "reading"))
    assert partitions.latest(recorded).is_empty()
    visible = partitions.latest(recorded + timedelta(microseconds=1))
    assert visible["created_timestamp"].to_list() == [recorded + timedelta(microseconds=1)]


def test_a_context_without_events_has_empty_files_of_the_right_types(
    new_workspace: Callable[..., Workspace],
) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(30))
    build_features(workspace.settings, workspace.contexts, UNTIL)
    for view in views_of(workspace.contexts):
        files = sorted((workspace.settings.features_folder / view.name).glob("*.parquet"))
        assert [file.stem for file in files] == ["2024-01", "2024-02"]
        assert all(pl.read_parquet_schema(file) == dict(view.schema) for file in files)
    assert pl.read_parquet(workspace.settings.features_folder / "item__quiet").is_empty()


def test_a_history_holds_the_last_items_of_all_contexts_and_no_repeats_in_a_row(
    new_workspace: Callable[..., Workspace],
) -> None:
    workspace = new_workspace(features={"history_length": 3})
    did = [("a", "READ"), ("a", "COMMENT"), ("b", "CLICK"), ("c", "IMPRESSION"), ("a", "READ"), ("d", "READ")]
    rows = [
        {"user": "u", "item": item, "type": kind, "time": FIRST_DAY + hour * DAY / 3, "weight": 1.0}
        for hour, (item, kind) in enumerate(did)
    ]
    workspace.ingest(pl.DataFrame(rows).with_columns(seen=pl.col("time")))
    build_features(workspace.settings, workspace.contexts, UNTIL)
    rows_found = pl.read_parquet(workspace.settings.features_folder / HISTORY.name)
    assert rows_found["items"].to_list() == [["a"], ["b", "a"], ["a", "b", "a"], ["d", "a", "b"]]


def test_other_half_lives_rebuild_everything(new_workspace: Callable[..., Workspace]) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(60))
    build_features(workspace.settings, workspace.contexts, UNTIL)
    ledger = Ledger(workspace.settings.ledger_folder)
    ledger.mark("materialize", Interval(FIRST_DAY, UNTIL))
    other = load_settings(
        workspace.settings.workspace, events={"lateness": "1000d"}, features={"half_lives": ["1d", "90d"]}
    )
    report = build_features(other, workspace.contexts, UNTIL)
    assert report["start"] == event_span(other).start.isoformat()  # type: ignore[union-attr]
    assert ledger.done("materialize") == ()


def test_contexts_that_are_not_declared_leave_no_trace(new_workspace: Callable[..., Workspace]) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(60))
    fewer = Contexts.model_validate(
        {"contexts": {"feed": {"positives": ["CLICK"], "negatives": {"sample": {}}}}}
    )
    build_features(workspace.settings, fewer, UNTIL)
    folders = {path.name for path in workspace.settings.features_folder.iterdir() if path.is_dir()}
    assert folders == {"carry", "user__history", "user__feed", "item__feed", "user_item__feed"}


def test_the_future_is_refused(new_workspace: Callable[..., Workspace]) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(20))
    tomorrow = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + 2 * DAY
    with pytest.raises(IntervalError):
        build_features(workspace.settings, workspace.contexts, tomorrow)


def test_a_run_that_dies_between_months_ends_the_same(
    built_at_once: dict[str, str], new_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(400))
    build_features(workspace.settings, workspace.contexts, UNTIL)
    ledger = Ledger(workspace.settings.ledger_folder)
    ledger.reopen("features", Interval(FIRST_DAY + DAY, UNTIL))

    class KilledError(Exception):
        pass

    written = []
    replace = Partitions.replace_after

    def killed_while_writing(self: Partitions, instant: datetime, rows: pl.DataFrame) -> None:
        written.append(instant)
        if len(written) == 20:
            raise KilledError
        replace(self, instant, rows)

    monkeypatch.setattr(Partitions, "replace_after", killed_while_writing)
    with pytest.raises(KilledError):
        build_features(workspace.settings, workspace.contexts, UNTIL)
    monkeypatch.undo()
    build_features(workspace.settings, workspace.contexts, UNTIL)
    assert bytes_below(workspace.settings.features_folder) == built_at_once
