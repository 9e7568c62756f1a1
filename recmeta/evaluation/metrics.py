"""AUC, log-loss, NDCG and hit rate of binary labels, on arrays; what they mean at their edges.

Scores are logits where log-loss is asked for, and anything that orders rows elsewhere. Numpy only: this
module must never know a context, a model, a file, or how sure a figure is (that is `resampling`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from recmeta.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def as_labels(label: npt.ArrayLike) -> FloatArray:
    """Return labels as float64 [n] of 0 and 1.

    Raises:
        InputError: another shape, or another value.
    """
    found = np.asarray(label, dtype=np.float64)
    if found.ndim != 1:
        raise InputError(f"labels: expected shape [n], found {list(found.shape)}")
    wrong = int(np.count_nonzero((found != 0) & (found != 1)))
    if wrong:
        raise InputError(f"labels: expected 0 or 1, found something else in {wrong} of {len(found)} rows")
    return found


def as_numbers(name: str, values: npt.ArrayLike, rows: int, *, positive: bool = False) -> FloatArray:
    """Return finite float64 [rows].

    Raises:
        InputError: another shape, NaN or infinity, or (where ``positive``) a number that is not above 0.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (rows,):
        raise InputError(f"{name}: expected shape [{rows}], found {list(found.shape)}")
    wrong = int(np.count_nonzero(~np.isfinite(found)))
    if wrong:
        raise InputError(f"{name}: expected finite numbers, found NaN or infinity in {wrong} of {rows} rows")
    if positive and np.any(found <= 0):
        raise InputError(f"{name}: expected numbers above 0, found {found.min()}")
    return found


def as_weights(weight: npt.ArrayLike | None, rows: int) -> FloatArray:
    """Return weights as float64 [rows], 1 where ``weight`` is None; `InputError` as by `as_numbers`."""
    return np.ones(rows) if weight is None else as_numbers("weights", weight, rows, positive=True)


def as_keys(name: str, values: npt.ArrayLike, rows: int) -> IntArray:
    """Return clusters or groups as consecutive int64 [rows] from 0, whatever they were keyed by.

    Raises:
        InputError: another shape.
    """
    found: npt.NDArray[Any] = np.asarray(values)
    if found.shape != (rows,):
        raise InputError(f"{name}: expected shape [{rows}], found {list(found.shape)}")
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def auc(label: npt.ArrayLike, score: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float | None:
    """Return the weighted area under the ROC curve; a tie between a positive and a negative counts half.

    None where one of the two labels does not occur.

    Args:
        label: [n] of 0 and 1.
        score: [n], finite; only the order counts.
        weight: [n], above 0; None for equal weights.

    Raises:
        InputError: shapes differ, or a value is not allowed.
    """
    labels = as_labels(label)
    scores = as_numbers("scores", score, len(labels))
    weights = as_weights(weight, len(labels))
    positive = labels == 1
    if positive.all() or not positive.any():
        return None
    order = np.argsort(scores[~positive], kind="stable")
    below = np.concatenate(([0.0], np.cumsum(weights[~positive][order])))
    left, right = ranks_among(scores[~positive][order], scores[positive])
    mass = 0.5 * (below[left] + below[right])
    return float(weights[positive] @ mass / (weights[positive].sum() * below[-1]))


def ranks_among(ascending: FloatArray, scores: FloatArray) -> tuple[IntArray, IntArray]:
    """Return how many of ``ascending`` lie strictly below each score, and how many at or below it."""
    left = np.searchsorted(ascending, scores, side="left").astype(np.int64)
    right = np.searchsorted(ascending, scores, side="right").astype(np.int64)
    return left, right


def row_log_losses(label: npt.ArrayLike, logit: npt.ArrayLike) -> FloatArray:
    """Return -log p(label) of each row in nats, float64 [n], without ever forming a probability.

    Raises:
        InputError: shapes differ, or a value is not allowed.
    """
    labels = as_labels(label)
    logits = as_numbers("logits", logit, len(labels))
    return np.logaddexp(0.0, logits) - labels * logits


def log_loss(label: npt.ArrayLike, logit: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float | None:
    """Return the weighted mean of -log p(label) in nats; None where there are no rows.

    Raises:
        InputError: shapes differ, or a value is not allowed.
    """
    losses = row_log_losses(label, logit)
    weights = as_weights(weight, len(losses))
    return float(weights @ losses / weights.sum()) if len(losses) else None


def ranking_in_groups(
    label: npt.ArrayLike, score: npt.ArrayLike, group: npt.ArrayLike, *, k: int = 10, seed: int = 0
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Rank the rows of each group, and say how well its positives stand among the first ``k``.

    Ties are broken by a seeded generator, so that a constant score earns what chance earns and never
    what the order of the file happens to hold. Groups that lack one of the two labels are left out:
    every ranking of them is perfect, or hopeless.

    Args:
        label: [n] of 0 and 1.
        score: [n], finite; higher stands first.
        group: [n] keys of any type; one ranking list each.
        k: length of the list that is looked at.
        seed: of the tie-breaking.

    Returns:
        For each group that counts: the index of one of its rows (int64 [g]), NDCG@k with binary gains
        and log2 discounts (Järvelin and Kekäläinen 2002), and 1.0 where a positive is among the first k.

    Raises:
        InputError: shapes differ, a value is not allowed, or ``k`` is below 1.
    """
    if k < 1:
        raise InputError(f"k: expected at least 1, found {k}")
    labels = as_labels(label)
    rows = len(labels)
    scores = as_numbers("scores", score, rows)
    groups = as_keys("groups", group, rows)
    count = int(groups.max()) + 1 if rows else 0
    size = np.bincount(groups, minlength=count)
    positives = np.bincount(groups, weights=labels, minlength=count).astype(np.int64)
    counts = (positives > 0) & (positives < size)

    ties = np.random.default_rng(seed).random(rows)
    order = np.lexsort((ties, -scores, groups))
    rank = np.arange(rows) - (np.cumsum(size) - size)[groups[order]]
    hits = order[(rank < k) & (labels[order] == 1)]
    hit_rank = rank[(rank < k) & (labels[order] == 1)]
    gain = np.bincount(groups[hits], weights=1.0 / np.log2(hit_rank + 2.0), minlength=count)
    ideal = np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))
    best = ideal[np.clip(positives, 1, k) - 1]
    first = order[np.cumsum(size) - size].astype(np.int64) if rows else np.empty(0, dtype=np.int64)
    return first[counts], (gain / best)[counts], (gain > 0)[counts].astype(np.float64)


def ndcg_at(
    label: npt.ArrayLike, score: npt.ArrayLike, group: npt.ArrayLike, *, k: int = 10, seed: int = 0
) -> float | None:
    """Return the mean NDCG@k over groups that hold both labels; None where there is none.

    See `ranking_in_groups` for arguments, ties and errors.
    """
    _, gains, _ = ranking_in_groups(label, score, group, k=k, seed=seed)
    return float(gains.mean()) if len(gains) else None


def hit_rate_at(
    label: npt.ArrayLike, score: npt.ArrayLike, group: npt.ArrayLike, *, k: int = 10, seed: int = 0
) -> float | None:
    """Return the share of groups with both labels that have a positive among the first ``k``.

    None where no group has both labels. See `ranking_in_groups` for arguments, ties and errors.
    """
    _, _, hits = ranking_in_groups(label, score, group, k=k, seed=seed)
    return float(hits.mean()) if len(hits) else None
