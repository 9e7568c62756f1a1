"""Episodes: a support set and, strictly later in time, a query set, both drawn from one task.

A task is a context in a window of time. This module draws rows; it must never know what is learnt
from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recmeta.episodes.rows import Rows
from recmeta.errors import InputError

MetaBatch = dict[str, dict[str, Tensor]]
"""``support`` and ``query``, each the columns of `Rows` with the leading axes [tasks, rows]."""

DEFAULT_WINDOWS = (timedelta(days=7), timedelta(days=28), timedelta(days=112))
"""A week, four weeks, a season: tasks differ in how fast behaviour drifts between support and query."""

_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Source:
    """The rows of one context in the order of time."""

    index: _Indices
    time: _Indices
    first_border: int
    """Position of the first row that has an earlier row; -1 where all rows share one instant."""


class EpisodeSampler:
    """An endless task distribution, handed out ``steps`` meta-batches an epoch.

    Each of the ``tasks`` of a meta-batch is drawn anew: a context, with probability proportional to
    the square root of its rows (so that a context a thousand times larger is met about thirty times
    more often); a border in time, the instant of one of its rows; a window length. Support rows come
    from the window that ends just before the border, query rows from the window that starts at it.
    Too few rows are drawn with repetition. With ``support=0`` there is no border, and query rows are
    drawn from the context's whole span.

    Batch ``b`` depends on ``(seed, b)`` only. So the state is one number, and a run that was stopped
    anywhere goes on bit by bit where it was.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        tasks: int,
        support: int,
        query: int,
        steps: int,
        seed: int,
        windows: Sequence[timedelta] = DEFAULT_WINDOWS,
        mask: Tensor | None = None,
    ) -> None:
        """Index ``rows`` by context and time; ``mask`` (bool [n]) narrows the tasks to a part of them.

        Raises:
            InputError: no context has the rows that an episode needs, or a number is out of range.
        """
        if min(tasks, query, steps) < 1 or support < 0 or not windows:
            raise InputError(
                "sampler: expected tasks, query and steps from 1, support from 0 and a window, "
                f"found tasks={tasks} query={query} steps={steps} support={support} windows={list(windows)}"
            )
        if mask is not None and mask.shape != rows.label.shape:
            raise InputError(
                f"sampler: expected a mask of shape {tuple(rows.label.shape)}, found {tuple(mask.shape)}"
            )
        self._rows = rows
        self._tasks, self._support, self._query, self._steps = tasks, support, query, steps
        self._seed = seed
        self._windows = np.array([window // timedelta(microseconds=1) for window in windows], dtype=np.int64)
        self._sources = _sources(rows, mask, borders=support > 0)
        if not self._sources:
            kept = len(rows) if mask is None else int(mask.sum())
            needed = "two rows at different instants" if support else "one row"
            raise InputError(f"sampler: expected a context with at least {needed}, found none in {kept} rows")
        roots = np.sqrt([len(source.index) for source in self._sources])
        self._cumulative = np.cumsum(roots / roots.sum())
        self._drawn = 0

    def __len__(self) -> int:
        """Meta-batches an epoch."""
        return self._steps

    def __iter__(self) -> Iterator[MetaBatch]:
        """Yield what is left of the current epoch, or a new epoch where it had ended."""
        end = (self._drawn // self._steps + 1) * self._steps
        while self._drawn < end:
            batch = self.batch(self._drawn)
            self._drawn += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches drawn so far."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batches that ``state`` counts."""
        self._drawn = int(state["drawn"])

    def batch(self, number: int) -> MetaBatch:
        """Return meta-batch ``number``, counted from 0 over all epochs."""
        generator = np.random.default_rng([self._seed, number])
        chosen = np.searchsorted(self._cumulative, generator.random(self._tasks), side="right")
        support = np.empty((self._tasks, self._support), dtype=np.int64)
        query = np.empty((self._tasks, self._query), dtype=np.int64)
        for task, position in enumerate(chosen):
            source = self._sources[min(int(position), len(self._sources) - 1)]
            support[task], query[task] = self._episode(source, generator)
        return {
            "support": self._rows.take_columns(torch.from_numpy(support)),
            "query": self._rows.take_columns(torch.from_numpy(query)),
        }

    def _episode(self, source: _Source, generator: np.random.Generator) -> tuple[_Indices, _Indices]:
        if not self._support:
            return np.empty(0, np.int64), _draw(source.index, self._query, generator)
        time = source.time
        border = time[generator.integers(source.first_border, len(time))]
        window = generator.choice(self._windows)
        start, middle, end = np.searchsorted(time, (border - window, border, border + window))
        if start == middle:  # nothing happened for a whole window: the rows just before the gap
            start = max(0, middle - self._support)
        return (
            _draw(source.index[start:middle], self._support, generator),
            _draw(source.index[middle:end], self._query, generator),
        )


def _sources(rows: Rows, mask: Tensor | None, *, borders: bool) -> list[_Source]:
    kept = np.arange(len(rows)) if mask is None else np.flatnonzero(mask.numpy())
    context = rows.context.numpy()[kept]
    sources = []
    for value in np.unique(context):
        index = kept[context == value]
        time = rows.time.numpy()[index]
        order = np.argsort(time, kind="stable")
        time = time[order]
        later = int(np.searchsorted(time, time[0], side="right"))
        source = _Source(index[order], time, later if later < len(time) else -1)
        if not borders or source.first_border > 0:
            sources.append(source)
    return sources


def _draw(pool: _Indices, count: int, generator: np.random.Generator) -> _Indices:
    drawn: _Indices = pool[generator.choice(len(pool), size=count, replace=len(pool) < count)]
    return drawn
