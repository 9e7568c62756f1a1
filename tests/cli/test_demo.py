"""The demo's own decisions: which folder it may clear, and that it tells what happened, good or bad."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from recmeta import cli, demo
from recmeta.artifacts import write_json
from recmeta.evaluation.cluster_errors import Area, area
from recmeta.events.store import ingest, scan_events
from recmeta.serving.answers import Answer, RankedItem
from recmeta.settings import load_settings


def answer(*topics: str) -> Answer:
    items = tuple(RankedItem(rank, f"{topic}-{rank}", 0.5, (topic,)) for rank, topic in enumerate(topics, 1))
    return Answer("feed", "u", items, "", "v", "trees", datetime(2026, 6, 30, tzinfo=UTC))


def measured(separation: float, seed: int = 0) -> Area:
    """The AUC of 100 users' rows whose scores are as far apart as is said."""
    label = np.arange(400) % 2
    score = np.random.default_rng(seed).standard_normal(400) + separation * label
    found = area(label, score, np.arange(400) // 4)
    assert found is not None
    return found


def visit(before: tuple[str, ...], after: tuple[str, ...]) -> demo.Visit:
    began = datetime(2026, 6, 30, tzinfo=UTC)
    return demo.Visit("u", "film", ("film-1",), began, answer(*before), answer(*after))


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(SystemExit) as left:
        cli.main(["demo", "--workspace", str(tmp_path)])
    assert left.value.code == 2
    assert "empty folder" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_folder_that_a_demo_made_starts_anew(tmp_path: Path) -> None:
    write_json(tmp_path / demo.MARK, {})
    (tmp_path / "old.txt").write_text("from the last time")
    settings = demo.fresh_workspace(tmp_path)
    assert settings.workspace == tmp_path.resolve()
    assert [path.name for path in tmp_path.iterdir()] == [demo.MARK]


def test_a_feed_that_changed_is_told_with_its_numbers() -> None:
    told = demo.what_moved(visit(("music",) * 10, ("film",) * 4 + ("music",) * 6))
    assert "0 before, 4 after" in told
    assert "Nothing was trained" in told


@pytest.mark.parametrize("after", [("music",) * 10, ("film", "music")])
def test_a_feed_that_did_not_change_is_not_told_as_a_success(after: tuple[str, ...]) -> None:
    told = demo.what_moved(visit(("film", "music"), after))
    assert "no change to be proud of" in told
    assert "trees" in told
    assert "Nothing was trained" not in told


def test_before_and_after_stand_side_by_side_within_80_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(demo.side_by_side(visit(("music", "film", "music"), ("film", "film"))))
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert all(len(line) <= 80 for line in lines)
    assert any("music-1" in line and "film-1" in line and "* film" in line for line in lines)
    assert any("music-3" in line for line in lines)


def test_the_curve_of_held_out_surfaces_shows_what_was_measured_and_no_more() -> None:
    console = Console(file=io.StringIO(), width=80)
    ours = {"0": 0.66, "10": 0.7, "100": 0.72, "30": 0.71, "all": 0.75}  # as JSON files order them
    console.print(demo.mean_curve({"mean": {"ours": ours, "lightgbm": {"10": 0.6, "all": 0.74}}}))
    assert isinstance(console.file, io.StringIO)
    shown = [line.split() for line in console.file.getvalue().splitlines() if "0." in line]
    assert [row[0] for row in shown] == ["0", "10", "30", "100", "all"]
    assert shown[0] == ["0", "0.660", "-", "-"]
    assert shown[1] == ["10", "0.700", "0.600", "-"]


def test_what_came_is_told_whether_better_worse_or_neither() -> None:
    low, high = measured(0.2), measured(1.5)
    better = demo.what_came(demo.Truth(400, 200, high, low))
    assert "surely better" in better and f"{high.value:.3f}" in better and f"{low.value:.3f}" in better
    assert "surely worse" in demo.what_came(demo.Truth(400, 200, low, high))
    assert "no different beyond noise" in demo.what_came(demo.Truth(400, 200, low, measured(0.2, seed=1)))
    assert "too few rows" in demo.what_came(demo.Truth(400, 200, low, None))


def test_readings_to_come_are_later_firsts_and_a_save_counts_within_a_day(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    ingest(settings, "simulator", users=40, items=80, days=6, reads_per_day=2)
    readings = scan_events(settings).filter(context="reading", label=1).collect().sort("event_timestamp")
    pair = ["user_id", "item_id"]
    firsts = readings.unique(pair, keep="first", maintain_order=True)
    after, before = (firsts["event_timestamp"][row] for row in (100, -20))
    soon, late, never = (firsts.slice(row, 1).select(*pair, "event_timestamp") for row in (105, 120, 130))
    saves = pl.concat(
        [
            soon.with_columns(pl.col("event_timestamp") + timedelta(hours=23)),
            late.with_columns(pl.col("event_timestamp") + timedelta(hours=25)),
        ]
    )
    found = demo._readings_to_come(settings, saves, after, before)
    assert found.height == firsts.height - 20 - 101
    assert found.filter(label=1).select(pair).equals(soon.select(pair))
    for other in (late, never):
        assert found.join(other, on=pair)["label"].to_list() == [0]


def test_the_whole_story_is_told_in_a_small_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever comes of it: quality is for the real demo."""
    world = {"users": 120, "items": 150, "days": 21, "reads_per_day": 1.5, "slates_per_day": 0.5}
    short = {
        "training": {"max_steps": 5, "warm_steps": 5, "adapt_steps": 2},
        "trees": {"rounds": 10},
        "transfer": {"steps": 2, "draws": 1, "shots": (10,), "rows": 300},
        "gate": {"resamples": 100},
    }
    demo.tell(tmp_path / "workspace", world=world, night=short)
    told = " ".join(capsys.readouterr().out.split())
    assert "of the first 30 only" in told
    assert "serves saving now" in told
    assert "Surfaces held out in turn" in told
    assert "recmeta was told of none of them" in told
    assert "saving for user-" in told
    saves = pl.read_csv(tmp_path / "workspace" / "first-saves.csv")
    assert saves.columns == ["user_id", "item_id", "event_timestamp"]
    assert saves.height == 30
    stored = scan_events(load_settings(tmp_path / "workspace")).filter(context="saving").collect()
    assert stored.height == 30
