"""Baselines find what is there to find, shrink what is not, and give the same model for the same rows."""

from __future__ import annotations

import numpy as np
import pytest

from recmeta.errors import InputError
from recmeta.evaluation.baselines import fit_bias_only, fit_trees, popularity
from recmeta.evaluation.metrics import auc, log_loss
from recmeta.settings import TreeSettings


def biased(rows: int = 6000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Users and items with known biases; the last array is the true logit."""
    truth = np.random.default_rng(99)
    users, items = truth.normal(size=61), truth.normal(size=41)
    generator = np.random.default_rng(seed)
    user, item = generator.integers(1, 61, rows), generator.integers(1, 41, rows)
    logit = users[user] + items[item] - 1.0
    return user, item, (generator.random(rows) < 1 / (1 + np.exp(-logit))).astype(float), logit


def test_biases_are_recovered_where_there_are_many_rows() -> None:
    user, item, label, logit = biased(60_000)
    found = fit_bias_only(user, item, label)
    later_user, later_item, later_label, later_logit = biased(5000, seed=1)
    given = found.logits(later_user, later_item)
    assert np.corrcoef(given, later_logit)[0, 1] > 0.99
    best = log_loss(later_label, later_logit)
    assert best is not None
    assert log_loss(later_label, given) == pytest.approx(best, abs=0.005)
    assert logit.shape == (60_000,)


def test_the_fit_is_where_the_penalised_gradient_is_zero() -> None:
    user, item, label, _ = biased(3000)
    weight = np.random.default_rng(3).gamma(2.0, size=3000)
    found = fit_bias_only(user, item, label, weight)
    residual = weight * (label - 1 / (1 + np.exp(-found.logits(user, item))))
    for table, index in ((found.user, user), (found.item, item)):
        pull = np.bincount(index, weights=residual, minlength=len(table)) - found.strength * table
        assert np.abs(pull[1:]).max() < 1e-2
        assert table[0] == 0.0


def test_unknown_users_and_items_add_nothing() -> None:
    user, item, label, _ = biased()
    found = fit_bias_only(user, item, label)
    unknown = found.logits(np.array([0, 10**6]), np.array([0, 10**6]))
    assert unknown.tolist() == [found.intercept] * 2
    assert found.logits(np.array([5]), np.array([0]))[0] == found.intercept + found.user[5]


def test_the_strength_is_what_later_rows_prefer() -> None:
    user, item, label, _ = biased(20_000)
    later = biased(4000, seed=1)
    signal = fit_bias_only(user, item, label, validation=(*later[:3], None))
    generator = np.random.default_rng(0)
    chance, later_chance = (generator.integers(0, 2, rows).astype(float) for rows in (20_000, 4000))
    noise = fit_bias_only(user, item, chance, validation=(later[0], later[1], later_chance, None))
    assert noise.strength > signal.strength


def test_a_user_seen_once_is_shrunk_more_than_one_seen_often() -> None:
    user = np.array([1] + [2] * 50 + [3] * 50)
    label = np.array([1.0] * 51 + [0.0] * 50)
    found = fit_bias_only(user, np.ones(101, dtype=np.int64), label)
    assert 0 < found.user[1] < found.user[2] / 2


@pytest.mark.parametrize("label", [[], [1.0], [0.0], [1.0, 1.0, 1.0]])
def test_hardly_any_rows_give_a_finite_model(label: list[float]) -> None:
    ones = np.ones(len(label), dtype=np.int64)
    found = fit_bias_only(ones, ones, label)
    assert np.isfinite(found.logits(np.array([1, 2]), np.array([1, 0]))).all()


def test_a_weight_of_two_is_the_row_twice() -> None:
    user, item, label, _ = biased(500)
    weighted = fit_bias_only(user, item, label, np.full(500, 2.0))
    twice = fit_bias_only(np.tile(user, 2), np.tile(item, 2), np.tile(label, 2))
    np.testing.assert_allclose(weighted.user, twice.user, atol=1e-4)


def test_bad_indices_and_labels_are_named() -> None:
    one = np.ones(2, dtype=np.int64)
    with pytest.raises(InputError, match="items: expected indices"):
        fit_bias_only(one, -one, [0.0, 1.0])
    with pytest.raises(InputError, match="users: expected indices"):
        fit_bias_only(one[:1], one, [0.0, 1.0])
    with pytest.raises(InputError, match="0 or 1"):
        fit_bias_only(one, one, [0.5, 1.0])


def test_popularity_is_one_column() -> None:
    dense = np.array([[1, 5], [2, 3]], dtype=np.float32)
    assert popularity(dense, 1).tolist() == [5.0, 3.0]
    for column in (-1, 2):
        with pytest.raises(InputError, match="popularity"):
            popularity(dense, column)


def checkerboard(rows: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two features that say all together and nothing alone, among noise."""
    generator = np.random.default_rng(seed)
    dense = generator.normal(size=(rows, 6)).astype(np.float32)
    chance = np.where((dense[:, 0] > 0) == (dense[:, 1] > 0), 0.9, 0.1)
    return dense, (generator.random(rows) < chance).astype(float)


SMALL = TreeSettings(rounds=60, patience=10, min_rows=10)


def test_trees_learn_what_no_single_feature_tells() -> None:
    dense, label = checkerboard()
    later, later_label = checkerboard(seed=1)
    trees = fit_trees(dense, label, None, later, later_label, SMALL, threads=1, seed=0)
    assert trees is not None
    found = auc(later_label, trees.logits(later))
    assert found is not None
    assert found > 0.85
    assert trees.rounds <= 60


def test_rounds_stop_where_later_rows_gain_nothing() -> None:
    dense, _ = checkerboard()
    generator = np.random.default_rng(0)
    label, later_label = generator.integers(0, 2, 3000), generator.integers(0, 2, 3000)
    trees = fit_trees(dense, label, None, checkerboard(seed=1)[0], later_label, SMALL, threads=1, seed=0)
    assert trees is not None
    assert trees.rounds < 30


def test_a_given_number_of_rounds_is_kept_and_later_rows_are_not_looked_at() -> None:
    dense, label = checkerboard()
    trees = fit_trees(dense, label, None, None, None, SMALL, threads=1, seed=0, rounds=7)
    looked = fit_trees(dense, label, None, dense[:9], label[:9], SMALL, threads=1, seed=0, rounds=7)
    assert trees is not None and looked is not None
    assert trees.rounds == 7
    assert trees.logits(dense).tobytes() == looked.logits(dense).tobytes()


def test_trees_are_the_same_for_the_same_rows() -> None:
    dense, label = checkerboard(1000)
    one, two = (fit_trees(dense, label, None, None, None, SMALL, threads=2, seed=5, rounds=3) for _ in "ab")
    assert one is not None and two is not None
    assert one.booster.model_to_string() == two.booster.model_to_string()


def test_weights_count() -> None:
    dense, label = checkerboard(1000)
    weight = np.where(label == 1, 5.0, 1.0)
    plain, heavy = (
        fit_trees(dense, label, given, None, None, SMALL, threads=1, seed=0, rounds=5)
        for given in (None, weight)
    )
    assert plain is not None and heavy is not None
    assert heavy.logits(dense).mean() > plain.logits(dense).mean() + 1


@pytest.mark.parametrize("rows", [0, 1, 15])
def test_too_few_rows_give_no_trees(rows: int) -> None:
    dense, label = checkerboard(rows)
    assert fit_trees(dense, label, None, None, None, SMALL, threads=1, seed=0) is None


def test_one_label_only_gives_no_trees_and_no_rows_no_logits() -> None:
    dense, label = checkerboard(200)
    assert fit_trees(dense, np.ones(200), None, None, None, SMALL, threads=1, seed=0) is None
    trees = fit_trees(dense, label, None, dense[:0], label[:0], SMALL, threads=1, seed=0)
    assert trees is not None
    assert trees.logits(dense[:0]).shape == (0,)


def test_nan_among_the_features_is_named() -> None:
    dense, label = checkerboard(100)
    dense[3, 2] = np.nan
    with pytest.raises(InputError, match="NaN or infinity in 1 rows"):
        fit_trees(dense, label, None, None, None, SMALL, threads=1, seed=0)
    with pytest.raises(InputError, match=r"expected shape \[99, F\]"):
        fit_trees(dense, label[:99], None, None, None, SMALL, threads=1, seed=0)
