"""The log of what was served: each list with the probability of every item in it, as Parquet files.

A request only appends a tuple to memory; a thread writes whole files, and a file that could not be written
is counted and forgotten: a full disk costs lines of this log, never an answer. Each process writes files of
its own. What was not yet written when a process is killed is lost, at most some seconds of it; what is there
is whole. This module must never know how a list was chosen, or what became of it.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta import artifacts
from recmeta.events.schema import INSTANT

SCHEMA = pl.Schema(
    {
        "request_id": pl.String(),
        "as_of": INSTANT,
        "context": pl.String(),
        "user_id": pl.String(),
        "bundle": pl.String(),
        "position": pl.Int32(),
        "item_id": pl.String(),
        "propensity": pl.Float64(),
        "score": pl.Float64(),
        "best_score": pl.Float64(),
        "greedy": pl.Boolean(),
    }
)
"""One row a shown item; those of a request follow each other, from position 0. ``best_score`` is of the best
item that was left for this slot, and ``greedy`` says whether that one was shown."""

FILE_LISTS = 5_000
"""Lists in one file, at most; a smaller piece holds the interpreter for less time."""

_log = logging.getLogger(__name__)


class ServedLog:
    """Takes served lists and writes them by and by; one for each process."""

    def __init__(self, folder: Path, *, seconds: float = 5.0, most_waiting: int = 20_000) -> None:
        """Start the writing thread; nothing is made on the disk before there is something to write.

        Args:
            folder: W/served; files go to <folder>/<YYYY-MM-DD>/, by the day on which they are written, UTC.
            seconds: how long a list waits at most, as long as the disk keeps up.
            most_waiting: lists in memory; what comes while they are that many is dropped and counted.
        """
        self._folder = folder
        self._seconds = seconds
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._writing = Lock()
        self._wake = Event()
        self._stopped = False
        self._files = 0
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.written = 0
        self.dropped = 0
        self._thread = Thread(target=self._run, name="served-log", daemon=True)
        self._thread.start()

    def append(
        self,
        context: str,
        user_id: str,
        items: Sequence[str],
        propensities: Sequence[float] | npt.NDArray[Any],
        scores: Sequence[float] | npt.NDArray[Any],
        best_scores: Sequence[float] | npt.NDArray[Any],
        greedy: Sequence[bool] | npt.NDArray[Any],
        *,
        bundle: str,
        as_of: datetime,
        request_id: str | None = None,
    ) -> None:
        """Take one served list, from the top; never fails, never waits for the disk.

        Sequences are kept as they are until they are written: the caller must not change them any more.
        ``as_of`` is an instant with a zone. Without a ``request_id`` the list gets one when it is written.
        """
        if self._stopped or len(self._waiting) >= self._most_waiting:
            self.dropped += 1
            return
        self._waiting.append(
            (request_id, as_of, context, user_id, bundle, items, propensities, scores, best_scores, greedy)
        )
        if len(self._waiting) == FILE_LISTS:
            self._wake.set()

    def flush(self) -> None:
        """Write what waits now; returns when it is on the disk, or dropped because it could not be."""
        with self._writing:
            while self._waiting:
                count = min(FILE_LISTS, len(self._waiting))
                self._write([self._waiting.popleft() for _ in range(count)])

    def stop(self) -> None:
        """Write what waits and end the thread; what is appended after this is dropped."""
        self._stopped = True
        self._wake.set()
        self._thread.join()
        self.flush()

    def __enter__(self) -> ServedLog:
        """Return the log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(self._seconds)
            self._wake.clear()
            self.flush()

    def _write(self, taken: list[tuple[Any, ...]]) -> None:
        now = datetime.now(UTC)
        name = f"{now:%H%M%S}-{self._name}-{self._files:06d}"
        try:
            rows = _table(taken, name)
            with artifacts.replacing(self._folder / f"{now:%Y-%m-%d}" / f"{name}.parquet") as temporary:
                rows.write_parquet(temporary, compression="zstd")
        except Exception as error:  # noqa: BLE001  (whatever a request gave or the disk says: lines of a log)
            self.dropped += len(taken)
            _log.warning("served log: %d lists were dropped: %s", len(taken), type(error).__name__)
            return
        self._files += 1
        self.written += len(taken)


def _table(taken: list[tuple[Any, ...]], name: str) -> pl.DataFrame:
    """Columns are joined end to end, never row by row: this shares the interpreter with requests."""
    request_ids, instants, contexts, users, bundles, items, *numbers = zip(*taken, strict=True)
    lengths = np.fromiter(map(len, items), dtype=np.int64, count=len(items))
    of_request = np.repeat(np.arange(len(items)), lengths)
    requests = pl.DataFrame(
        {
            "request_id": [given or f"{name}-{number}" for number, given in enumerate(request_ids)],
            "as_of": pl.Series(instants, dtype=INSTANT),
            "context": contexts,
            "user_id": users,
            "bundle": bundles,
        }
    )
    propensity, score, best_score, greedy = (np.concatenate(column) for column in numbers)
    shown = {
        "position": np.arange(len(of_request)) - np.repeat(np.cumsum(lengths) - lengths, lengths),
        "item_id": list(chain.from_iterable(items)),
        "propensity": propensity,
        "score": score,
        "best_score": best_score,
        "greedy": greedy.astype(np.bool_),
    }
    return requests[of_request].with_columns(pl.DataFrame(shown).get_columns()).cast(SCHEMA)


def scan_served(folder: Path) -> pl.LazyFrame:
    """All lists that were served, as `SCHEMA`, in no order; whole files only."""
    files = sorted(folder.glob("????-??-??/*.parquet"))
    return pl.scan_parquet(files, schema=SCHEMA) if files else pl.LazyFrame(schema=SCHEMA)
