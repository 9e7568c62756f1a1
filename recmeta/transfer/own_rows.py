"""What a new surface's own rows say of a rung: left out by user, in turn, and predicted from the others'.

Evidence of other contexts chooses the rung; this can only take it back. A rung whose predictions of users
that it did not see are surely worse than zero-shot's makes room for the next lower one. The surface's later
data are never used: there are none. This module must never know a context, a file or a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from recmeta.evaluation.cluster_errors import area, interval
from recmeta.evaluation.metrics import row_log_losses
from recmeta.transfer.ladder import RUNGS, Climbed, Labelled, Rung, Step

Floats = npt.NDArray[np.float64]
Fit = Callable[[Step, Labelled], Climbed]
"""Climbs a step on some of the surface's rows."""

MOST_FOLDS = 5
LEAST_FOLDS = 3


@dataclass(frozen=True)
class Loss:
    """A mean log-loss over rows by weight, less another's; and its standard error over users."""

    difference: float
    error: float

    @property
    def worse(self) -> bool:
        """Whether the first is worse by more than the standard error."""
        return self.difference > self.error


@dataclass(frozen=True)
class OwnRows:
    """What cross-validation on the surface's own rows ended with."""

    step: Step
    """The policy's, or with a lower rung."""
    refused: tuple[tuple[Rung, Loss], ...]
    """Rungs that were worse than zero-shot, the highest first, and by how much."""
    loss: float
    """Mean log-loss of the rung that is left."""
    base_rate_loss: float
    against_base_rate: Loss
    auc: float | None
    low: float | None
    high: float | None
    """Of the rung that is left, with its 95 % interval over users; over all folds together."""
    folds: int

    def as_json(self) -> dict[str, Any]:
        """The figures, for a report."""
        names = ("loss", "base_rate_loss", "auc", "low", "high", "folds")
        return {name: getattr(self, name) for name in names}


def judge_on_own_rows(
    step: Step, rows: Labelled, users: Sequence[str], fit: Fit, *, least_positives: int
) -> OwnRows | None:
    """Cross-validate a step and, where it is worse than zero-shot, the lower rungs.

    Args:
        step: what serves unless the rows speak against it.
        rows: the surface's labelled rows, n.
        users: whose each row is, n ids. All rows of a user are in one fold.
        fit: climbs a step on some rows.
        least_positives: below this nothing can be told.

    Returns:
        None where there are fewer than ``least_positives`` rows of either label, or of three users.
    """
    positives = int(rows.label.sum())
    if min(positives, len(rows.label) - positives) < least_positives:
        return None
    cluster = np.unique(np.asarray(users, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
    fold = _folds(cluster, rows.label)
    if fold is None:
        return None
    zero = _left_out(replace(step, rung="zero_shot"), rows, fold, fit)
    zero_losses = row_log_losses(rows.label, zero)
    refused: list[tuple[Rung, Loss]] = []
    for rung in RUNGS[RUNGS.index(step.rung) : 0 : -1]:
        logits = _left_out(replace(step, rung=rung), rows, fold, fit)
        gap = _paired(row_log_losses(rows.label, logits) - zero_losses, rows.weight, cluster)
        if not gap.worse:
            break
        refused.append((rung, gap))
    else:
        rung, logits = "zero_shot", zero
    losses = row_log_losses(rows.label, logits)
    base = row_log_losses(rows.label, _base_rates(rows, fold))
    found = area(rows.label, logits, cluster, rows.weight)
    low, high = (None, None) if found is None else interval(found)
    return OwnRows(
        step=replace(step, rung=rung),
        refused=tuple(refused),
        loss=float(np.average(losses, weights=rows.weight)),
        base_rate_loss=float(np.average(base, weights=rows.weight)),
        against_base_rate=_paired(losses - base, rows.weight, cluster),
        auc=None if found is None else found.value,
        low=low,
        high=high,
        folds=int(fold.max()) + 1,
    )


def _folds(cluster: npt.NDArray[np.int64], label: Floats) -> npt.NDArray[np.int64] | None:
    """A fold for each row: users are dealt out, those with the most positives first; None: too few users."""
    positives = np.bincount(cluster, weights=label)
    engaged = int(np.count_nonzero(positives))
    if engaged < LEAST_FOLDS:
        return None
    folds = min(MOST_FOLDS, engaged)
    order = np.lexsort((-np.bincount(cluster), -positives))
    of_user = np.empty(len(positives), dtype=np.int64)
    of_user[order] = np.arange(len(order)) % folds
    return of_user[cluster]


def _left_out(step: Step, rows: Labelled, fold: npt.NDArray[np.int64], fit: Fit) -> Floats:
    """Logits of each row from a fit that did not see its user."""
    logits = np.empty(len(rows.label))
    for number in range(int(fold.max()) + 1):
        out = fold == number
        left = rows.take(out)
        logits[out] = fit(step, rows.take(~out)).logits(left.scaled, left.dense)
    return logits


def _base_rates(rows: Labelled, fold: npt.NDArray[np.int64]) -> Floats:
    """The logit of the other folds' share of positives; half a positive and a negative added."""
    logits = np.empty(len(rows.label))
    for number in range(int(fold.max()) + 1):
        out = fold == number
        yes = float(rows.weight[~out] @ rows.label[~out]) + 0.5
        no = float(rows.weight[~out] @ (1.0 - rows.label[~out])) + 0.5
        logits[out] = np.log(yes / no)
    return logits


def _paired(gaps: Floats, weight: Floats, cluster: npt.NDArray[np.int64]) -> Loss:
    """The weighted mean of differences of rows, and its standard error over users."""
    mean = float(np.average(gaps, weights=weight))
    pull = np.bincount(cluster, weights=weight * (gaps - mean)) / float(weight.sum())
    users = len(pull)
    return Loss(mean, float(np.sqrt(users / max(users - 1, 1) * np.sum(pull**2))))
