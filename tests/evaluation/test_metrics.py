"""Metrics agree with scikit-learn, ties and weights included, and are None where they mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from recmeta.errors import InputError
from recmeta.evaluation.metrics import auc, hit_rate_at, log_loss, ndcg_at


def rows(draw: st.DrawFn, most: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, coarse scores (so that ties are common), weights and users."""
    n = draw(st.integers(2, most))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = generator.integers(0, 2, n)
    score = generator.integers(-3, 4, n) / draw(st.sampled_from([1.0, 1e-9, 1e9]))
    weight = generator.gamma(1.0, size=n) + 1e-3
    return label, score, weight, generator.integers(0, draw(st.integers(1, 12)), n)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_auc_is_scikit_learns_with_ties_and_weights(data: st.DataObject) -> None:
    label, score, weight, _ = rows(data.draw)
    found = auc(label, score, weight)
    if label.min() == label.max():
        assert found is None
        return
    assert found == pytest.approx(roc_auc_score(label, score, sample_weight=weight), abs=1e-12)
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_log_loss_is_scikit_learns(data: st.DataObject) -> None:
    label, _, weight, _ = rows(data.draw)
    logit = np.random.default_rng(len(label)).normal(scale=4, size=len(label))
    expected = sklearn_log_loss(label, 1 / (1 + np.exp(-logit)), sample_weight=weight, labels=[0, 1])
    assert log_loss(label, logit, weight) == pytest.approx(expected, rel=1e-9)


def test_log_loss_of_a_sure_mistake_is_large_and_finite() -> None:
    assert log_loss([1, 0], [-1000.0, 1000.0]) == 1000.0


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_ndcg_is_scikit_learns_where_there_are_no_ties(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 15, 8)
    group = np.repeat(np.arange(8), sizes)
    label = generator.integers(0, 2, len(group))
    score = generator.permutation(len(group)).astype(float)
    shuffled = generator.permutation(len(group))
    wanted = [
        ndcg_score([label[group == g]], [score[group == g]], k=k)
        for g in range(8)
        if 0 < label[group == g].sum() < sizes[g]
    ]
    found = ndcg_at(label[shuffled], score[shuffled], group[shuffled], k=k)
    assert found == (pytest.approx(np.mean(wanted), abs=1e-12) if wanted else None)


def test_hit_rate_counts_groups_with_a_positive_among_the_first() -> None:
    label = [1, 0, 0, 0, 0, 1, 1, 0]
    score = [1.0, 3.0, 2.0, 1.0, 2.0, 3.0, 1.0, 0.0]
    group = ["a", "a", "a", "b", "b", "b", "c", "c"]
    assert hit_rate_at(label, score, group, k=2) == pytest.approx(2 / 3)
    assert hit_rate_at(label, score, group, k=3) == 1.0


def test_a_constant_score_earns_what_chance_earns_whatever_the_order_of_the_rows() -> None:
    group = np.repeat(np.arange(4000), 10)
    for first in (True, False):
        label = np.tile([1] + [0] * 9 if first else [0] * 9 + [1], 4000)
        assert hit_rate_at(label, np.zeros(40000), group, k=1, seed=3) == pytest.approx(0.1, abs=0.015)


def test_ties_are_broken_the_same_way_for_the_same_seed() -> None:
    label, group = np.tile([1, 0, 0], 50), np.repeat(np.arange(50), 3)
    found = {ndcg_at(label, np.zeros(150), group, k=1, seed=seed) for seed in (1, 1, 2, 3, 4)}
    assert 1 < len(found) < 5


def test_groups_without_both_labels_are_left_out() -> None:
    assert ndcg_at([1, 1, 0, 0, 1, 0], [1.0, 2.0, 1.0, 2.0, 1.0, 2.0], [0, 0, 1, 1, 2, 2], k=1) == 0.0
    assert ndcg_at([1, 1, 0, 0], np.zeros(4), [0, 0, 1, 1]) is None
    assert hit_rate_at([1, 1, 0, 0], np.zeros(4), [0, 0, 1, 1]) is None


def test_what_no_row_defines_is_none() -> None:
    assert auc([], []) is None
    assert log_loss([], []) is None
    assert ndcg_at([], [], []) is None
    assert hit_rate_at([], [], []) is None
    assert auc([1], [0.5]) is None
    assert log_loss([1], [0.0]) == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("label", "score", "weight", "said"),
    [
        (
            [0, 1],
            [0.0, np.nan],
            None,
            "scores: expected finite numbers, found NaN or infinity in 1 of 2 rows",
        ),
        ([0, 1], [0.0, np.inf], None, "infinity in 1 of 2"),
        ([0, 2], [0.0, 1.0], None, "expected 0 or 1"),
        ([0, np.nan], [0.0, 1.0], None, "expected 0 or 1"),
        ([0, 1], [0.0], None, r"expected shape \[2\], found \[1\]"),
        ([[0, 1]], [0.0], None, r"expected shape \[n\], found \[1, 2\]"),
        ([0, 1], [0.0, 1.0], [1.0, 0.0], "weights: expected numbers above 0, found 0.0"),
        ([0, 1], [0.0, 1.0], [1.0, np.inf], "weights: expected finite"),
    ],
)
def test_bad_rows_are_named(label: object, score: object, weight: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        auc(label, score, weight)  # type: ignore[arg-type]
