"""Intervals are a set of instants, kept as the fewest pieces; the ledger keeps them on disk."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recmeta.errors import InputError, IntervalError
from recmeta.events.ledger import Interval, Ledger, add, check_interval, missing, remove

START = datetime(2026, 1, 1, tzinfo=UTC)


def hours(first: int, last: int) -> Interval:
    return Interval(START + timedelta(hours=first), START + timedelta(hours=last))


def covered(intervals: tuple[Interval, ...]) -> set[int]:
    """The hours that the intervals hold, after checking that they are in order and apart."""
    for before, after in pairwise(intervals):
        assert before.end < after.start
    assert not any(interval.empty for interval in intervals)
    return {hour for hour in range(60) if any(i.start <= hours(hour, hour).start < i.end for i in intervals)}


intervals = st.tuples(st.integers(0, 50), st.integers(0, 10)).map(
    lambda pair: hours(pair[0], pair[0] + pair[1])
)


@given(st.lists(st.tuples(st.booleans(), intervals), max_size=12), intervals)
def test_adding_and_removing_intervals_is_adding_and_removing_their_instants(
    changes: list[tuple[bool, Interval]], wanted: Interval
) -> None:
    done: tuple[Interval, ...] = ()
    truth: set[int] = set()
    for adding, interval in changes:
        done = add(done, interval) if adding else remove(done, interval)
        inside = covered((interval,)) if not interval.empty else set()
        truth = truth | inside if adding else truth - inside
        assert covered(done) == truth
    inside = covered((wanted,)) if not wanted.empty else set()
    assert covered(missing(done, wanted)) == inside - truth


@given(st.permutations([hours(0, 5), hours(5, 9), hours(20, 30), hours(25, 40), hours(8, 12)]))
def test_any_order_of_backfill_ends_in_the_same_intervals(order: list[Interval]) -> None:
    done: tuple[Interval, ...] = ()
    for interval in order:
        done = add(done, interval)
    assert done == (hours(0, 12), hours(20, 40))


def test_an_interval_that_starts_after_it_ends_is_refused() -> None:
    with pytest.raises(IntervalError, match="starts before it ends"):
        hours(5, 3)


def test_an_interval_without_a_time_zone_is_refused() -> None:
    with pytest.raises(IntervalError, match="time zone"):
        Interval(datetime(2026, 1, 1), datetime(2026, 1, 2))  # noqa: DTZ001


def test_an_interval_that_ends_in_the_future_is_refused() -> None:
    check_interval(hours(0, 24), now=hours(24, 24).start)
    with pytest.raises(IntervalError, match="has not happened yet"):
        check_interval(hours(0, 24), now=hours(23, 24).start)


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(IntervalError):
        check_interval(hours(5, 5), now=hours(23, 24).start)


def test_days_cover_an_interval_from_midnight_to_midnight() -> None:
    assert hours(5, 30).days() == (Interval.day(date(2026, 1, 1)), Interval.day(date(2026, 1, 2)))
    assert hours(0, 24).days() == (Interval.day(date(2026, 1, 1)),)
    assert hours(7, 7).days() == ()


def test_the_ledger_remembers_each_stage_apart(tmp_path: Path) -> None:
    Ledger(tmp_path).mark("features", hours(0, 24))
    Ledger(tmp_path).mark("labels.reading", hours(0, 48))
    ledger = Ledger(tmp_path)
    assert ledger.done("features") == (hours(0, 24),)
    assert ledger.missing("features", hours(0, 48)) == (hours(24, 48),)
    assert ledger.frontier("labels.reading") == hours(48, 48).start
    assert ledger.frontier("rows.reading") is None
    assert ledger.stages() == ("features", "labels.reading")


def test_reopened_days_are_missing_in_every_stage_and_show_as_gaps(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.mark("features", hours(0, 48))
    ledger.mark("labels.reading", hours(0, 24))
    ledger.reopen(None, hours(10, 30))
    assert ledger.missing("features", hours(0, 48)) == ledger.gaps("features") == (hours(10, 30),)
    assert ledger.done("labels.reading") == (hours(0, 10),)


def test_a_stage_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    for name in ("../features", "", "Features", "a/b", "labels."):
        with pytest.raises(InputError, match="stage's name"):
            Ledger(tmp_path).done(name)


def test_a_ledger_file_that_is_damaged_says_so(tmp_path: Path) -> None:
    Ledger(tmp_path).mark("features", hours(0, 24))
    for text in ('{"done": [["2026-01-01T00:00:00+00:00"]]}', "[]", '{"done": [["x", "y"]]}', "{"):
        (tmp_path / "features.json").write_text(text)
        with pytest.raises(InputError, match=r"features\.json"):
            Ledger(tmp_path).done("features")


def test_marks_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda n=n: Ledger(tmp_path).mark("features", hours(2 * n, 2 * n + 1)))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Ledger(tmp_path).done("features")) == 12
