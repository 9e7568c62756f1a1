"""The stack: experts joined by a logistic regression that starts from what they say without any data.

    logit = intercept + sum over experts m of w_m * (expert_m - mean_m) / scale_m   [+ boosted residual]

The weights are the most probable ones under a normal prior around ``w0``, which gives every source the
same say. With no interaction at all the weights are ``w0`` (zero-shot), and each interaction moves them;
how much is decided by the prior's precision, which evidence on other contexts chose. From some hundred
positives on, boosted trees over the row's own features take up what the experts miss: they start from the
stack's logit, so that with few rows they change little (a MAP stack of bottom-level models, then gradient
boosting from an offset: Friedman 2001). Numpy and LightGBM only: no context, file or network is known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recmeta.evaluation.baselines import Trees
from recmeta.settings import TransferSettings

Floats = npt.NDArray[np.float64]

INTERCEPT_PRECISION = 0.1
"""Of the prior of an intercept around the sources' mean rate: it weighs about one row."""

_NEWTON_STEPS = 50


@dataclass(frozen=True)
class Stack:
    """Weights of scaled experts, the newcomer's last, and an intercept."""

    weights: Floats
    intercept: float

    def logits(self, scaled: Floats) -> Floats:
        """Return logits, float64 [n], of scaled experts [n, M]."""
        found: Floats = scaled @ self.weights + self.intercept
        return found


def prior_weights(scales: Floats, newcomer: float) -> Floats:
    """Return what each expert weighs before any data, [M]: the newcomer's share, the rest evenly.

    Experts are logits of about the size in ``scales`` [M]; a weight of their mean keeps it. Shares by how
    well a source did elsewhere were worse on Deskdrop than even ones: four contexts are too few to tell.
    """
    sources = len(scales) - 1
    shares = np.append(np.full(sources, (1.0 - newcomer) / sources), newcomer)
    return shares * float(scales.mean())


def fit_stack(
    scaled: Floats,
    label: Floats,
    weight: Floats,
    prior: Floats,
    precision: float,
    *,
    rate: float,
) -> Stack:
    """Fit weights and intercept to a surface's few rows.

    Weights are fitted with every row counted once: a thousand negatives that stand for a hundred thousand
    say no more than a thousand. The intercept then counts rows by ``weight``, so that probabilities are
    those of the surface and not of the sample.

    Args:
        scaled: experts, [n, M]; n may be 0.
        label: 0 or 1, [n].
        weight: how many rows of the surface each stands for, [n].
        prior: weights before any data, [M].
        precision: of the prior, for every weight.
        rate: of positives that is expected before any data, in (0, 1).
    """
    weights = fit_weights(scaled, label, prior, precision) if len(label) else prior.copy()
    # Experts have mean 0 over the sources' rows, so that the expected rate's logit is the intercept there.
    expected = float(np.log(rate / (1.0 - rate)))
    return Stack(weights, fit_intercept(scaled @ weights, label, weight, expected))


def fit_intercept(logits: Floats, label: Floats, weight: Floats, expected: float) -> float:
    """Return the most probable intercept to add to ``logits`` [n], with a weak prior at ``expected``."""
    intercept = expected
    for _ in range(_NEWTON_STEPS):
        chance = _sigmoid(logits + intercept)
        gradient = float(weight @ (chance - label)) + INTERCEPT_PRECISION * (intercept - expected)
        curvature = float(weight @ (chance * (1.0 - chance))) + INTERCEPT_PRECISION
        step = float(np.clip(gradient / curvature, -1.0, 1.0))
        intercept -= step
        if abs(step) < 1e-10:
            break
    return intercept


def fit_weights(scaled: Floats, label: Floats, prior: Floats, precision: float) -> Floats:
    """Return the most probable weights [M] under a normal prior, by damped Newton steps.

    An intercept of the sample moves along and is dropped.
    """
    rows = np.column_stack([scaled, np.ones(len(scaled))])
    positives = float(label.sum()) + 0.5
    start = float(np.log(positives / (len(label) - positives + 1.0))) - float((scaled @ prior).mean())
    centre = np.append(prior, start)
    pull = np.append(np.full(len(prior), precision), INTERCEPT_PRECISION)

    def objective(point: Floats) -> float:
        logits = rows @ point
        return float(np.sum(np.logaddexp(0.0, logits) - label * logits) + 0.5 * pull @ (point - centre) ** 2)

    point, value = centre.copy(), objective(centre)
    for _ in range(_NEWTON_STEPS):
        chance = _sigmoid(rows @ point)
        gradient = rows.T @ (chance - label) + pull * (point - centre)
        hessian = (rows * (chance * (1.0 - chance))[:, None]).T @ rows + np.diag(pull)
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
    found: Floats = point[:-1]
    return found


def fit_residual(
    dense: npt.NDArray[np.float32],
    label: Floats,
    logits: Floats,
    settings: TransferSettings,
    *,
    threads: int,
    seed: int,
) -> Trees | None:
    """Boost from the stack's ``logits`` [n] over the rows' own features [n, F]; None: too few rows.

    Shrunk hard, and a leaf holds at least a tenth of the rows, 50 at most: with few rows the residual
    stays near zero.
    """
    import lightgbm

    if len(label) < 20 or label.min() == label.max():
        return None
    parameters = {
        "objective": "binary",
        "num_leaves": settings.residual_leaves,
        "learning_rate": settings.residual_rate,
        "min_data_in_leaf": max(5, min(50, len(label) // 10)),
        "feature_fraction": 0.3,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "lambda_l2": 10.0,
        "boost_from_average": False,
        "num_threads": threads,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }
    data = lightgbm.Dataset(dense, label, init_score=logits, free_raw_data=True)
    booster = lightgbm.train(parameters, data, num_boost_round=settings.residual_rounds)
    return Trees(booster, booster.current_iteration())


def _sigmoid(logits: Floats) -> Floats:
    chance: Floats = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return chance
