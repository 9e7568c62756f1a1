"""Ids become table indices: 0 is the unknown, known ids start at 1 and never move.

This module knows strings and integers; it must never know what an id stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from recmeta.errors import InputError

UNKNOWN = 0


@dataclass(frozen=True)
class Vocabulary:
    """An immutable numbering of ids: ``ids[i]`` has index ``i + 1``; every other id has index 0.

    Raises:
        InputError: an id stands in it twice.
    """

    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse repeated ids: they would make two rows of a table stand for one thing."""
        if len(self._index) != len(self.ids):
            repeated = next(name for name, count in Counter(self.ids).items() if count > 1)
            raise InputError(f"vocabulary: expected each id once, found {repeated!r} more than once")

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.ids, start=1)}

    def __len__(self) -> int:
        """Number of known ids."""
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        """Whether an id is known."""
        return name in self._index

    @property
    def table_size(self) -> int:
        """Rows that a table needs: the known ids and the unknown."""
        return len(self.ids) + 1

    @classmethod
    def from_counts(cls, ids: Iterable[str], min_count: int = 1) -> Vocabulary:
        """Number, in alphabetical order, the ids that occur at least ``min_count`` times."""
        counts = Counter(ids)
        return cls(tuple(sorted(name for name, count in counts.items() if count >= min_count)))

    def extended(self, ids: Iterable[str]) -> Vocabulary:
        """Append the ids that are new, in alphabetical order; known ids keep their index."""
        return Vocabulary((*self.ids, *sorted(set(ids) - set(self.ids))))

    def encode(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the index of each id, int64 [n]."""
        index = self._index
        return np.fromiter((index.get(name, UNKNOWN) for name in ids), dtype=np.int64, count=len(ids))

    def encode_lists(self, lists: Sequence[Sequence[str]], width: int) -> npt.NDArray[np.int64]:
        """Return the indices of the first ``width`` ids of each list, int64 [n, width], padded with 0."""
        encoded = np.zeros((len(lists), width), dtype=np.int64)
        for row, ids in enumerate(lists):
            known = self.encode(ids[:width])
            encoded[row, : len(known)] = known
        return encoded
