"""What a bundle's networks make of items alone, in memory: made once for an instant, whoever asks.

It is two thirds of what a network does with a candidate. It must never know a user.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recmeta.features.counters import Float32s
from recmeta.serving.item_memory import ItemMemory
from recmeta.serving.scorer import KeptItems, Scorer

Int64s = npt.NDArray[np.int64]

FILLED_AT_ONCE = 256
"""Items, beforehand: whoever answers meanwhile waits no longer for the interpreter than for this."""


@dataclass
class _Halves:
    """Of all items in one context: what was made, for which instant, and of which reading."""

    values: Float32s
    instants: Int64s
    changes: Int64s


class ItemHalves:
    """Halves of one bundle's items, by context. One thread asks; another may `load` the memory meanwhile."""

    def __init__(self, scorer: Scorer, kept: KeptItems, memory: ItemMemory, most_bytes: int) -> None:
        """Make halves with ``scorer`` of the columns in ``memory``; keep ``most_bytes`` of them."""
        self._scorer, self._kept, self._memory, self._most = scorer, kept, memory, most_bytes
        self._halves: OrderedDict[str, _Halves] = OrderedDict()
        self._asked: dict[str, int] = {}
        """For which instant a context was last asked for."""

    def take(self, context: str, places: Int64s, instant: int) -> Float32s | None:
        """The halves of some of the kept items at an instant, [n, H]; None where no network serves them.

        Args:
            context: the target.
            places: of the items, [n], 0 or more.
            instant: microseconds since 1970, UTC.
        """
        width = self._scorer.half_width(context)
        if not width:
            return None
        again = self._asked.get(context) == instant
        self._asked[context] = instant
        # Who is asked for once in an instant gains nothing from what is kept, and pushes others out.
        held = self._of(context, width) if again else None
        if held is None:
            return self._made(context, places, instant)
        changes = self._memory.changes[places]
        old = (held.instants[places] != instant) | (held.changes[places] != changes)
        if old.any():
            stale = places[old]
            held.values[stale] = self._made(context, stale, instant)
            held.instants[stale], held.changes[stale] = instant, changes[old]
        taken: Float32s = held.values.take(places, axis=0)  # half the time of an index
        return taken

    @property
    def contexts(self) -> list[str]:
        """Whose halves are kept, the one that was asked for last at the end."""
        return list(self._halves)

    def fill(self, context: str, items: int, instant: int) -> None:
        """Make the halves of the first ``items`` items before anybody asks for them, if any are kept."""
        width = self._scorer.half_width(context)
        held = self._of(context, width) if width else None
        if held is None:
            return
        self._asked[context] = instant
        for start in range(0, items, FILLED_AT_ONCE):
            places = np.arange(start, min(start + FILLED_AT_ONCE, items))
            changes = self._memory.changes[places]
            held.values[places] = self._made(context, places, instant)
            held.instants[places], held.changes[places] = instant, changes

    def _of(self, context: str, width: int) -> _Halves | None:
        held = self._halves.get(context)
        if held is None:
            items = len(self._memory.changes)
            most = self._most // (items * (4 * width + 16))
            if not most:
                return None
            held = self._halves[context] = _Halves(
                np.zeros((items, width), dtype=np.float32),
                np.full(items, -1, dtype=np.int64),
                np.full(items, -1, dtype=np.int64),
            )
            while len(self._halves) > most:
                self._halves.popitem(last=False)
        else:
            self._halves.move_to_end(context)
        return held

    def _made(self, context: str, places: Int64s, instant: int) -> Float32s:
        about = self._memory.made(context, places, instant)
        return self._scorer.half(context, self._kept, places, about)
