"""The recurrence of the counters equals its definition, and no chunking changes a bit of it."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recmeta.features.counters import (
    MICROSECONDS_PER_HOUR,
    Occurrences,
    advance,
    empty_state,
    fold,
    split_row_time,
    step,
    with_row_time,
)
from recmeta.features.schema import NEVER, counter_names, duration_label

HALF_LIVES = (timedelta(days=1), timedelta(days=7), timedelta(days=28))
HOUR = 3_600_000_000
START = 1_700_000_000_000_000


def log(*rows: tuple[int, int, bool, float]) -> Occurrences:
    """(known, event) in hours after START, label, weight."""
    known, event, positive, weight = zip(*rows, strict=True)
    return Occurrences(
        START + np.array(known, dtype=np.int64) * HOUR,
        START + np.array(event, dtype=np.int64) * HOUR,
        np.array(positive, dtype=np.bool_),
        np.array(weight, dtype=np.float64),
    )


occurrences = st.lists(
    st.tuples(
        st.integers(0, 3),  # entity
        st.integers(0, 5_000_000_000),  # microseconds since the one before
        st.integers(0, 200_000_000_000),  # lateness
        st.booleans(),
        st.floats(0.125, 8, width=32),
    ),
    min_size=1,
    max_size=40,
)


def arrays(rows: list[tuple[int, int, int, bool, float]]) -> tuple[np.ndarray, Occurrences]:
    entity, gap, late, positive, weight = zip(*rows, strict=True)
    known = START + np.cumsum(np.array(gap, dtype=np.int64))
    return np.array(entity, dtype=np.int64), Occurrences(
        known, known - np.array(late, dtype=np.int64), np.array(positive), np.array(weight, dtype=np.float64)
    )


@given(occurrences)
@settings(max_examples=60, deadline=None)
def test_a_row_is_the_fading_sum_over_all_that_was_known(
    rows: list[tuple[int, int, int, bool, float]],
) -> None:
    entity, new = arrays(rows)
    found = fold(entity, new, empty_state(4, HALF_LIVES), np.zeros(4, dtype=np.int64), HALF_LIVES)
    for place in range(len(entity)):
        seen = np.flatnonzero(entity[: place + 1] == entity[place])
        hours = (new.known[place] - new.event[seen]) / MICROSECONDS_PER_HOUR
        yes, weight = new.positive[seen], new.weight[seen]
        expected = [weight[yes].sum(), weight[~yes].sum()]
        for side in (yes, ~yes):
            for half_life in HALF_LIVES:
                fading = 2.0 ** (-hours / (half_life.total_seconds() / 3600))
                expected.append((weight * fading)[side].sum())
        expected.append(hours[yes].min() if yes.any() else NEVER)
        expected.append(hours.max())
        np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-5)


@given(occurrences, st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_folding_in_two_parts_gives_the_same_bits(
    rows: list[tuple[int, int, int, bool, float]], cut: int
) -> None:
    entity, new = arrays(rows)
    state, since = empty_state(4, HALF_LIVES), np.zeros(4, dtype=np.int64)
    whole = fold(entity, new, state, since, HALF_LIVES)
    every = np.arange(len(entity))
    parts = []
    for part in (every[:cut], every[cut:]):
        some = new.take(part)
        found = fold(entity[part], some, state, since, HALF_LIVES)
        parts.append(found)
        for place, who in enumerate(entity[part]):
            state[who], since[who] = found[place], some.known[place]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_advancing_twice_is_advancing_once() -> None:
    rows = fold(
        np.zeros(2, dtype=np.int64),
        log((0, 0, True, 1.0), (30, 30, False, 2.0)),
        empty_state(1, HALF_LIVES),
        np.zeros(1, dtype=np.int64),
        HALF_LIVES,
    )[-1:]
    hours = np.array([100.0])
    np.testing.assert_allclose(
        advance(advance(rows, hours * 0.25, HALF_LIVES), hours * 0.75, HALF_LIVES),
        advance(rows, hours, HALF_LIVES),
        rtol=1e-6,
    )


def test_advancing_many_rows_gives_the_bits_of_advancing_each() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((1003, len(counter_names(HALF_LIVES))), dtype=np.float32) * 100
    hours = rng.random(1003) * 10_000
    together = advance(values, hours, HALF_LIVES)
    for row in range(0, 1003, 17):
        alone = advance(values[row : row + 1], hours[row : row + 1], HALF_LIVES)
        assert alone.tobytes() == together[row : row + 1].tobytes()


def test_a_late_interaction_enters_already_faded() -> None:
    day = 24
    new = log((7 * day, 0, True, 1.0))
    row = step(empty_state(1, HALF_LIVES), np.zeros(1, dtype=np.int64), new, HALF_LIVES)[0]
    by_name = dict(zip(counter_names(HALF_LIVES), row.tolist(), strict=True))
    assert by_name["positives"] == 1.0
    assert by_name["positives_7d"] == 0.5
    assert by_name["hours_since_positive"] == 7 * day
    assert by_name["negatives_28d"] == 0.0


def test_what_never_happened_stays_never() -> None:
    state = empty_state(2, HALF_LIVES)
    moved = advance(state, np.array([1.0, 10_000.0]), HALF_LIVES)
    assert moved.tobytes() == state.tobytes()


def test_enormous_weights_stay_finite() -> None:
    new = log(*[(hour, hour, True, 3e38) for hour in range(5)])
    rows = fold(
        np.zeros(5, dtype=np.int64), new, empty_state(1, HALF_LIVES), np.zeros(1, np.int64), HALF_LIVES
    )
    assert np.isfinite(rows).all()


def test_a_row_carries_its_own_instant_to_the_microsecond() -> None:
    instants = np.array([0, 1, 1_462_060_799_999_999, 4_102_444_800_000_001], dtype=np.int64)
    counters = np.arange(8, dtype=np.float32).reshape(4, 2)
    back, times = split_row_time(with_row_time(counters, instants))
    assert times.tolist() == instants.tolist()
    assert back.tobytes() == counters.tobytes()


@pytest.mark.parametrize(
    ("duration", "label"),
    [
        (timedelta(days=7), "7d"),
        (timedelta(hours=36), "36h"),
        (timedelta(minutes=90), "90m"),
        (timedelta(seconds=61), "61s"),
    ],
)
def test_half_lives_are_named_by_their_largest_whole_unit(duration: timedelta, label: str) -> None:
    assert duration_label(duration) == label
