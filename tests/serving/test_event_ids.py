"""Ids of recorded interactions: an id stands there exactly when its interaction was taken."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from recmeta.errors import BusyError
from recmeta.serving import event_ids
from recmeta.serving.event_ids import EventIds


def record(ids: EventIds, names: list[str], *, fails: bool = False) -> set[str]:
    """Which of the names were new; recording them may fail."""

    async def run() -> set[str]:
        async with ids.recording(names) as new:
            if fails:
                raise OSError("the store is down")
            return new

    return asyncio.run(run())


def opened(folder: Path, days: float = 1) -> EventIds:
    return EventIds(folder / "below" / "ids.sqlite", timedelta(days=days))


def test_an_id_is_new_once_in_whichever_process_it_comes(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    assert record(one, ["a", "b", "a"]) == {"a", "b"}
    assert record(other, ["b", "c"]) == {"c"}
    assert record(one, ["a", "b", "c"]) == set()
    one.close()
    other.close()


def test_ids_whose_recording_failed_are_new_again(tmp_path: Path) -> None:
    ids = opened(tmp_path)
    with pytest.raises(OSError, match="down"):
        record(ids, ["a"], fails=True)
    assert record(ids, ["a"]) == {"a"}
    ids.close()


def test_two_workers_that_get_the_same_events_at_once_record_each_once(tmp_path: Path) -> None:
    recorded: list[str] = []

    def worker() -> None:
        ids = opened(tmp_path)
        for batch in range(40):
            recorded.extend(record(ids, [f"{batch}-{number}" for number in range(5)]))
        ids.close()

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recorded) == len(set(recorded)) == 200


def test_old_ids_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = opened(tmp_path, days=1)
    record(ids, ["old"])
    later = time.time() + 2 * 86_400
    monkeypatch.setattr(event_ids.time, "time", lambda: later)
    assert record(ids, ["new"]) == {"new"}
    assert record(ids, ["old", "new"]) == {"old"}
    ids.close()


def test_who_waits_too_long_for_others_is_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_ids, "WAIT", 0.05)
    ids = opened(tmp_path)
    record(ids, ["a"])
    holder = sqlite3.connect(tmp_path / "below" / "ids.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusyError, match="send the events again"):
        record(ids, ["b"])
    holder.execute("ROLLBACK")
    holder.close()
    assert record(ids, ["b"]) == {"b"}
    ids.close()


def test_a_file_that_is_no_database_is_an_error_not_a_loss(tmp_path: Path) -> None:
    ids = opened(tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "ids.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(sqlite3.DatabaseError):
        record(ids, ["a"])
