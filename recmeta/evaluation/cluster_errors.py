"""How sure an AUC is when rows of one user go together, in closed form: means and differences of many AUCs.

The area is a mean over pairs; each row's share in it (DeLong et al. 1988) is summed by user, and the spread
of those sums is its error. A bootstrap says the same and takes a thousand times as long, which matters where
hundreds of curves' points are compared. Numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recmeta.evaluation.metrics import as_keys, as_labels, as_numbers, as_weights, ranks_among

Floats = npt.NDArray[np.float64]

Z95 = 1.959964


@dataclass(frozen=True)
class Area:
    """An AUC, and how much each user moves it: ``shares`` [users] sum to zero."""

    value: float
    shares: Floats

    @property
    def error(self) -> float:
        """Standard error over users."""
        users = len(self.shares)
        return float(np.sqrt(users / max(users - 1, 1) * np.sum(self.shares**2)))


def area(
    label: npt.ArrayLike, score: npt.ArrayLike, user: npt.ArrayLike, weight: npt.ArrayLike | None = None
) -> Area | None:
    """Return the AUC of scores [n] with each user's share in its error; None where one label is missing."""
    labels = as_labels(label)
    scores = as_numbers("scores", score, len(labels))
    weights = as_weights(weight, len(labels))
    users = as_keys("users", user, len(labels))
    positive = labels == 1
    if not len(labels) or positive.all() or not positive.any():
        return None
    above = _shares_below(scores[~positive], weights[~positive], scores[positive])
    below = _shares_below(scores[positive], weights[positive], scores[~positive])
    value = float(np.average(above, weights=weights[positive]))
    pull = np.empty(len(labels))
    pull[positive] = weights[positive] * (above - value) / weights[positive].sum()
    pull[~positive] = weights[~positive] * ((1.0 - below) - value) / weights[~positive].sum()
    return Area(value, np.bincount(users, weights=pull).astype(np.float64))


def _shares_below(others: Floats, weights: Floats, scores: Floats) -> Floats:
    """For each score the weighted share of ``others`` below it; ties count half."""
    order = np.argsort(others, kind="stable")
    left, right = ranks_among(others[order], scores)
    mass = np.concatenate([[0.0], np.cumsum(weights[order])])
    shares: Floats = (mass[left] + mass[right]) / (2.0 * mass[-1])
    return shares


def mean_area(areas: Sequence[Area]) -> Area:
    """The mean of AUCs on the same rows, such as those of several draws."""
    return Area(float(np.mean([one.value for one in areas])), np.mean([one.shares for one in areas], axis=0))


def difference(first: Area, second: Area) -> Area:
    """``first`` minus ``second``, on the same rows: paired."""
    return Area(first.value - second.value, first.shares - second.shares)


def interval(found: Area, *, between: float = 0.0) -> tuple[float, float]:
    """The 95 % interval; ``between`` is a further variance of the mean, such as that over draws."""
    half = Z95 * float(np.sqrt(found.error**2 + between))
    return found.value - half, found.value + half
