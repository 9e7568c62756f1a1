"""Equal-count bins of weighted values, with equal values always in one bin.

Numpy only; must never know what is counted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def equal_count_edges(values: Floats, weights: Floats, bins: int) -> Floats:
    """Return the inner borders of at most ``bins`` bins of about equal weight, ascending.

    A value v lies in bin `bin_of`, the number of borders strictly below v: a border is the largest value
    of the bin to its left. Equal values are never parted, so values with many ties give fewer bins.

    Args:
        values: [n], finite.
        weights: [n], above 0.
        bins: at least 1.
    """
    distinct, inverse = np.unique(values, return_inverse=True)
    weight = np.bincount(inverse, weights=weights, minlength=len(distinct))
    middle = np.cumsum(weight) - weight / 2.0
    # A value stands where the middle of its own weight stands; the last bits of a sum must not matter.
    place = np.floor(bins * middle / max(float(weight.sum()), 1e-300) + 1e-9).astype(np.int64)
    return np.asarray(distinct[:-1][place[:-1] != place[1:]], dtype=np.float64)


def bin_of(values: Floats, edges: Floats) -> npt.NDArray[np.int64]:
    """Return the bin of each value, int64 [n] from 0 to len(edges); beyond the ends is in the end bins."""
    return np.searchsorted(edges, values, side="left").astype(np.int64)
