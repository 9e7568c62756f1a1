"""Estimates against policies whose value is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tabular_bandit import REWARD, TARGET, VALUE, draw

from recmeta.evaluation.off_policy import evaluate, fit_direct_model

WRONG_MODEL = np.random.default_rng(7).random(REWARD.shape)


def many(estimator: str, table: np.ndarray, draws: int = 400, rows: int = 300) -> np.ndarray:
    """An estimate on each of many logs."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        log = draw(random, rows)
        value = evaluate(log.reward, log.propensity, log.target, **log.model(table))
        found.append(value.estimates[estimator].value)
    return np.array(found)


@pytest.mark.parametrize("estimator", ["ips", "dr"])
def test_the_estimate_is_unbiased_even_with_a_wrong_model(estimator: str) -> None:
    found = many(estimator, WRONG_MODEL)
    assert abs(found.mean() - VALUE) < 3 * found.std() / np.sqrt(len(found))


def test_the_direct_estimate_is_as_wrong_as_its_model() -> None:
    found = many("direct", WRONG_MODEL)
    assert abs(found.mean() - VALUE) > 20 * found.std() / np.sqrt(len(found))


def test_snips_comes_near_the_value_as_the_log_grows() -> None:
    log = draw(np.random.default_rng(1), 200_000)
    found = evaluate(log.reward, log.propensity, log.target)
    assert found.estimates["snips"].value == pytest.approx(VALUE, abs=0.01)


def test_doubly_robust_varies_less_than_ips_where_the_model_is_right() -> None:
    assert many("dr", REWARD).std() < 0.8 * many("ips", REWARD).std()


def test_clipping_takes_variance_and_gives_a_bias_downwards() -> None:
    random = np.random.default_rng(2)
    clipped, plain = [], []
    for _ in range(300):
        log = draw(random, 300)
        found = evaluate(log.reward, log.propensity, log.target, clip=2.0).estimates
        clipped.append(found["clipped_ips"].value)
        plain.append(found["ips"].value)
    assert np.std(clipped) < np.std(plain)
    assert np.mean(clipped) < VALUE - 0.05


def test_snips_moves_by_a_constant_that_every_reward_gains_and_ips_does_not() -> None:
    log = draw(np.random.default_rng(3), 500)
    before = evaluate(log.reward, log.propensity, log.target).estimates
    after = evaluate(log.reward + 5.0, log.propensity, log.target).estimates
    assert after["snips"].value - before["snips"].value == pytest.approx(5.0, abs=1e-9)
    assert after["snips"].error == pytest.approx(before["snips"].error, rel=1e-9)
    assert abs(after["ips"].value - before["ips"].value - 5.0) > 0.01


def test_under_uniform_logging_snips_is_replay() -> None:
    random = np.random.default_rng(4)
    action, reward = random.integers(0, 4, 1000), random.random(1000)
    found = evaluate(reward, np.full(1000, 0.25), (action == 2).astype(float))
    assert found.estimates["snips"].value == pytest.approx(reward[action == 2].mean())


def test_the_logged_policy_evaluated_on_its_own_log_is_its_mean() -> None:
    log = draw(np.random.default_rng(5), 500)
    found = evaluate(log.reward, log.propensity, log.propensity)
    for name in ("logged", "ips", "clipped_ips", "snips"):
        assert found.estimates[name].value == pytest.approx(log.reward.mean())
    assert found.effective_requests == pytest.approx(500)
    assert found.gain("ips").error == pytest.approx(0.0, abs=1e-12)
    assert not found.warnings


