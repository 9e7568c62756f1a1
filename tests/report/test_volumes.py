"""Volumes: interactions by day, what is new, how late it came, what was refused."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from made_nights import UNTIL, write_events

from recmeta.report.volumes import refusals, volumes
from recmeta.settings import load_settings

DAY = timedelta(days=1)
SOON = timedelta(minutes=5)


def test_interactions_are_counted_by_day_context_and_label(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        [
            ("feed", UNTIL - timedelta(hours=1), SOON, 1),
            ("feed", UNTIL - timedelta(hours=2), SOON, 0),
            ("feed", UNTIL - 30 * DAY, SOON, 1),
            ("feed", UNTIL - 31 * DAY, SOON, 1),  # too long ago to be drawn
            ("feed", UNTIL - timedelta(minutes=1), SOON, 1),  # known after the night's end
            ("other", UNTIL - DAY, SOON, 1),
        ],
    )
    found = volumes(load_settings(tmp_path), ("feed", "reading"), UNTIL)
    assert (found["days"][0], found["days"][-1], len(found["days"])) == ("2026-05-31", "2026-06-29", 30)
    feed = found["contexts"]["feed"]
    assert (feed["engagements"][0], feed["engagements"][-1], sum(feed["engagements"])) == (1, 1, 2)
    assert (feed["others"][-1], sum(feed["others"])) == (1, 1)
    assert (feed["total"], feed["new"]) == (4, None)
    empty = found["contexts"]["reading"]
    assert (sum(empty["engagements"]), empty["lateness"], empty["total"]) == (0, None, 0)


def test_new_is_what_became_known_since_the_night_before_however_old_it_is(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        [("feed", UNTIL - 5 * DAY, 4.5 * DAY, 1), ("feed", UNTIL - 5 * DAY, SOON, 1)],
    )
    found = volumes(load_settings(tmp_path), ("feed",), UNTIL, since=UNTIL - DAY)
    assert (found["contexts"]["feed"]["new"], found["contexts"]["feed"]["total"]) == (1, 2)


def test_lateness_is_the_time_from_event_to_known(tmp_path: Path) -> None:
    hours = [0, 0, 0, 1, 1, 1, 1, 2, 30, 40]
    write_events(tmp_path, [("feed", UNTIL - 9 * DAY, timedelta(hours=h), 1) for h in hours])
    late = volumes(load_settings(tmp_path), ("feed",), UNTIL)["contexts"]["feed"]["lateness"]
    assert late == {
        "rows": 10,
        "median": 3600.0,
        "p95": 108_000.0,
        "over_a_day": pytest.approx(0.2),
        "recorded": True,
    }


def test_a_log_without_arrival_times_says_so(tmp_path: Path) -> None:
    write_events(tmp_path, [("feed", UNTIL - DAY, timedelta(0), 1)] * 3)
    assert (
        volumes(load_settings(tmp_path), ("feed",), UNTIL)["contexts"]["feed"]["lateness"]["recorded"]
        is False
    )


def test_refused_rows_are_counted_by_rule_over_all_files(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert refusals(settings) == {"files": 0, "rules": {}, "unreadable": []}
    settings.quarantine_folder.mkdir()
    pl.DataFrame({"rule": ["too_late", "user_id_empty"]}).write_parquet(
        settings.quarantine_folder / "a.parquet"
    )
    pl.DataFrame({"rule": ["too_late"]}).write_parquet(settings.quarantine_folder / "b.parquet")
    (settings.quarantine_folder / "c.parquet").write_bytes(b"not Parquet")
    assert refusals(settings) == {
        "files": 3,
        "rules": {"too_late": 2, "user_id_empty": 1},
        "unreadable": ["c.parquet"],
    }
