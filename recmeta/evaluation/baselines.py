"""What a learnt model has to beat: popularity, a bias of user and item, boosted trees on the same features.

All give logits, [n]. This module must never know the shared model, an adapter or a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recmeta.episodes.rows import Rows
from recmeta.errors import InputError
from recmeta.evaluation.metrics import FloatArray, IntArray, as_labels, as_weights, log_loss
from recmeta.settings import Settings, TreeSettings

BIAS_STRENGTHS = (1.0, 3.0, 10.0, 30.0)
"""Precisions of a bias that validation rows choose from: the rows with which data and prior weigh alike,
times p(1 - p). From hardly any shrinkage to what only a thousand rows overcome."""

_PASSES = 60
_ENOUGH = 1e-5
"""A pass that moves no bias by more than this, in logits, is the last."""


def popularity(dense: npt.NDArray[np.float32], column: int) -> FloatArray:
    """Return one column of the dense features [n, F] as scores, float64 [n]; see `FeatureSpace`.

    Raises:
        InputError: there is no such column.
    """
    if dense.ndim != 2 or not 0 <= column < dense.shape[1]:
        raise InputError(f"popularity: expected [n, F] with a column {column}, found {list(dense.shape)}")
    return dense[:, column].astype(np.float64)


@dataclass(frozen=True)
class BiasOnly:
    """``logit = intercept + user[u] + item[i]``; index 0, and any index beyond the table, adds nothing."""

    intercept: float
    user: FloatArray
    item: FloatArray
    strength: float

    def logits(self, user: IntArray, item: IntArray) -> FloatArray:
        """Return logits, float64 [n], of user and item indices, int64 [n]."""
        return self.intercept + _at(self.user, user) + _at(self.item, item)


def _at(table: FloatArray, index: IntArray) -> FloatArray:
    known = (index > 0) & (index < len(table))
    found: FloatArray = np.where(known, table[np.where(known, index, 0)], 0.0)
    return found


def fit_bias_only(
    user: IntArray,
    item: IntArray,
    label: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    validation: tuple[IntArray, IntArray, npt.ArrayLike, npt.ArrayLike | None] | None = None,
) -> BiasOnly:
    """Fit biases of users and items with a normal prior at zero (logistic MAP).

    Newton's step is taken for the intercept, then for all users, then for all items, in turn; given the
    others each of these is a separate problem of one number. The strength of the prior is the one of
    `BIAS_STRENGTHS` with the least log-loss on ``validation`` (user, item, label, weight), and the
    second of them without validation rows.

    Args:
        user: index of each row's user, int64 [n]; 0 is unknown and learns nothing.
        item: index of each row's item, likewise.
        label: [n] of 0 and 1.
        weight: [n], above 0; None for equal weights.
        validation: later rows, in the same indices.

    Raises:
        InputError: shapes differ, or a value is not allowed.
    """
    labels = as_labels(label)
    weights = as_weights(weight, len(labels))
    for name, index in (("users", user), ("items", item)):
        if index.shape != labels.shape or (len(index) and index.min() < 0):
            raise InputError(f"{name}: expected indices of at least 0, shape [{len(labels)}]")
    if validation is None or not len(np.asarray(validation[2])):
        return _fit_biases(user, item, labels, weights, BIAS_STRENGTHS[1])
    later_user, later_item, later_label, later_weight = validation
    fits = [_fit_biases(user, item, labels, weights, strength) for strength in BIAS_STRENGTHS]
    losses = [log_loss(later_label, fit.logits(later_user, later_item), later_weight) for fit in fits]
    return fits[int(np.argmin([np.inf if loss is None else loss for loss in losses]))]


def _fit_biases(
    user: IntArray, item: IntArray, label: FloatArray, weight: FloatArray, strength: float
) -> BiasOnly:
    tables = [np.zeros(int(index.max(initial=0)) + 1) for index in (user, item)]
    # Half a positive and half a negative more keep the intercept finite where one label never occurs.
    positive, negative = weight[label == 1].sum() + 0.5, weight[label == 0].sum() + 0.5
    intercept = float(np.log(positive / negative))
    logit = np.full(len(label), intercept)
    for _ in range(_PASSES):
        gradient, curvature = _slopes(logit, label, weight)
        step = float((gradient.sum() - 0.5 * np.tanh(0.5 * intercept)) / (curvature.sum() + 0.25))
        step = float(np.clip(step, -1.0, 1.0))
        intercept, logit, moved = intercept + step, logit + step, abs(step)
        for table, index in zip(tables, (user, item), strict=True):
            gradient, curvature = _slopes(logit, label, weight)
            pull = np.bincount(index, weights=gradient, minlength=len(table)) - strength * table
            steps = pull / (np.bincount(index, weights=curvature, minlength=len(table)) + strength)
            steps = np.clip(steps, -1.0, 1.0)  # far from the answer Newton's step may be much too long
            steps[0] = 0.0
            table += steps
            logit = logit + steps[index]
            moved = max(moved, float(np.abs(steps).max()))
        if moved < _ENOUGH:
            break
    return BiasOnly(intercept, tables[0], tables[1], strength)


def _slopes(logit: FloatArray, label: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    chance = 0.5 * (1.0 + np.tanh(0.5 * logit))
    return weight * (label - chance), weight * chance * (1.0 - chance)


@dataclass(frozen=True)
class Trees:
    """A LightGBM booster on the dense features of one context, and how many rounds it was given."""

    booster: Any
    rounds: int

    @classmethod
    def from_text(cls, text: str) -> Trees:
        """Read what `text` gave."""
        import lightgbm

        booster = lightgbm.Booster(model_str=text)
        return cls(booster, booster.current_iteration())

    def text(self) -> str:
        """LightGBM's own text of the rounds that count."""
        found: str = self.booster.model_to_string(num_iteration=self.rounds)
        return found

    def logits(self, dense: npt.NDArray[np.float32]) -> FloatArray:
        """Return logits, float64 [n], of dense features, float32 [n, F]."""
        if not len(dense):
            return np.empty(0)
        found: FloatArray = self.booster.predict(
            np.asarray(dense, dtype=np.float32), raw_score=True, num_iteration=self.rounds
        )
        return found


