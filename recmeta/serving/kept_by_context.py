"""Rows of a bundle's items in memory, by context: made for an instant, and kept until another is asked for.

A context that is asked for once in an instant keeps nothing: it would gain nothing, and push others out. Nor
does one beyond the room there is, while all that are kept are asked for too. This module must never know what
a row says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt

from recmeta.features.counters import Float32s

Int64s = npt.NDArray[np.int64]
Make = Callable[[Int64s], Float32s]
"""From places of items, [n], to their rows, [n, W]."""


@dataclass
class _Kept:
    """Of all items: what was made, for which instant, and of which reading."""

    values: Float32s
    instants: Int64s
    changes: Int64s


class KeptByContext:
    """Rows of items by context. Threads may ask: one opens a bundle while another answers."""

    def __init__(self, changes: Int64s, most_bytes: int) -> None:
        """Keep ``most_bytes`` of rows of items; ``changes`` [N] is raised where one must be made again."""
        self._changes, self._most = changes, most_bytes
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._asked: dict[Hashable, int] = {}
        """For which instant a context was last asked for."""
        self._turn = Lock()

    @property
    def contexts(self) -> list[Hashable]:
        """Of which something is kept, the one that was asked for last at the end."""
        return list(self._kept)

    def take(
        self, context: Hashable, places: Int64s, instant: int, width: int, make: Make
    ) -> Float32s | None:
        """Rows of some items at an instant, [n, W]; None where nothing is kept of this context.

        Args:
            context: any name.
            places: of the items, [n]; -1 is the last.
            instant: microseconds since 1970, UTC.
            width: W, the same for a context at all times.
            make: called for what is not kept as of this instant.
        """
        with self._turn:
            again = self._asked.get(context) == instant
            self._asked[context] = instant
            held = self._of(context, width, instant) if again else None
            if held is None:
                return None
            old = (held.instants[places] != instant) | (held.changes[places] != self._changes[places])
            if old.any():
                self._renew(held, places[old], instant, make)
            taken: Float32s = held.values.take(places, axis=0)  # half the time of an index
            return taken

    def fill(self, context: Hashable, places: Int64s, instant: int, width: int, make: Make) -> None:
        """Make rows before anybody asks for them; arguments as of `take`."""
        with self._turn:
            held = self._of(context, width, instant)
            if held is not None:
                self._asked[context] = instant
                self._renew(held, places, instant, make)

    def _renew(self, held: _Kept, places: Int64s, instant: int, make: Make) -> None:
        changes = self._changes[places]  # as they are now: what changes meanwhile is made again
        held.values[places] = make(places)
        held.instants[places], held.changes[places] = instant, changes

    def _of(self, context: Hashable, width: int, instant: int) -> _Kept | None:
        held = self._kept.get(context)
        if held is not None:
            self._kept.move_to_end(context)
            return held
        items = len(self._changes)
        most = self._most // (items * (4 * width + 16))
        while len(self._kept) >= most:
            oldest = next(iter(self._kept), None)
            if oldest is None or self._asked[oldest] == instant:
                return None
            del self._kept[oldest]
        held = self._kept[context] = _Kept(
            np.zeros((items, width), dtype=np.float32),
            np.full(items, -1, dtype=np.int64),
            np.full(items, -1, dtype=np.int64),
        )
        return held
