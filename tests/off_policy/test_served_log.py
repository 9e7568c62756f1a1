"""The served log: what goes in comes out, and nothing that happens to it reaches a request."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recmeta.serving import served_log
from recmeta.serving.exploration import Exploration
from recmeta.serving.served_log import SCHEMA, ServedLog, scan_served
from recmeta.settings import ContextExploration

AS_OF = datetime(2026, 6, 30, 12, 30, 0, 123456, tzinfo=UTC)


def serve(log: ServedLog, number: int, **changed: Any) -> None:
    log.append(
        **{
            "context": "feed",
            "user_id": f"user-{number}",
            "items": ["a", "b"],
            "propensities": np.array([0.9, 0.8]),
            "scores": [0.3, 0.1],
            "best_scores": [0.3, 0.2],
            "greedy": np.array([True, False]),
            "bundle": "v1",
            "as_of": AS_OF,
            **changed,
        }
    )


def test_a_list_is_read_as_it_was_served(tmp_path: Path) -> None:
    scores = np.array([0.1, 0.7, 0.4])
    settings = ContextExploration(epsilon=0.5, budget=1.0)
    shown = Exploration({"feed": settings}, np.random.default_rng(3)).show("feed", scores, 2)
    items = [f"item-{index}" for index in shown.indices]
    with ServedLog(tmp_path / "served") as log:
        serve(
            log, 1, items=items, propensities=shown.propensities, scores=scores[shown.indices],
            best_scores=scores[shown.best], greedy=shown.greedy, request_id="r1",
        )  # fmt: skip
        serve(log, 2, items=[], propensities=[], scores=[], best_scores=[], greedy=[])
    assert (log.written, log.dropped) == (2, 0)
    found = scan_served(tmp_path / "served").collect()
    assert found.schema == SCHEMA
    assert found.to_dict(as_series=False) == {
        "request_id": ["r1", "r1"], "as_of": [AS_OF, AS_OF], "context": ["feed", "feed"],
        "user_id": ["user-1", "user-1"], "bundle": ["v1", "v1"], "position": [0, 1], "item_id": items,
        "propensity": shown.propensities.tolist(), "score": scores[shown.indices].tolist(),
        "best_score": scores[shown.best].tolist(), "greedy": shown.greedy.tolist(),
    }  # fmt: skip


def test_nothing_served_is_an_empty_log_and_makes_no_folder(tmp_path: Path) -> None:
    with ServedLog(tmp_path / "served"):
        pass
    assert not (tmp_path / "served").exists()
    assert scan_served(tmp_path / "served").collect().schema == SCHEMA


def test_lists_are_written_while_the_process_goes_on(tmp_path: Path) -> None:
    with ServedLog(tmp_path, seconds=0.01) as log:
        serve(log, 1)
        deadline = time.monotonic() + 30
        while log.written < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert scan_served(tmp_path).collect().height == 2


def test_lists_without_an_id_each_get_one_of_their_own(tmp_path: Path) -> None:
    for _ in range(2):  # two processes, or one that was started again
        with ServedLog(tmp_path) as log:
            for number in range(100):
                serve(log, number)
    assert scan_served(tmp_path).collect()["request_id"].n_unique() == 200


def test_what_memory_does_not_hold_is_dropped_and_counted(tmp_path: Path) -> None:
    with ServedLog(tmp_path, seconds=3600, most_waiting=10) as log:
        for number in range(25):
            serve(log, number)
    assert (log.written, log.dropped) == (10, 15)
    serve(log, 26)  # after the end
    assert log.dropped == 16


def test_a_disk_that_takes_nothing_costs_lists_and_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "served").write_text("a file where the folder should be")
    with ServedLog(tmp_path / "served") as log:
        serve(log, 1)
        log.flush()
        (tmp_path / "served").unlink()
        serve(log, 2)
    assert (log.written, log.dropped) == (1, 1)
    assert "1 lists were dropped" in caplog.text
    assert scan_served(tmp_path / "served").collect()["user_id"].unique().to_list() == ["user-2"]


def test_a_list_that_makes_no_table_is_dropped_and_the_thread_lives_on(tmp_path: Path) -> None:
    with ServedLog(tmp_path) as log:
        serve(log, 1, propensities=[0.9])
        log.flush()
        serve(log, 2)
    assert (log.written, log.dropped) == (1, 1)


def test_many_lists_go_to_several_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_log, "FILE_LISTS", 10)
    with ServedLog(tmp_path, seconds=3600) as log:
        for number in range(35):
            serve(log, number)
    assert len(list(tmp_path.glob("*/*.parquet"))) >= 4
    assert scan_served(tmp_path).collect()["user_id"].n_unique() == 35


def test_killed_in_the_middle_the_log_holds_whole_lists_from_the_first_on(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("killed_writer.py"), folder])
    try:
        deadline = time.monotonic() + 60
        while not folder.with_suffix(".half").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert len(list(folder.rglob(".*.partial"))) == 1  # it was in the middle
    assert len(list(folder.glob("*/*.parquet"))) == 20
    found = scan_served(folder).collect()
    lists = found.group_by("request_id", "user_id").agg(pl.col("position").sort(), pl.col("item_id"))
    assert all(positions == list(range(8)) for positions in lists["position"].to_list())
    numbers = sorted(int(name.removeprefix("request-")) for name in lists["request_id"].to_list())
    assert numbers == list(range(len(numbers)))  # in order: what is lost is the end
    with ServedLog(folder) as log:  # and the next process goes on beside it
        serve(log, 1)
    assert scan_served(folder).collect().height == found.height + 2
