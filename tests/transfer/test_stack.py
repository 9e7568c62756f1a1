"""The stack: what it is without data, what data move, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from recmeta.evaluation.metrics import auc, log_loss
from recmeta.settings import TransferSettings
from recmeta.transfer.stack import (
    fit_intercept,
    fit_residual,
    fit_stack,
    fit_weights,
    prior_weights,
)


def surface(rows: int, seed: int = 0, rate: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Three experts of which the first knows the answer, the second nothing, the third its opposite."""
    rng = np.random.default_rng(seed)
    label = (rng.random(rows) < rate).astype(np.float64)
    truth = 2.0 * label - 1.0
    experts = np.stack([truth, np.zeros(rows), -truth], axis=1) + rng.normal(size=(rows, 3))
    return (experts - experts.mean(0)) / experts.std(0), label


def test_without_data_sources_have_an_even_say_and_logits_keep_their_size() -> None:
    scales = np.array([1.0, 2.0, 3.0])
    weights = prior_weights(scales, newcomer=0.2)
    np.testing.assert_allclose(weights, np.array([0.4, 0.4, 0.2]) * 2.0)


def test_without_rows_the_stack_is_its_prior_at_the_expected_rate() -> None:
    stack = fit_stack(np.empty((0, 3)), np.empty(0), np.empty(0), np.ones(3), 30.0, rate=0.1)
    np.testing.assert_array_equal(stack.weights, np.ones(3))
    assert stack.intercept == pytest.approx(np.log(0.1 / 0.9))


def test_rows_move_weight_to_the_expert_that_is_right() -> None:
    prior = np.full(3, 1.0 / 3.0)
    scaled, label = surface(3_000)
    few = fit_weights(scaled[:60], label[:60], prior, 30.0)
    many = fit_weights(scaled, label, prior, 30.0)
    assert prior[0] < few[0] < many[0]
    assert many[2] < few[2] < prior[2]
    later, truth = surface(3_000, seed=1)
    assert auc(truth, later @ many) > auc(truth, later @ few) > auc(truth, later @ prior)


def test_a_stronger_prior_moves_less() -> None:
    prior = np.full(3, 1.0 / 3.0)
    scaled, label = surface(200)
    moved = [np.abs(fit_weights(scaled, label, prior, p) - prior).max() for p in (1.0, 30.0, 1000.0)]
    assert moved[0] > moved[1] > moved[2] > 0.0


def test_the_weights_are_the_most_probable_ones() -> None:
    from scipy.optimize import minimize

    prior = np.array([0.5, 0.3, 0.2])
    scaled, label = surface(150)
    found = fit_weights(scaled, label, prior, 10.0)

    def objective(point: np.ndarray) -> float:
        logits = scaled @ point[:3] + point[3]
        start = np.log((label.sum() + 0.5) / (len(label) - label.sum() + 0.5)) - (scaled @ prior).mean()
        return float(
            np.sum(np.logaddexp(0.0, logits) - label * logits)
            + 5.0 * np.sum((point[:3] - prior) ** 2)
            + 0.05 * (point[3] - start) ** 2
        )

    best = minimize(objective, np.append(prior, -2.0), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(found, best.x[:3], atol=1e-5)


def test_the_intercept_counts_rows_by_what_they_stand_for() -> None:
    label = np.array([1.0] * 10 + [0.0] * 80)
    weight = np.where(label == 1, 1.0, 5.0)  # 80 drawn rows stand for 400
    intercept = fit_intercept(np.zeros(90), label, weight, expected=-2.0)
    assert 1.0 / (1.0 + np.exp(-intercept)) == pytest.approx(10 / 410, rel=0.02)


def test_one_label_only_gives_a_finite_stack() -> None:
    scaled, _ = surface(30)
    for value in (0.0, 1.0):
        stack = fit_stack(scaled, np.full(30, value), np.ones(30), np.ones(3), 30.0, rate=0.1)
        assert np.isfinite(stack.weights).all() and np.isfinite(stack.intercept)


def test_the_residual_learns_what_the_experts_miss_and_nothing_from_a_few_rows() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(4_000, 6)).astype(np.float32)
    label = (rng.random(4_000) < 1 / (1 + np.exp(2.0 - 2.0 * (dense[:, 3] > 0)))).astype(np.float64)
    settings, start = TransferSettings(), np.full(4_000, np.log(0.25))
    trees = fit_residual(dense[:3_000], label[:3_000], start[:3_000], settings, threads=1, seed=0)
    assert trees is not None
    later = start[3_000:] + trees.logits(dense[3_000:])
    assert (log_loss(label[3_000:], later) or 9) < (log_loss(label[3_000:], start[3_000:]) or 0) - 0.01
    assert fit_residual(dense[:10], label[:10], start[:10], settings, threads=1, seed=0) is None


def test_the_residual_of_the_same_rows_is_the_same_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(300, 6)).astype(np.float32)
    label = (dense[:, 0] + rng.normal(size=300) > 1).astype(np.float64)
    made = [
        fit_residual(dense, label, np.zeros(300), TransferSettings(), threads=1, seed=4) for _ in range(2)
    ]
    assert all(trees is not None for trees in made)
    texts = {trees.booster.model_to_string() for trees in made if trees is not None}
    assert len(texts) == 1
