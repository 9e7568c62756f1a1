"""Dense rows of requests in three parts: what is of whoever asks, once; of each item; and of both together.

Half of a row's columns are the same for all items of a request, and the other half for all who ask about an
item. Networks take the parts as they are; trees and stacks read whole rows. This module must never know what
a column means beyond its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from recmeta.features.schema import ITEM, USER

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


class Split:
    """Which columns of a dense row are of whoever asks, of the item, and of the two together."""

    def __init__(self, width: int, request: Sequence[int], about: Sequence[int]) -> None:
        """Split ``width`` columns; ``request`` are of whoever asks, ``about`` of the item, both ascending."""
        self.width = width
        self.request: Int64s = np.array(request, dtype=np.int64)
        self.about: Int64s = np.array(about, dtype=np.int64)
        self.pair: Int64s = np.setdiff1d(np.arange(width), np.concatenate([self.request, self.about]))

    @classmethod
    def of_names(cls, names: Sequence[str]) -> Split:
        """Split rows of the columns of a `FeatureSpace`, or some of them."""
        parts = [name.split(":") for name in names]
        return cls(
            len(names),
            [index for index, part in enumerate(parts) if len(part) == 1 or part[1] == USER],
            [index for index, part in enumerate(parts) if len(part) > 1 and part[1] == ITEM],
        )

    def __eq__(self, other: object) -> bool:
        """Whether rows are split alike."""
        return isinstance(other, Split) and (
            self is other
            or (self.width, self.request.tobytes(), self.about.tobytes())
            == (other.width, other.request.tobytes(), other.about.tobytes())
        )

    __hash__ = None  # type: ignore[assignment]

    def rows(self, whole: Float32s, asker: Int64s) -> DenseRows:
        """Split whole rows [n, width], each of the asker whose place stands in ``asker``, ascending, [n]."""
        first = np.flatnonzero(np.diff(asker, prepend=-1))
        request = whole[np.ix_(first, self.request)]
        return DenseRows(
            request, whole[:, self.about], whole[:, self.pair], np.arange(len(whole)), asker, self
        )


class DenseRows:
    """Dense rows of n items, and of A askers of at least one item each."""

    def __init__(
        self,
        request: Float32s,
        about: Float32s | Callable[[Int64s], Float32s],
        pair: Float32s,
        met: Int64s,
        asker: Int64s,
        split: Split,
    ) -> None:
        """Put rows together of their parts.

        Args:
            request: [A, R].
            about: [n, I]; or what makes it of some rows, by their numbers, when it is first asked for.
            pair: [p, P]; those who never met share one row.
            met: which row of ``pair`` is of each item, [n].
            asker: who asks about each item: a place among the askers, ascending, [n].
            split: which columns these are.
        """
        self.request, self._about, self.pair = request, about, pair
        self.met, self.asker, self.split = met, asker, split

    def __len__(self) -> int:
        """Number of items."""
        return len(self.asker)

    @cached_property
    def about(self) -> Float32s:
        """What is of the items, [n, I]."""
        return self._about(np.arange(len(self))) if callable(self._about) else self._about

    @cached_property
    def whole(self) -> Float32s:
        """[n, F]."""
        whole = np.empty((len(self), self.split.width), dtype=np.float32)
        whole[:, self.split.request] = self.request[self.asker]
        whole[:, self.split.about] = self.about
        whole[:, self.split.pair] = self.pair[self.met]
        return whole

    def take(self, chosen: Int64s) -> DenseRows:
        """Some of the items of a single asker."""
        made = self._about

        def about(rows: Int64s) -> Float32s:
            return made(chosen[rows]) if callable(made) else made[chosen[rows]]

        met, asker = self.met[chosen], self.asker[chosen]
        return DenseRows(self.request, about, self.pair, met, asker, self.split)


def with_stranger(stranger: Float32s, pairs: Float32s, met: Int64s, items: int) -> tuple[Float32s, Int64s]:
    """What `DenseRows` takes of pairs of which few have met.

    Args:
        stranger: what is of those who never met, [P].
        pairs: what is of the others, [m, P].
        met: the items of the others, [m].
        items: n.

    Returns:
        Its ``pair`` and ``met``, [1 + m, P] and [n].
    """
    places = np.zeros(items, dtype=np.int64)
    places[met] = np.arange(1, len(pairs) + 1)
    return np.concatenate([stranger[None], pairs]), places


def joined(parts: Sequence[DenseRows]) -> DenseRows:
    """The rows of several, one after another, each with askers of its own; all are split alike."""
    if len(parts) == 1:
        return parts[0]

    def after(places: Sequence[Int64s], sizes: Sequence[int]) -> Int64s:
        first = np.cumsum([0, *sizes[:-1]]).tolist()
        return np.concatenate([place + start for place, start in zip(places, first, strict=True)])

    def about(rows: Int64s) -> Float32s:
        made: Float32s = np.concatenate([part.about for part in parts])[rows]
        return made

    return DenseRows(
        np.concatenate([part.request for part in parts]),
        about,
        np.concatenate([part.pair for part in parts]),
        after([part.met for part in parts], [len(part.pair) for part in parts]),
        after([part.asker for part in parts], [len(part.request) for part in parts]),
        parts[0].split,
    )
