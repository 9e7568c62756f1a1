"""The demo's own decisions: which folder it may clear, and that it tells what happened, good or bad."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from recmeta import cli, demo
from recmeta.artifacts import write_json
from recmeta.serving.answers import Answer, RankedItem


def answer(*topics: str) -> Answer:
    items = tuple(
        RankedItem(rank, f"{topic}-{rank}", (topic,), 0.5, "") for rank, topic in enumerate(topics, 1)
    )
    return Answer("feed", "u", items, "", "v", "trees", datetime(2026, 6, 30, tzinfo=UTC))


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
    evidence = {"mean": {"ours": {"0": 0.66, "10": 0.7, "all": 0.75}, "lightgbm": {"10": 0.6, "all": 0.74}}}
    console.print(demo.mean_curve(evidence))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "0.660" in shown and "0.600" in shown and "0.740" in shown
    assert len([line for line in shown.splitlines() if "-" in line.split()]) == 3
