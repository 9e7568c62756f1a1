"""Calibration makes probabilities honest and is safe where there is little to learn from."""

from __future__ import annotations

import numpy as np
import pytest

from recmeta.models.calibration import Calibration, calibrate


def test_a_known_distortion_is_undone() -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(-2, 1.5, 200_000)
    labels = (generator.random(honest.size) < 1 / (1 + np.exp(-honest))).astype(float)
    found = calibrate((honest - 1.0) / 0.5, labels)  # honest = .5 * distorted + 1
    assert found.slope == pytest.approx(0.5, abs=0.02)
    assert found.intercept == pytest.approx(1.0, abs=0.04)


def test_weights_count_like_repeated_rows() -> None:
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=60), generator.integers(0, 2, 60)
    weights = generator.integers(0, 4, 60)
    weighted = calibrate(logits, labels, weights)
    repeated = calibrate(np.repeat(logits, weights), np.repeat(labels, weights))
    assert weighted.slope == pytest.approx(repeated.slope, abs=1e-6)
    assert weighted.intercept == pytest.approx(repeated.intercept, abs=1e-6)


@pytest.mark.parametrize("n", [0, 1, 30])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_or_one_row_stays_finite_with_a_positive_slope(n: int, label: int) -> None:
    found = calibrate(np.linspace(-3, 3, n) if n > 1 else np.full(n, 2.0), np.full(n, label))
    assert found.slope > 0
    assert np.isfinite([found.slope, found.intercept]).all()
    if n == 0:
        assert found == Calibration()


def test_extreme_logits_and_separable_labels_do_not_diverge() -> None:
    logits = np.array([-800.0, -500.0, 500.0, 900.0])
    found = calibrate(logits, np.array([0, 0, 1, 1]))
    assert 0 < found.slope < 10
    turned = calibrate(logits, np.array([1, 1, 0, 0]))
    assert turned.slope > 0
    assert np.isfinite(turned.intercept)


def test_a_score_that_ranks_backwards_is_flattened_and_not_turned_round() -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(size=5000)
    labels = (generator.random(5000) < 1 / (1 + np.exp(1 + logits))).astype(float)
    found = calibrate(logits, labels)
    assert 0 < found.slope <= 0.05
    mean = (1 / (1 + np.exp(-found.apply(logits)))).mean()
    assert mean == pytest.approx(labels.mean(), abs=0.01)
