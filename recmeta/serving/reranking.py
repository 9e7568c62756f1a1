"""What a product may want beside the best score: variety, and what is new. It must never know a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

DAY = 86_400_000_000
"""Microseconds."""

POOL = 20
"""Variety chooses among so many of the best items for each one wanted: those below are worth too little."""


def fresher(logits: Floats, first_known: Int64s, instant: int, weight: float) -> Floats:
    """Add to each logit ``weight``, halved with each day since the item became known; [n].

    Args:
        logits: [n].
        first_known: microseconds since 1970, UTC, [n].
        instant: likewise, of the request.
        weight: logits.
    """
    days = np.maximum(instant - first_known, 0) / DAY
    lifted: Floats = logits + weight * np.exp2(-days)
    return lifted


def varied(logits: Floats, categories: Sequence[Sequence[str]], n: int, weight: float) -> Int64s:
    """Order items so that those above say different things: maximal marginal relevance.

    Carbonell and Goldstein (SIGIR 1998), with the overlap of categories (Jaccard) as likeness, and scores on
    the range of the pool.

    Args:
        logits: the best first, [m].
        categories: of each, m lists.
        n: how many are wanted.
        weight: of the likeness to the most alike item above, 0 to 1; the score has the rest.

    Returns:
        Numbers of all m items: the chosen n (or m) first, the others behind as they stood.
    """
    pool = min(len(logits), POOL * n)
    spread = float(logits[0] - logits[pool - 1]) if pool else 0.0
    worth = (logits[:pool] - logits[pool - 1]) / spread if spread > 0 else np.zeros(pool)
    about = [frozenset(found) for found in categories[:pool]]
    likeness = np.zeros(pool)
    left = np.ones(pool, dtype=np.bool_)
    chosen: list[int] = []
    while len(chosen) < min(n, pool):
        gain = np.where(left, (1.0 - weight) * worth - weight * likeness, -np.inf)
        best = int(np.argmax(gain))
        chosen.append(best)
        left[best] = False
        for other in np.flatnonzero(left).tolist():
            together = len(about[best] | about[other])
            shared = len(about[best] & about[other]) / together if together else 0.0
            likeness[other] = max(likeness[other], shared)
    rest = np.setdiff1d(np.arange(len(logits)), chosen)
    return np.concatenate([np.array(chosen, dtype=np.int64), rest])