def test_whole_lists_are_weighed_without_bias_where_a_reward_depends_on_what_stands_above() -> None:
    """Exactly: the estimate of each list, times the list's probability, sums to the value."""
    random = np.random.default_rng(6)
    logging, target = random.normal(size=4), 2 * random.normal(size=4)
    reward = random.random((5, 4))  # of an item below another one; the last row: below none
    model = random.random((4, 3))  # by item and position; as wrong as can be

    def chances(logits: np.ndarray, order: tuple[int, ...]) -> list[float]:
        left = [np.exp(logits)[[i for i in range(4) if i not in order[:k]]].sum() for k in range(len(order))]
        return [float(np.exp(logits[item]) / mass) for item, mass in zip(order, left, strict=True)]

    truth, told, slots = 0.0, {"ips": 0.0, "dr": 0.0}, 0.0
    for order in itertools.permutations(range(4), 3):
        p0, p1 = chances(logging, order), chances(target, order)
        gains = [reward[above, item] for above, item in zip((4, *order), order, strict=False)]
        baseline = []
        for k in range(3):
            rest = [i for i in range(4) if i not in order[:k]]
            baseline.append(sum(chances(target, (*order[:k], i))[k] * model[i, k] for i in rest))
        given = {
            "request": [0, 0, 0], "position": [0, 1, 2], "baseline": baseline,
            "predicted": [model[item, k] for k, item in enumerate(order)],
        }  # fmt: skip
        found = evaluate(gains, p0, p1, weighting="slate", **given)
        truth += np.prod(p1) * sum(gains)
        for name in told:
            told[name] += np.prod(p0) * found.estimates[name].value
        slots += np.prod(p0) * evaluate(gains, p0, p1, **given).estimates["ips"].value
    assert told["ips"] == pytest.approx(truth, abs=1e-12)
    assert told["dr"] == pytest.approx(truth, abs=1e-12)
    assert abs(slots - truth) > 0.01  # one slot at a time is another question


def test_rows_of_a_request_may_come_in_any_order() -> None:
    random = np.random.default_rng(8)
    request, position = np.repeat(np.arange(50), 4), np.tile(np.arange(4), 50)
    columns = {
        "reward": random.random(200), "propensity": random.uniform(0.2, 1, 200),
        "target": random.random(200), "request": request, "position": position, "user": request // 5,
    }  # fmt: skip
    shuffled = random.permutation(200)
    one = evaluate(**columns, weighting="slate")
    other = evaluate(**{name: found[shuffled] for name, found in columns.items()}, weighting="slate")
    for name in one.estimates:
        assert one.estimates[name].value == pytest.approx(other.estimates[name].value)
        assert one.estimates[name].error == pytest.approx(other.estimates[name].error)


def test_the_interval_covers_the_value_when_rows_of_a_user_hang_together() -> None:
    random = np.random.default_rng(9)
    by_user = dict.fromkeys(("ips", "snips", "dr"), 0)
    by_row = 0
    draws, users, each = 400, 150, 6
    for _ in range(draws):
        log = draw(random, users * each)
        user = np.repeat(np.arange(users), each)
        reward = log.reward + np.repeat(random.normal(0, 0.7, users), each)  # some like everything
        found = evaluate(reward, log.propensity, log.target, user=user, **log.model(REWARD)).estimates
        for name in by_user:
            low, high = found[name].interval
            by_user[name] += low <= VALUE <= high
        low, high = evaluate(reward, log.propensity, log.target).estimates["snips"].interval
        by_row += low <= VALUE <= high
    for name, covered in by_user.items():
        assert 0.90 <= covered / draws <= 0.99, name
    assert by_row / draws < 0.90  # what it is good for: rows as if they were independent cover too rarely


def test_a_fitted_model_is_crossed_so_that_no_row_is_judged_by_itself() -> None:
    random = np.random.default_rng(10)
    features, reward = random.random((400, 2)), random.random(400)  # nothing to learn
    predicted, baseline = fit_direct_model(features, reward, features[:, None, :], np.ones((400, 1)))
    np.testing.assert_array_equal(predicted, baseline)
    assert np.corrcoef(predicted, reward)[0, 1] < 0.1


def test_the_fitted_model_makes_doubly_robust_estimates_surer() -> None:
    log = draw(np.random.default_rng(11), 4000)
    features = np.c_[log.kind, log.action]
    candidates = np.stack(
        [np.repeat(log.kind[:, None], 4, axis=1), np.tile(np.arange(4), (4000, 1))], axis=-1
    )
    predicted, baseline = fit_direct_model(features, log.reward, candidates, TARGET[log.kind])
    found = evaluate(log.reward, log.propensity, log.target, predicted=predicted, baseline=baseline)
    low, high = found.estimates["dr"].interval
    assert low <= VALUE <= high
    assert found.estimates["dr"].error < 0.9 * found.estimates["ips"].error
