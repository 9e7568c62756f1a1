"""Calibration: a slope and an intercept that turn logits into honest probabilities.

This module knows arrays of logits and labels; it must never know which model made them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.floating]

LEAST_SLOPE = 0.05
"""A calibrated score keeps its ranking; a model without any signal is flattened, never turned round."""


@dataclass(frozen=True)
class Calibration:
    """``slope * logit + intercept``, with a positive slope; (1, 0) changes nothing."""

    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, logits: _Array) -> npt.NDArray[np.float64]:
        """Return the calibrated logits, float64 [n]."""
        return self.slope * np.asarray(logits, dtype=np.float64) + self.intercept


def calibrate(
    logits: _Array, labels: _Array, weights: _Array | None = None, *, prior: float = 5.0
) -> Calibration:
    """Fit Platt's scaling (Platt 1999) by damped Newton steps, with a prior at (1, 0).

    Minimises the weighted log-loss plus ``prior / 2 * ((slope - 1)^2 + intercept^2 / 4)``: with one
    row, or one class only, the answer stays near (1, 0), and with thousands the data decide.

    Args:
        logits: finite, [n]; [0] gives (1, 0).
        labels: 0 or 1, [n].
        weights: from 0 on, [n]; ones where left out.
        prior: how many rows' worth of curvature the prior has.
    """
    x = np.asarray(logits, dtype=np.float64)
    y = np.asarray(labels, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    if not (x.shape == y.shape == w.shape and x.ndim == 1):
        raise ValueError(f"expected three arrays of one length, found {x.shape}, {y.shape} and {w.shape}")
    precision = np.array([prior, prior / 4.0])
    centre = np.array([1.0, 0.0])

    def objective(point: npt.NDArray[np.float64]) -> float:
        z = point[0] * x + point[1]
        return float(
            np.sum(w * (np.logaddexp(0.0, z) - y * z)) + 0.5 * np.sum(precision * (point - centre) ** 2)
        )

    point = centre.copy()
    value = objective(point)
    for _ in range(50):
        z = point[0] * x + point[1]
        p = np.exp(-np.logaddexp(0.0, -z))
        residual, curvature = w * (p - y), w * p * (1.0 - p)
        gradient = np.array([residual @ x, residual.sum()]) + precision * (point - centre)
        hessian = np.array(
            [[curvature @ (x * x), curvature @ x], [curvature @ x, curvature.sum()]]
        ) + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        damping = 1.0
        while damping > 1e-6 and objective(point - damping * step) > value:
            damping /= 2.0
        if damping <= 1e-6:
            break
        point = point - damping * step
        previous, value = value, objective(point)
        if previous - value < 1e-12 * (1.0 + abs(previous)):
            break
    if point[0] < LEAST_SLOPE:
        rows = max(float(w.sum()), 1e-12)
        rate = (float(w @ y) + 0.5) / (rows + 1.0)
        mean = float(w @ x) / rows
        return Calibration(LEAST_SLOPE, float(np.log(rate / (1.0 - rate))) - LEAST_SLOPE * mean)
    return Calibration(float(point[0]), float(point[1]))
