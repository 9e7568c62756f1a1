"""Training rows: strictly in time, the same bytes in any order of work, the same from Polars and Feast."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from feature_logs import FIRST_DAY, Workspace, bytes_below, make_workspace, random_log
from polars.testing import assert_frame_equal

from recmeta.contexts import Contexts
from recmeta.events.labels import build_labels, scan_labels
from recmeta.events.ledger import Interval, Ledger
from recmeta.events.store import scan_events
from recmeta.features.build import build_features
from recmeta.features.training_rows import build_rows, feature_space, features_as_of, load_rows
from recmeta.settings import load_settings

DAY = timedelta(days=1)
UNTIL = FIRST_DAY + 15 * DAY
LABELLED = ("commenting", "feed", "reading")


def run_night(workspace: Workspace, until: datetime) -> dict[str, dict[str, int]]:
    build_features(workspace.settings, workspace.contexts, until)
    build_labels(workspace.settings, workspace.contexts, until)
    return build_rows(workspace.settings, workspace.contexts, until)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("done") / "w")
    workspace.ingest(random_log(500))
    run_night(workspace, UNTIL)
    return workspace


def test_night_by_night_gives_the_bytes_of_all_at_once(
    done: Workspace, new_workspace: Callable[..., Workspace]
) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(500))
    for nights in (3, 5, 6, 11, 15):
        run_night(workspace, FIRST_DAY + nights * DAY)
    assert bytes_below(workspace.settings.rows_folder) == bytes_below(done.settings.rows_folder)


def test_late_interactions_end_in_the_bytes_of_having_had_them_at_once(
    done: Workspace, new_workspace: Callable[..., Workspace]
) -> None:
    workspace, log = new_workspace(), random_log(500)
    workspace.ingest(log[::2], "half")
    run_night(workspace, UNTIL)
    workspace.ingest(log[1::2], "rest")
    run_night(workspace, UNTIL)
    assert bytes_below(workspace.settings.rows_folder) == bytes_below(done.settings.rows_folder)


def test_no_row_changes_when_everything_from_its_instant_on_is_unknown(
    done: Workspace, new_workspace: Callable[..., Workspace]
) -> None:
    """Rows are rebuilt from a log that was cut at each row's instant: the dense row must be the same."""
    rows = load_rows(done.settings, LABELLED).sample(6, seed=1)
    log = random_log(500)
    known = pl.max_horizontal("time", "seen")
    for number, row in enumerate(rows.iter_rows(named=True)):
        workspace = new_workspace(f"cut{number}")
        before = log.filter(known < row["event_timestamp"])
        if before.is_empty():
            continue
        workspace.ingest(before)
        build_features(workspace.settings, workspace.contexts, UNTIL)
        asked = rows[number : number + 1]
        there = features_as_of(done.settings, done.contexts, row["context"], asked)
        here = features_as_of(workspace.settings, workspace.contexts, row["context"], asked)
        assert_frame_equal(here, there, check_exact=True)


def test_the_rows_own_engagement_and_its_outcome_are_not_in_it(done: Workspace) -> None:
    rows = load_rows(done.settings, "reading").filter(label=1)
    events = scan_events(done.settings).filter(context="reading", label=1).collect()
    column = feature_space(done.settings, done.contexts).index("reading:user_item:positives")
    known = pl.max_horizontal("event_timestamp", "created_timestamp")
    for row in rows.iter_rows(named=True):
        before = events.filter(known < row["event_timestamp"], user_id=row["user_id"], item_id=row["item_id"])
        expected = np.log1p(np.float32(before["weight"].sum()))
        assert row["dense"][column] == pytest.approx(expected, rel=1e-6)


def test_polars_and_feast_give_the_same_values_of_every_view(done: Workspace) -> None:
    asked = load_rows(done.settings, LABELLED).with_row_index("at").filter(pl.col("at") % 3 == 0)
    strangers = asked.head(5).with_columns(user_id=pl.lit("stranger"), item_id=pl.lit("never seen"))
    asked = pl.concat([asked, strangers])
    feast = load_settings(done.settings.workspace, stores={"point_in_time": "feast"})
    for context in ("commenting", "feed"):
        ours = features_as_of(done.settings, done.contexts, context, asked)
        theirs = features_as_of(feast, done.contexts, context, asked)
        assert ours["user_item__feed"].null_count() >= 5
        assert_frame_equal(ours, theirs, check_exact=True)


def test_rows_built_through_feast_are_the_same_bytes(
    done: Workspace, new_workspace: Callable[..., Workspace]
) -> None:
    workspace = new_workspace(stores={"point_in_time": "feast"})
    workspace.ingest(random_log(500))
    run_night(workspace, UNTIL)
    assert bytes_below(workspace.settings.rows_folder) == bytes_below(done.settings.rows_folder)


def test_every_label_has_one_row_with_finite_features(done: Workspace) -> None:
    for context in LABELLED:
        rows = load_rows(done.settings, context)
        labels = scan_labels(done.settings, context).collect()
        assert len(rows) == len(labels) > 20
        dense = rows["dense"].to_numpy()
        assert dense.shape == (len(rows), feature_space(done.settings, done.contexts).size)
        assert np.isfinite(dense).all()


def test_an_earlier_night_sees_only_labels_that_were_final_by_then(done: Workspace) -> None:
    earlier = FIRST_DAY + 6 * DAY
    rows = load_rows(done.settings, LABELLED, end=earlier)
    windows = {name: done.contexts[name].outcome_window for name in LABELLED}
    for context, window in windows.items():
        known = rows.filter(context=context)["known_timestamp"].max()
        assert isinstance(known, datetime)
        assert known < earlier - window
    assert len(rows) < len(load_rows(done.settings, LABELLED))
    assert load_rows(done.settings, LABELLED, start=earlier)["event_timestamp"].min() >= earlier  # type: ignore[operator]


def test_a_context_without_events_has_no_rows(done: Workspace) -> None:
    assert load_rows(done.settings, "quiet").is_empty()
    assert "dense" in load_rows(done.settings, "quiet").columns


def test_nothing_is_built_twice(done: Workspace) -> None:
    report = run_night(done, UNTIL)
    assert all(counts["built"] == 0 for counts in report.values())
    assert report["reading"]["rows"] > 0


def test_another_feature_space_rebuilds_all_rows(new_workspace: Callable[..., Workspace]) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(200))
    run_night(workspace, UNTIL)
    declared = workspace.contexts.model_dump(mode="json")
    for body in declared["contexts"].values():
        body.pop("name")
        body["negatives"] = {key: value for key, value in body["negatives"].items() if value}
    declared["contexts"]["feed"]["features"] = ["feed"]
    changed = Contexts.model_validate(declared)
    report = build_rows(workspace.settings, changed, UNTIL)
    assert report["reading"]["built"] == report["reading"]["rows"] > 0


def test_days_without_features_wait(new_workspace: Callable[..., Workspace]) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(200))
    build_features(workspace.settings, workspace.contexts, FIRST_DAY + 3 * DAY)
    build_labels(workspace.settings, workspace.contexts, UNTIL)
    build_rows(workspace.settings, workspace.contexts, UNTIL)
    ledger = Ledger(workspace.settings.ledger_folder)
    assert ledger.done("rows.reading") == (Interval(FIRST_DAY, FIRST_DAY + 3 * DAY),)
