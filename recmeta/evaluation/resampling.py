"""How sure a figure is: a bootstrap that draws users, shared by every candidate that is compared.

Rows of one user are not independent, so users are drawn with replacement, not rows (Field and Welsh
2007: the cluster bootstrap). All candidates see the same draws, which makes every difference a paired
one. Numpy only; must never know a context, a gate or a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from recmeta.errors import InputError
from recmeta.evaluation.metrics import (
    FloatArray,
    IntArray,
    as_keys,
    as_labels,
    as_numbers,
    as_weights,
    auc,
    log_loss,
    ranking_in_groups,
    ranks_among,
    row_log_losses,
)

Metric = Literal["auc", "log_loss", "ndcg", "hit_rate"]
HIGHER_IS_BETTER: dict[Metric, bool] = {"auc": True, "log_loss": False, "ndcg": True, "hit_rate": True}

_CHUNK_NUMBERS = 1_000_000
"""Float64 numbers in one work array (8 MB): large enough for numpy, small enough to stay near the cache."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its central percentile interval; all None where the figure is not defined."""

    value: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """The three numbers by name, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Difference(Estimate):
    """How much better one candidate is than another (always: positive = better), on the same draws."""

    probability_better: float | None = None
    """Share of resamples in which it is better; a tie counts half."""

    def as_dict(self) -> dict[str, float | None]:
        """The four numbers by name, for JSON."""
        return {**super().as_dict(), "probability_better": self.probability_better}


@dataclass(frozen=True)
class Draws:
    """One figure of one candidate: on the rows as they are, and on each resample (NaN: undefined there)."""

    value: float | None
    resamples: FloatArray

    def estimate(self, level: float = 0.95) -> Estimate:
        """Return the figure with its central interval at ``level``."""
        low, high = _interval(self.resamples, level)
        return Estimate(self.value, low, high) if self.value is not None else Estimate(None, None, None)


def _interval(resamples: FloatArray, level: float) -> tuple[float | None, float | None]:
    defined = resamples[np.isfinite(resamples)]
    if not len(defined):
        return None, None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Resampled:
    """Every figure of every candidate on the same resamples of the same rows."""

    draws: Mapping[str, Mapping[Metric, Draws]] = field(repr=False)

    def estimate(self, candidate: str, metric: Metric, *, level: float = 0.95) -> Estimate:
        """Return one figure of one candidate with its central interval at ``level``."""
        return self.draws[candidate][metric].estimate(level)

    def difference(self, better: str, worse: str, metric: Metric, *, level: float = 0.95) -> Difference:
        """Return by how much ``better`` is the better one of the two; of log-loss, how much lower."""
        first, second = self.draws[better][metric], self.draws[worse][metric]
        if first.value is None or second.value is None:
            return Difference(None, None, None)
        sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
        gaps = sign * (first.resamples - second.resamples)
        gaps = gaps[np.isfinite(gaps)]
        low, high = _interval(gaps, level)
        share = float(np.mean(gaps > 0) + 0.5 * np.mean(gaps == 0)) if len(gaps) else None
        return Difference(sign * (first.value - second.value), low, high, share)


def resample(
    label: npt.ArrayLike,
    logits: Mapping[str, npt.ArrayLike],
    user: npt.ArrayLike,
    *,
    weight: npt.ArrayLike | None = None,
    group: npt.ArrayLike | None = None,
    ranking: Mapping[str, npt.ArrayLike] | None = None,
    k: int = 10,
    resamples: int = 1000,
    seed: int = 0,
) -> Resampled:
    """Measure every candidate on the rows and on ``resamples`` draws of users with replacement.

    Args:
        label: [n] of 0 and 1.
        logits: for each candidate its logits, [n], finite.
        user: [n] keys of any type; rows of one user are drawn together.
        weight: [n], above 0, of rows in AUC and log-loss; None for equal weights.
        group: [n] ranking lists, each of one user, for NDCG@k and hit rate; None leaves both undefined.
        ranking: for some candidates other logits by which lists are ranked, [n]: those of one instant a list.
        k: how much of a ranking list is looked at.
        resamples: how many draws.
        seed: of the draws and of the tie-breaking.

    Returns:
        Figures and their draws; the same arguments give the same bits. A figure that the rows do not
        define (one label only, no rows) is None, and a draw that does not define it is NaN.

    Raises:
        InputError: shapes differ, a value is not allowed, or ``resamples`` is below 1.
    """
    if resamples < 1:
        raise InputError(f"resamples: expected at least 1, found {resamples}")
    labels = as_labels(label)
    rows = len(labels)
    weights = as_weights(weight, rows)
    users = as_keys("users", user, rows)
    scores = {name: as_numbers(f"logits of {name}", logit, rows) for name, logit in logits.items()}
    count = int(users.max()) + 1 if rows else 0
    counted: dict[str, dict[Metric, Callable[[FloatArray], FloatArray]]] = {}
    values: dict[str, dict[Metric, float | None]] = {}
    for name, score in scores.items():
        losses = row_log_losses(labels, score)
        counted[name] = {
            "auc": _AreaUnderDraws(labels, score, weights, users),
            "log_loss": _MeanOfDraws(losses, weights, users, count),
        }
        values[name] = {"auc": auc(labels, score, weights), "log_loss": log_loss(labels, score, weights)}
        if group is not None:
            ranked = (
                score if ranking is None else as_numbers(f"ranking of {name}", ranking.get(name, score), rows)
            )
            first, gains, hits = ranking_in_groups(labels, ranked, group, k=k, seed=seed)
            once = np.ones(len(first))
            counted[name]["ndcg"] = _MeanOfDraws(gains, once, users[first], count)
            counted[name]["hit_rate"] = _MeanOfDraws(hits, once, users[first], count)
            values[name]["ndcg"] = float(gains.mean()) if len(gains) else None
            values[name]["hit_rate"] = float(hits.mean()) if len(hits) else None

    found: dict[str, dict[Metric, FloatArray]] = {
        name: {metric: np.full(resamples, np.nan) for metric in HIGHER_IS_BETTER} for name in scores
    }
    generator = np.random.default_rng(seed)
    chunk = max(1, min(resamples, _CHUNK_NUMBERS // max(rows, count, 1)))
    for start in range(0, resamples if rows else 0, chunk):
        size = min(chunk, resamples - start)
        drawn = draw_counts(generator, size, count)
        for name, measures in counted.items():
            for metric, measure in measures.items():
                found[name][metric][start : start + size] = measure(drawn)
    return Resampled(
        {
            name: {
                metric: Draws(values[name].get(metric), found[name][metric]) for metric in HIGHER_IS_BETTER
            }
            for name in scores
        }
    )


def draw_counts(generator: np.random.Generator, draws: int, users: int) -> FloatArray:
    """Draw ``users`` users with replacement, ``draws`` times; return how often each came, [draws, users]."""
    chosen = generator.integers(0, users, size=(draws, users))
    chosen += np.arange(draws)[:, None] * users
    return np.bincount(chosen.ravel(), minlength=draws * users).reshape(draws, users).astype(np.float64)


class _AreaUnderDraws:
    """Weighted AUC for rows of user counts: scores are sorted once, a draw only changes weights."""

    def __init__(self, labels: FloatArray, scores: FloatArray, weights: FloatArray, users: IntArray) -> None:
        positive = labels == 1
        ascending = np.argsort(scores[~positive], kind="stable")
        self.negative_users = users[~positive][ascending]
        self.negative_weights = weights[~positive][ascending]
        self.left, self.right = ranks_among(scores[~positive][ascending], scores[positive])
        self.positive_users = users[positive]
        self.positive_weights = weights[positive]

    def __call__(self, drawn: FloatArray) -> FloatArray:
        positives = drawn[:, self.positive_users] * self.positive_weights
        below = np.zeros((len(drawn), len(self.negative_users) + 1))
        np.multiply(drawn[:, self.negative_users], self.negative_weights, out=below[:, 1:])
        np.cumsum(below, axis=1, out=below)
        mass = np.einsum("dp,dp->d", positives, below[:, self.left] + below[:, self.right])
        pairs = 2.0 * positives.sum(axis=1) * below[:, -1]
        # A draw that misses one label altogether has no pairs, and so no area.
        return _ratio(mass, pairs)


class _MeanOfDraws:
    """Weighted mean of per-row values for rows of user counts: sums of each user are formed once."""

    def __init__(self, values: FloatArray, weights: FloatArray, users: IntArray, count: int) -> None:
        self.sums = np.bincount(users, weights=values * weights, minlength=count)
        self.weights = np.bincount(users, weights=weights, minlength=count)

    def __call__(self, drawn: FloatArray) -> FloatArray:
        total = (drawn * self.weights).sum(axis=1)
        mass = (drawn * self.sums).sum(axis=1)
        return _ratio(mass, total)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """``above / below``, and NaN where there is nothing to divide by."""
    found = np.full(len(above), np.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found
