"""Dense rows of requests in two parts: what is of whoever asks, once, and what is of each item.

Half of a row's columns are the same for all items of a request. Networks take the parts as they are;
trees and stacks read whole rows. This module must never know what a column means beyond its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from recmeta.features.schema import USER

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


def request_columns(names: Sequence[str]) -> tuple[int, ...]:
    """Where the columns stand that say who asks and when: they are of no item.

    Args:
        names: of the columns of a dense row.
    """
    parts = [name.split(":") for name in names]
    return tuple(index for index, part in enumerate(parts) if len(part) == 1 or part[1] == USER)


class Split:
    """Which columns of a dense row are of whoever asks, and which of the item."""

    def __init__(self, width: int, request: Sequence[int]) -> None:
        """Split rows of ``width`` columns; ``request`` are those of whoever asks, ascending."""
        self.width = width
        self.request: Int64s = np.array(request, dtype=np.int64)
        self.items: Int64s = np.setdiff1d(np.arange(width), self.request)

    def within_items(self, columns: Int64s) -> Int64s:
        """Where some of the columns of the item stand among these."""
        return np.searchsorted(self.items, columns)

    def rows(self, whole: Float32s, asker: Int64s) -> DenseRows:
        """Split whole rows [n, width], each of the asker whose place stands in ``asker``, ascending, [n]."""
        first = np.flatnonzero(np.diff(asker, prepend=-1))
        return DenseRows(whole[np.ix_(first, self.request)], whole[:, self.items], asker, self)


@dataclass(frozen=True)
class DenseRows:
    """Dense rows of n items, and of A askers of at least one item each."""

    request: Float32s
    """[A, R]."""
    items: Float32s
    """[n, F - R]."""
    asker: Int64s
    """Who asks about each item: a place among the askers, ascending, [n]."""
    split: Split

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    @cached_property
    def whole(self) -> Float32s:
        """[n, F]."""
        whole = np.empty((len(self), self.split.width), dtype=np.float32)
        whole[:, self.split.request] = self.request[self.asker]
        whole[:, self.split.items] = self.items
        return whole

    def column(self, index: int) -> Float32s:
        """One column of `whole`, [n]."""
        place = int(np.searchsorted(self.split.items, index))
        if place < len(self.split.items) and self.split.items[place] == index:
            return self.items[:, place]
        found: Float32s = self.request[self.asker, int(np.searchsorted(self.split.request, index))]
        return found

    def take(self, chosen: Int64s) -> DenseRows:
        """Some of the items of a single asker."""
        return DenseRows(self.request, self.items[chosen], self.asker[chosen], self.split)
