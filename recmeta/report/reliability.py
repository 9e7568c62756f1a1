"""Do probabilities mean what they say? Observed against predicted rates in equal-count bins.

This module knows arrays only; it must never know which model made the probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from recmeta.errors import InputError
from recmeta.evaluation.metrics import as_keys, as_labels, as_numbers, as_weights
from recmeta.report.bins import Floats, bin_of, equal_count_edges

_Z = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""

_CERTAIN = 1e-12
"""Probabilities are kept this far from 0 and 1 in a log-loss: float64 has no room beyond."""


def reliability(
    label: npt.ArrayLike,
    probability: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bins: int = 10,
    *,
    user: npt.ArrayLike | None = None,
) -> dict[str, Any]:
    """Compare predicted with observed rates.

    Args:
        label: [n] of 0 and 1.
        probability: [n], from 0 to 1.
        weight: [n], above 0; None for equal weights.
        bins: how many bins of equal weight, at most; rows of equal probability stay together.
        user: [n] keys of any type. Rows of one user are not independent: with them intervals are as wide
            as the users make them, and without them rows count as independent.

    Returns:
        ``bins``: in ascending order, each with the weighted means ``predicted`` and ``observed``, the 95 %
        interval ``low`` to ``high`` of the observed rate, and its ``rows``; ``rows``, ``positives``,
        ``predicted`` and ``observed`` of all; ``log_loss`` in nats, and ``base_rate_log_loss``, that of
        saying the observed rate of every row; ``error``, the mean distance of predicted from observed over
        the bins, by weight. Without rows ``bins`` is empty and figures are None.

    Intervals are Wilson's (1927) with the effective number of rows: Kish's for weights, divided by the
    design effect where users are given (the variance of the rate between users over that between rows).

    Raises:
        InputError: shapes differ, or a value is not allowed.
    """
    labels = as_labels(label)
    rows = len(labels)
    predicted = as_numbers("probabilities", probability, rows)
    if np.any((predicted < 0) | (predicted > 1)):
        raise InputError(f"probabilities: expected 0 to 1, found {predicted.min()} to {predicted.max()}")
    if bins < 1:
        raise InputError(f"bins: expected at least 1, found {bins}")
    weights = as_numbers("weights", as_weights(weight, rows), rows, positive=True)
    users = None if user is None else as_keys("users", user, rows)
    if not rows:
        figures = ("predicted", "observed", "log_loss", "base_rate_log_loss", "error")
        return {"bins": [], "rows": 0, "positives": 0, **dict.fromkeys(figures)}
    place = bin_of(predicted, equal_count_edges(predicted, weights, bins))
    found = []
    for number in range(int(place.max()) + 1):
        chosen = place == number
        found.append(
            _bin(labels[chosen], predicted[chosen], weights[chosen], None if users is None else users[chosen])
        )
    share = np.bincount(place, weights=weights) / weights.sum()
    gaps = np.array([abs(each["predicted"] - each["observed"]) for each in found])
    rate = float(weights @ labels / weights.sum())
    return {
        "bins": found,
        "rows": rows,
        "positives": int(labels.sum()),
        "predicted": float(weights @ predicted / weights.sum()),
        "observed": rate,
        "log_loss": _log_loss(labels, predicted, weights),
        "base_rate_log_loss": _log_loss(labels, np.full(rows, rate), weights),
        "error": float(share @ gaps),
    }


def _bin(
    labels: Floats, predicted: Floats, weights: Floats, users: npt.NDArray[np.int64] | None
) -> dict[str, float | int]:
    total = weights.sum()
    observed = float(weights @ labels / total)
    effective = _effective_rows(labels, weights, observed, users)
    low, high = wilson(observed, effective)
    return {
        "predicted": float(weights @ predicted / total),
        "observed": observed,
        "low": low,
        "high": high,
        "rows": len(labels),
    }


def _effective_rows(
    labels: Floats, weights: Floats, rate: float, users: npt.NDArray[np.int64] | None
) -> float:
    kish = float(weights.sum() ** 2 / (weights @ weights))
    if users is None:
        return kish
    keys = np.unique(users, return_inverse=True)[1]
    count = int(keys.max()) + 1
    residuals = np.bincount(keys, weights=weights * (labels - rate))
    if count < 2 or not np.any(residuals):  # one user, or all labels alike: users say how much was seen
        return min(kish, float(count))
    variance = float(residuals @ residuals) / float(weights.sum()) ** 2 * count / (count - 1)
    return max(1.0, min(kish, rate * (1.0 - rate) / variance))


def wilson(rate: float, rows: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a rate that was seen on ``rows`` independent rows (any number > 0)."""
    square = _Z * _Z / rows
    centre = (rate + square / 2.0) / (1.0 + square)
    reach = _Z * float(np.sqrt(rate * (1.0 - rate) / rows + square / (4.0 * rows))) / (1.0 + square)
    # At a rate of 0 or 1 the interval touches it exactly; rounding must not move it past.
    return max(0.0, min(rate, centre - reach)), min(1.0, max(rate, centre + reach))


def _log_loss(labels: Floats, predicted: Floats, weights: Floats) -> float:
    safe = np.clip(predicted, _CERTAIN, 1.0 - _CERTAIN)
    losses = -(labels * np.log(safe) + (1.0 - labels) * np.log1p(-safe))
    return float(weights @ losses / weights.sum())
