"""Errors of an AUC in closed form: what a bootstrap of users says, and paired where rows are the same."""

from __future__ import annotations

import numpy as np
import pytest

from recmeta.evaluation.cluster_errors import area, difference, interval, mean_area
from recmeta.evaluation.metrics import auc
from recmeta.evaluation.resampling import resample


def rows(seed: int = 0, n: int = 2_500) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels and scores that go together within a user, and weights."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 200, n)
    taste = rng.normal(size=200)[user]
    label = (rng.random(n) < 1 / (1 + np.exp(2 - taste))).astype(np.float64)
    return label, 0.7 * label + rng.normal(size=n) + 0.5 * taste, user, rng.integers(1, 4, n).astype(float)


def test_the_value_is_the_weighted_auc_ties_included() -> None:
    label, score, user, weight = rows()
    found = area(label, np.round(score, 1), user, weight)
    assert found is not None
    assert found.value == pytest.approx(auc(label, np.round(score, 1), weight), abs=1e-12)
    assert found.shares.sum() == pytest.approx(0.0, abs=1e-12)


def test_the_interval_is_that_of_a_bootstrap_of_users() -> None:
    label, score, user, weight = rows()
    found = area(label, score, user, weight)
    assert found is not None
    low, high = interval(found)
    drawn = resample(label, {"one": score}, user, weight=weight, resamples=2_000).estimate("one", "auc")
    assert drawn.low is not None and drawn.high is not None
    assert high - low == pytest.approx(drawn.high - drawn.low, rel=0.08)


def test_a_difference_is_paired() -> None:
    label, score, user, _ = rows()
    near = score + np.random.default_rng(1).normal(size=len(score)) * 0.05
    first, second = area(label, score, user), area(label, near, user)
    assert first is not None and second is not None
    gap = difference(first, second)
    assert gap.error < 0.2 * first.error
    drawn = resample(label, {"a": score, "b": near}, user, resamples=2_000).difference("a", "b", "auc")
    assert drawn.low is not None and drawn.high is not None
    low, high = interval(gap)
    assert high - low == pytest.approx(drawn.high - drawn.low, rel=0.1)


def test_draws_widen_the_interval_of_a_mean() -> None:
    label, score, user, _ = rows()
    one = area(label, score, user)
    assert one is not None
    mean = mean_area([one, one])
    assert mean.value == one.value and mean.error == pytest.approx(one.error)
    narrow, wide = interval(mean), interval(mean, between=0.01)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_one_label_only_has_no_area() -> None:
    assert area(np.ones(5), np.arange(5.0), np.arange(5)) is None
    assert area(np.empty(0), np.empty(0), np.empty(0)) is None