def fit_trees(
    dense: npt.NDArray[np.float32],
    label: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    validation_dense: npt.NDArray[np.float32] | None,
    validation_label: npt.ArrayLike | None,
    settings: TreeSettings,
    *,
    validation_weight: npt.ArrayLike | None = None,
    threads: int,
    seed: int,
    rounds: int | None = None,
) -> Trees | None:
    """Fit boosted trees (Ke et al. 2017, LightGBM); the same rows give the same trees.

    Rounds stop where validation log-loss has not become less for ``settings.patience`` rounds, and the
    best are kept; with ``rounds`` exactly that many are made, without looking at validation rows.

    Args:
        dense: [n, F], finite.
        label: [n] of 0 and 1.
        weight: [n], above 0; None for equal weights.
        validation_dense: [m, F] of later rows; None where ``rounds`` is given.
        validation_label: [m]; None likewise.
        settings: leaves, rate and so on.
        validation_weight: [m], above 0; None for equal weights.
        threads: of LightGBM.
        seed: of LightGBM.
        rounds: a number of rounds that is known already.

    Returns:
        None where there is nothing to learn from: one label only, or fewer rows than two leaves need.

    Raises:
        InputError: shapes differ, or a value is not allowed.
    """
    import lightgbm

    labels = as_labels(label)
    weights = as_weights(weight, len(labels))
    _check_dense(dense, len(labels))
    if len(labels) < 2 * settings.min_rows or labels.min() == labels.max():
        return None
    parameters = {
        "objective": "binary",
        "num_leaves": settings.leaves,
        "learning_rate": settings.rate,
        "min_data_in_leaf": settings.min_rows,
        "num_threads": threads,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,  # else a timing decides between two orders of summation
        "verbose": -1,
    }
    train = lightgbm.Dataset(dense, labels, weight=weights, free_raw_data=True)
    looked_at, callbacks = [], []
    if rounds is None and validation_dense is not None and validation_label is not None:
        later = as_labels(validation_label)
        _check_dense(validation_dense, len(later))
        if len(later):
            later_weights = as_weights(validation_weight, len(later))
            looked_at = [lightgbm.Dataset(validation_dense, later, weight=later_weights, reference=train)]
            callbacks = [lightgbm.early_stopping(settings.patience, verbose=False)]
    booster = lightgbm.train(
        {**parameters, "metric": "binary_logloss"},
        train,
        num_boost_round=settings.rounds if rounds is None else rounds,
        valid_sets=looked_at,
        callbacks=callbacks,
    )
    best = booster.best_iteration if booster.best_iteration > 0 else booster.current_iteration()
    return Trees(booster, best)


def fit_trees_to_rows(earlier: Rows, later: Rows, settings: Settings) -> Trees | None:
    """`fit_trees` of a context's rows, stopped by its later rows, with the settings' threads and seed."""
    return fit_trees(
        earlier.dense.numpy(),
        earlier.label.numpy(),
        earlier.weight.numpy(),
        later.dense.numpy(),
        later.label.numpy(),
        settings.trees,
        validation_weight=later.weight.numpy(),
        threads=settings.training.threads,
        seed=settings.training.seed,
    )


def _check_dense(dense: npt.NDArray[np.float32], rows: int) -> None:
    if dense.ndim != 2 or len(dense) != rows:
        raise InputError(f"dense features: expected shape [{rows}, F], found {list(dense.shape)}")
    wrong = int(np.count_nonzero(~np.isfinite(dense).all(axis=1)))
    if wrong:
        raise InputError(f"dense features: expected finite numbers, found NaN or infinity in {wrong} rows")
