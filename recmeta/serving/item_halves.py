"""What a bundle's networks make of items alone, in memory: made once for an instant, whoever asks.

It is two thirds of what a network does with a candidate. It must never know a user.
"""

from __future__ import annotations

import numpy as np

from recmeta.features.counters import Float32s
from recmeta.serving.item_memory import ItemMemory
from recmeta.serving.kept_by_context import Int64s, KeptByContext, Make
from recmeta.serving.scorer import KeptItems, Scorer

FILLED_AT_ONCE = 256
"""Items, beforehand: whoever answers meanwhile waits no longer for the interpreter than for this."""


class ItemHalves:
    """Halves of one bundle's items, by context. One thread asks; another may `load` the memory meanwhile."""

    def __init__(self, scorer: Scorer, items: KeptItems, memory: ItemMemory, most_bytes: int) -> None:
        """Make halves with ``scorer`` of the columns in ``memory``; keep ``most_bytes`` of them."""
        self._scorer, self._items, self._memory = scorer, items, memory
        self._kept = KeptByContext(memory.changes, most_bytes)

    @property
    def contexts(self) -> list[str]:
        """Whose halves are kept, the one that was asked for last at the end."""
        return [str(context) for context in self._kept.contexts]

    def take(self, context: str, places: Int64s, instant: int) -> Float32s | None:
        """The halves of some of the items at an instant, [n, H]; None where none are kept.

        Args:
            context: the target.
            places: of the items, [n], 0 or more.
            instant: microseconds since 1970, UTC.
        """
        width = self._scorer.half_width(context)
        if not width:  # no network serves it
            return None
        return self._kept.take(context, places, instant, width, self._maker(context, instant))

    def fill(self, context: str, items: int, instant: int) -> None:
        """Make the halves of the first ``items`` items before anybody asks for them, if any are kept."""
        width = self._scorer.half_width(context)
        for start in range(0, items if width else 0, FILLED_AT_ONCE):
            places = np.arange(start, min(start + FILLED_AT_ONCE, items))
            self._kept.fill(context, places, instant, width, self._maker(context, instant))

    def _maker(self, context: str, instant: int) -> Make:
        def make(places: Int64s) -> Float32s:
            about = self._memory.columns(context, places, instant)
            return self._scorer.half(context, self._items, places, about)

        return make
