"""Which time intervals a stage has finished: pure interval arithmetic, and its JSON files.

A stage asks what is `missing`, does it, and marks it done; a late event reopens what it touches.
This module must never know what a stage does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from filelock import FileLock

from recmeta import artifacts
from recmeta.errors import InputError, IntervalError

DAY = timedelta(days=1)

_STAGE = re.compile(r"[a-z][a-z0-9_]{0,62}(\.[a-z][a-z0-9_]{0,62})*")


def midnight_before(instant: datetime) -> datetime:
    """The last midnight, UTC, at or before ``instant``."""
    return instant.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def midnight_after(instant: datetime) -> datetime:
    """The first midnight, UTC, at or after ``instant``."""
    before = midnight_before(instant)
    return before if before == instant else before + DAY


@dataclass(frozen=True, order=True)
class Interval:
    """The instants t with start <= t < end; both aware, kept in UTC. It may be empty (start == end).

    Raises:
        IntervalError: an instant without a time zone, or ``start`` after ``end``.
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            instant = getattr(self, name)
            if instant.tzinfo is None:
                raise IntervalError(f"interval {name}: expected an instant with a time zone, found {instant}")
            object.__setattr__(self, name, instant.astimezone(UTC))
        if self.start > self.end:
            raise IntervalError(f"expected an interval that starts before it ends, found {self}")

    def __str__(self) -> str:
        return f"[{self.start.isoformat()}, {self.end.isoformat()})"

    @classmethod
    def day(cls, day: date) -> Interval:
        """The 24 hours of a calendar day, UTC."""
        start = datetime.combine(day, time(), UTC)
        return cls(start, start + DAY)

    @property
    def empty(self) -> bool:
        """Whether no instant lies inside."""
        return self.start == self.end

    def days(self) -> tuple[Interval, ...]:
        """The whole days, UTC, that together cover this interval, in order."""
        if self.empty:
            return ()
        first, last = midnight_before(self.start), midnight_after(self.end)
        return tuple(
            Interval(first + DAY * index, first + DAY * (index + 1)) for index in range((last - first).days)
        )


def check_interval(interval: Interval, now: datetime) -> None:
    """Refuse an interval that holds nothing, or that ends after ``now``.

    Raises:
        IntervalError: empty, or its end lies in the future.
    """
    if interval.empty:
        raise IntervalError(f"expected an interval that starts before it ends, found {interval}")
    if interval.end > now:
        raise IntervalError(
            f"expected an interval that ends by now ({now.astimezone(UTC).isoformat()}), found {interval}: "
            "what has not happened yet cannot be processed"
        )


def add(done: Iterable[Interval], new: Interval) -> tuple[Interval, ...]:
    """The union, as the fewest intervals, in order: neighbours and overlaps become one."""
    merged: list[Interval] = []
    for interval in sorted([*done, new]):
        if interval.empty:
            continue
        if merged and interval.start <= merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, interval.end))
        else:
            merged.append(interval)
    return tuple(merged)


def remove(done: Iterable[Interval], gone: Interval) -> tuple[Interval, ...]:
    """What of ``done`` lies outside ``gone``, in order."""
    left: list[Interval] = []
    for interval in sorted(done):
        if gone.empty or interval.end <= gone.start or gone.end <= interval.start:
            left.append(interval)
            continue
        if interval.start < gone.start:
            left.append(Interval(interval.start, gone.start))
        if gone.end < interval.end:
            left.append(Interval(gone.end, interval.end))
    return tuple(left)


def missing(done: Iterable[Interval], wanted: Interval) -> tuple[Interval, ...]:
    """What of ``wanted`` is not done, as the fewest intervals, in order."""
    left: tuple[Interval, ...] = () if wanted.empty else (wanted,)
    for interval in done:
        left = remove(left, interval)
    return left


class Ledger:
    """The finished intervals of every stage: one small JSON file a stage in ``folder``.

    Reading needs no lock, because files are replaced whole; each change holds one lock for all stages.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, stage: str) -> Path:
        if not _STAGE.fullmatch(stage):
            raise InputError(f"a stage's name must match {_STAGE.pattern}, found {stage!r}")
        return self.folder / f"{stage}.json"

    def _lock(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def stages(self) -> tuple[str, ...]:
        """Names of all stages that ever marked an interval, in alphabetical order."""
        return tuple(sorted(file.stem for file in self.folder.glob("*.json")))

    def done(self, stage: str) -> tuple[Interval, ...]:
        """The finished intervals of a stage, in order, apart from each other."""
        file = self._file(stage)
        if not file.exists():
            return ()
        content = artifacts.read_json(file)
        try:
            return tuple(
                Interval(datetime.fromisoformat(start), datetime.fromisoformat(end))
                for start, end in content["done"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f'{file}: expected {{"done": [[start, end], ...]}}, found {content!r}'
            ) from error

    def _write(self, stage: str, done: Iterable[Interval]) -> None:
        rows = [[interval.start.isoformat(), interval.end.isoformat()] for interval in done]
        artifacts.write_json(self._file(stage), {"done": rows})

    def mark(self, stage: str, interval: Interval) -> None:
        """Note that ``stage`` has finished ``interval``."""
        with self._lock():
            self._write(stage, add(self.done(stage), interval))

    def reopen(self, stage: str | None, interval: Interval) -> None:
        """Note that ``interval`` must be done again, by one stage or (None) by all."""
        with self._lock():
            for name in self.stages() if stage is None else (stage,):
                done = self.done(name)
                left = remove(done, interval)
                if left != done:
                    self._write(name, left)

    def missing(self, stage: str, interval: Interval) -> tuple[Interval, ...]:
        """What of ``interval`` the stage has not finished."""
        return missing(self.done(stage), interval)

    def gaps(self, stage: str) -> tuple[Interval, ...]:
        """What is missing between the first and the last instant that the stage has finished."""
        done = self.done(stage)
        return missing(done, Interval(done[0].start, done[-1].end)) if done else ()

    def frontier(self, stage: str) -> datetime | None:
        """The end of the stage's last finished interval; None before the first."""
        done = self.done(stage)
        return done[-1].end if done else None
