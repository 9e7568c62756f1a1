"""The recurrence of the counters: exponentially fading windows, folded one interaction at a time.

A row holds an entity's counters right after an interaction became known. Because every window fades
exponentially, a row can be advanced exactly to *any* later instant: value * 2 ** (-hours / half-life).
So rows are written only where something happened, and no window has an edge at which counts jump.

The nightly build folds millions of interactions with `fold`, the online store folds one with `step`:
`fold` is rounds of `step`, and every step starts from Float32 and ends in Float32, so that neither the
chunks in which a log is processed nor the place where it is processed changes a single bit.

This module knows arrays only; it must never know a file, a data frame or Feast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import numpy as np
import numpy.typing as npt

from recmeta.features.schema import NEVER, ROW_TIME, counter_names

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

MICROSECONDS_PER_HOUR = 3_600_000_000.0
MICROSECONDS_PER_DAY = 86_400_000_000

LARGEST = 1e30
"""A counter stays below this, whatever the weights: Float32 must not overflow to infinity."""

VISIBLE_AFTER = 1
"""Microseconds after which an interaction may be used: a row is valid strictly after it became known."""


@dataclass(frozen=True)
class Occurrences:
    """Interactions of n entities, one a row; instants in microseconds since 1970, UTC."""

    known: Int64s
    """From when it may be used: the later of event time and created time."""
    event: Int64s
    """When it happened, never after ``known``."""
    positive: npt.NDArray[np.bool_]
    weight: Float64s

    def take(self, rows: Int64s) -> Occurrences:
        """The rows with these numbers."""
        return Occurrences(self.known[rows], self.event[rows], self.positive[rows], self.weight[rows])


@cache
def _exponents(half_lives: tuple[timedelta, ...]) -> Float64s:
    return np.array([half_life.total_seconds() / 3600.0 for half_life in half_lives])


def _fading(hours: Float64s, half_lives: Sequence[timedelta]) -> Float64s:
    """2 ** (-hours / half-life), shape [n, half-lives]; exactly 1 at 0 hours."""
    return np.exp2(-hours[:, None] / _exponents(tuple(half_lives))[None, :])


def _advanced(values: Float32s, hours: Float64s, half_lives: Sequence[timedelta]) -> Float64s:
    count = len(half_lives)
    moved = values.astype(np.float64)
    fading = _fading(hours, half_lives)
    moved[:, 2 : 2 + count] *= fading
    moved[:, 2 + count : 2 + 2 * count] *= fading
    ages = moved[:, 2 + 2 * count :]
    np.add(ages, hours[:, None], out=ages, where=ages >= 0)
    return moved


def advance(values: Float32s, hours: Float64s, half_lives: Sequence[timedelta]) -> Float32s:
    """Return counters as they stand ``hours`` after their rows, shape [n, W] like ``values``.

    The same function serves training rows and online requests. ``hours`` must be finite and >= 0.
    """
    return _advanced(values, hours, half_lives).astype(np.float32)


def empty_state(rows: int, half_lives: Sequence[timedelta]) -> Float32s:
    """Counters of entities that nothing has happened to, shape [rows, W]."""
    state = np.zeros((rows, len(counter_names(half_lives))), dtype=np.float32)
    state[:, -2:] = NEVER
    return state


def step(values: Float32s, since: Int64s, new: Occurrences, half_lives: Sequence[timedelta]) -> Float32s:
    """Fold one interaction into each of n counters.

    Args:
        values: counters before, [n, W].
        since: the instant at which each became what it is, [n]; anything where it is still empty.
        new: one interaction for each, [n]; known not before ``since``. What happened before it became
            known (a late interaction) enters already faded by the delay.
        half_lives: of the fading windows.

    Returns:
        Counters right after, [n, W], valid from ``new.known + VISIBLE_AFTER``.
    """
    count = len(half_lives)
    started = values[:, -1] >= 0
    hours = np.where(started, (new.known - since) / MICROSECONDS_PER_HOUR, 0.0)
    moved = _advanced(values, hours, half_lives)
    late = (new.known - new.event) / MICROSECONDS_PER_HOUR
    entering = _fading(late, half_lives) * new.weight[:, None]
    yes = new.positive
    moved[:, 0] += np.where(yes, new.weight, 0.0)
    moved[:, 1] += np.where(yes, 0.0, new.weight)
    moved[:, 2 : 2 + count] += np.where(yes[:, None], entering, 0.0)
    moved[:, 2 + count : 2 + 2 * count] += np.where(yes[:, None], 0.0, entering)
    latest = moved[:, -2]
    moved[:, -2] = np.where(yes & ((latest < 0) | (late < latest)), late, latest)
    moved[:, -1] = np.maximum(moved[:, -1], late)
    return np.minimum(moved, LARGEST).astype(np.float32)


def fold(
    entity: Int64s,
    occurrences: Occurrences,
    state: Float32s,
    since: Int64s,
    half_lives: Sequence[timedelta],
) -> Float32s:
    """Fold a log into counters; return each entity's counters after each of its interactions.

    Works in rounds: the first interaction of every entity at once, then the second, and so on, so that
    the cost is that of numpy and the result that of one interaction after another.

    Args:
        entity: which entity each interaction is of, 0 <= entity < m, [n].
        occurrences: the log, in the order in which it became known, [n].
        state: counters before, [m, W] (`empty_state` for the new).
        since: the instants of those counters, [m].
        half_lives: of the fading windows.

    Returns:
        [n, W].
    """
    state, since = state.copy(), since.copy()
    rows = np.empty((len(entity), state.shape[1]), dtype=np.float32)
    by_entity = np.argsort(entity, kind="stable")
    grouped = entity[by_entity]
    starts = np.flatnonzero(np.diff(grouped, prepend=-1))
    lengths = np.diff(starts, append=len(grouped))
    turn = np.arange(len(grouped)) - np.repeat(starts, lengths)
    by_turn = by_entity[np.argsort(turn, kind="stable")]
    borders = np.cumsum(np.bincount(turn)) if len(turn) else np.empty(0, dtype=np.int64)
    first = 0
    for last in borders.tolist():
        now = by_turn[first:last]
        who = entity[now]
        new = occurrences.take(now)
        rows[now] = state[who] = step(state[who], since[who], new, half_lives)
        since[who] = new.known
        first = last
    return rows


def with_row_time(counters: Float32s, instants: Int64s) -> Float32s:
    """Append `ROW_TIME` to counters: [n, W] and microseconds since 1970 [n] give [n, W + 3]."""
    day, rest = np.divmod(instants, MICROSECONDS_PER_DAY)
    second, microsecond = np.divmod(rest, 1_000_000)
    return np.column_stack([counters, day, second, microsecond]).astype(np.float32)


def split_row_time(values: Float32s) -> tuple[Float32s, Int64s]:
    """Undo `with_row_time`: counters [..., W] and the rows' instants in microseconds since 1970 [...]."""
    time = values[..., -len(ROW_TIME) :].astype(np.int64)
    instants = time[..., 0] * MICROSECONDS_PER_DAY + time[..., 1] * 1_000_000 + time[..., 2]
    return np.ascontiguousarray(values[..., : -len(ROW_TIME)]), instants
