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

from recmeta.episodes.newcomers import Newcomers
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

    context: int
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

    With ``labels`` each task is narrowed to a random subset of the labels that its context has: each
    with probability one half, and at least one. Support and query come from it; where it leaves fewer
    rows than they need, the whole context serves. In our study tasks made of item clusters or of
    unions of labels did harm, so this is for those who know why they want it.

    With ``newcomers`` each task is, with probability ``newcomer_share``, one of a context that pretends to
    be new: its rows look as `Newcomers` says, and the column ``newcomer`` (bool) marks them.

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
        labels: Tensor | None = None,
        every_context: bool = False,
        newcomers: Newcomers | None = None,
        newcomer_share: float = 0.0,
    ) -> None:
        """Index ``rows`` by context and time.

        Args:
            rows: to draw from.
            tasks: a meta-batch.
            support: rows a task; 0 for none.
            query: rows a task.
            steps: meta-batches an epoch.
            seed: of all draws.
            windows: lengths of time among which each task draws.
            mask: bool [n], narrows all tasks to a part of the rows.
            labels: int64 [n], narrows each task to a subset of its own: item categories, event types.
            every_context: put each context into every meta-batch; tasks that are left are drawn as usual.
            newcomers: how rows look if their context is new; left out, no context pretends to be.
            newcomer_share: of the tasks, 0 to 1.

        Raises:
            InputError: no context has the rows that an episode needs, there are fewer tasks than
                contexts where each must be met, or a number is out of range.
        """
        if min(tasks, query, steps) < 1 or support < 0 or not windows:
            raise InputError(
                "sampler: expected tasks, query and steps from 1, support from 0 and a window, "
                f"found tasks={tasks} query={query} steps={steps} support={support} windows={list(windows)}"
            )
        for name, column in (("a mask", mask), ("labels", labels)):
            if column is not None and column.shape != rows.label.shape:
                raise InputError(
                    f"sampler: expected {name} of shape {tuple(rows.label.shape)}, "
                    f"found {tuple(column.shape)}"
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
        if every_context and len(self._sources) > tasks:
            raise InputError(
                f"sampler: expected a task for each of {len(self._sources)} contexts, found tasks={tasks}"
            )
        self._labels = None if labels is None else np.unique(labels.numpy(), return_inverse=True)[1]
        self._every_context = every_context
        self._newcomers, self._newcomer_share = newcomers, newcomer_share
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
        first = np.arange(len(self._sources) if self._every_context else 0)
        drawn = np.searchsorted(
            self._cumulative, generator.random(self._tasks - len(first)), side="right"
        ).clip(max=len(self._sources) - 1)
        chosen = [self._sources[position] for position in (*first, *drawn)]
        if self._labels is not None:
            chosen = [self._narrowed(source, self._labels, generator) for source in chosen]
        episodes = self._episodes(chosen, self._query, generator)
        if self._newcomers is None:
            return self._columns(episodes)
        pretend = torch.from_numpy(generator.random(self._tasks) < self._newcomer_share)
        return self._columns(episodes, pretend)

    def one_of_each(self, query: int, most: int) -> MetaBatch:
        """Return one episode, always the same, of each of the ``most`` largest contexts."""
        largest = sorted(self._sources, key=lambda source: len(source.index), reverse=True)[:most]
        chosen = sorted(largest, key=lambda source: source.context)
        return self._columns(
            self._episodes(chosen, query, np.random.default_rng([self._seed, len(chosen), query]))
        )

    def _episodes(
        self, sources: Sequence[_Source], rows: int, generator: np.random.Generator
    ) -> dict[str, Tensor]:
        """Draw positions of rows: ``support`` and ``query``, int64 [tasks, rows]."""
        support = np.empty((len(sources), self._support), dtype=np.int64)
        query = np.empty((len(sources), rows), dtype=np.int64)
        for task, source in enumerate(sources):
            support[task], query[task] = self._episode(source, rows, generator)
        return {"support": torch.from_numpy(support), "query": torch.from_numpy(query)}

    def _columns(self, episodes: Mapping[str, Tensor], pretend: Tensor | None = None) -> MetaBatch:
        """Take the rows of episodes; those of tasks that ``pretend`` to be new as a newcomer's."""
        batch = {part: self._rows.take_columns(index) for part, index in episodes.items()}
        if pretend is None or self._newcomers is None:
            return batch
        for part, index in episodes.items():
            columns = batch[part]
            if bool(pretend.any()):
                columns["dense"][pretend] = self._newcomers.dense(
                    columns["dense"][pretend], columns["context"][pretend], index[pretend]
                )
            columns["newcomer"] = pretend.unsqueeze(-1).expand(index.shape)
        return batch

    def _narrowed(self, source: _Source, labels: _Indices, generator: np.random.Generator) -> _Source:
        """The rows of a random subset of a source's labels, or the source itself if they are too few."""
        own = labels[source.index]
        present = np.flatnonzero(np.bincount(own))
        taken = np.zeros(present[-1] + 1, dtype=np.bool_)
        taken[present[generator.random(len(present)) < 0.5]] = True
        taken[generator.choice(present)] = True
        kept = taken[own]
        narrow = _source(source.context, source.index[kept], source.time[kept])
        enough = len(narrow.index) >= self._support + self._query
        return narrow if enough and (narrow.first_border > 0 or not self._support) else source

    def _episode(
        self, source: _Source, rows: int, generator: np.random.Generator
    ) -> tuple[_Indices, _Indices]:
        if not self._support:
            return np.empty(0, np.int64), _draw(source.index, rows, generator)
        time = source.time
        border = time[generator.integers(source.first_border, len(time))]
        window = generator.choice(self._windows)
        start, middle, end = np.searchsorted(time, (border - window, border, border + window))
        if start == middle:  # nothing happened for a whole window: the rows just before the gap
            start = max(0, middle - self._support)
        return (
            _draw(source.index[start:middle], self._support, generator),
            _draw(source.index[middle:end], rows, generator),
        )


def _sources(rows: Rows, mask: Tensor | None, *, borders: bool) -> list[_Source]:
    kept = np.arange(len(rows)) if mask is None else np.flatnonzero(mask.numpy())
    context = rows.context.numpy()[kept]
    sources = []
    for value in np.unique(context):
        index = kept[context == value]
        time = rows.time.numpy()[index]
        order = np.argsort(time, kind="stable")
        source = _source(int(value), index[order], time[order])
        if not borders or source.first_border > 0:
            sources.append(source)
    return sources


def _source(context: int, index: _Indices, time: _Indices) -> _Source:
    later = int(np.searchsorted(time, time[0], side="right"))
    return _Source(context, index, time, later if later < len(time) else -1)


def _draw(pool: _Indices, count: int, generator: np.random.Generator) -> _Indices:
    drawn: _Indices = pool[generator.choice(len(pool), size=count, replace=len(pool) < count)]
    return drawn
