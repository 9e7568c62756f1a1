"""What the estimators refuse, and what they warn of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tabular_bandit import draw

from recmeta.errors import InputError
from recmeta.evaluation.off_policy import evaluate, fit_direct_model

GOOD: dict[str, Any] = {"reward": [0.0, 1.0], "propensity": [0.5, 0.5], "target": [0.2, 1.0]}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"propensity": [0.0, 0.5]}, "propensity: expected numbers in (0, 1], found 0.0 in row 0 (1 such"),
        ({"propensity": [0.5, 1.5]}, "propensity"),
        ({"propensity": [0.5, -0.1]}, "propensity"),
        ({"propensity": [0.5, np.nan]}, "propensity"),
        ({"propensity": [0.5]}, "propensity: expected shape [2], found [1]"),
        ({"target": [0.2, 1.1]}, "target"),
        ({"target": [0.2, np.inf]}, "target"),
        ({"reward": [0.0, np.nan]}, "reward"),
        ({"reward": [[0.0, 1.0]]}, "reward"),
        ({"reward": [], "propensity": [], "target": []}, "at least one row"),
        ({"user": ["a"]}, "user"),
        ({"user": ["a", "b"], "request": [1, 1]}, "one user a request"),
        ({"request": [1, 1], "position": [0, 0]}, "one row a position"),
        ({"weighting": "slate"}, "expected request and position"),
        ({"weighting": "list"}, "slot or slate"),
        ({"clip": 0.0}, "clip"),
        ({"clip": np.nan}, "clip"),
        ({"predicted": [0.1, 0.2]}, "found one of them"),
        ({"predicted": [0.1, np.nan], "baseline": [0.1, 0.2]}, "predicted"),
        ({"unsupported": [0.1, 2.0]}, "unsupported"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_what_is_wrong(changed: dict[str, Any], told: str) -> None:
    evaluate(**GOOD)
    with pytest.raises(InputError) as caught:
        evaluate(**{**GOOD, **changed})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"features": np.zeros((6, 2, 1))},
        {"candidates": np.zeros((6, 1, 3))},
        {"candidates": np.full((6, 1, 2), np.nan)},
        {"chance": np.ones((6, 2))},
        {"folds": 7},
        {"folds": 1},
    ],
)
def test_a_model_is_not_fitted_to_what_does_not_fit_together(changed: dict[str, Any]) -> None:
    given = {
        "features": np.zeros((6, 2)), "reward": np.zeros(6), "candidates": np.zeros((6, 1, 2)),
        "chance": np.ones((6, 1)), "folds": 2,
    }  # fmt: skip
    fit_direct_model(**given)
    with pytest.raises(InputError):
        fit_direct_model(**{**given, **changed})


def test_a_policy_that_the_log_never_shows_is_warned_of() -> None:
    log = draw(np.random.default_rng(0), 2000)
    never = log.action == 3
    rows = {name: getattr(log, name)[~never] for name in ("reward", "propensity", "target")}
    found = evaluate(**rows)
    assert any("support is missing" in warning for warning in found.warnings)
    assert found.mean_weight < 0.9


def test_support_that_is_known_to_be_missing_is_told_as_it_is() -> None:
    log = draw(np.random.default_rng(0), 2000)
    found = evaluate(log.reward, log.propensity, log.target, unsupported=np.full(2000, 0.25))
    assert any("25.0% of what the policy would show had propensity zero" in told for told in found.warnings)


def test_a_large_clipped_share_few_rows_and_few_users_are_warned_of() -> None:
    log = draw(np.random.default_rng(0), 40)
    found = evaluate(log.reward, log.propensity, log.target, clip=1.5, user=np.arange(40) % 10)
    told = " ".join(found.warnings)
    assert "clipped_ips is biased" in told
    assert "do not decide by them" in told
    assert "only 10 users" in told


def test_few_rows_that_decide_everything_are_warned_of() -> None:
    propensity, reward = np.full(3000, 0.5), np.random.default_rng(0).integers(0, 2, 3000).astype(float)
    assert not evaluate(reward, propensity, propensity).warnings
    propensity[:2], reward[:2] = 0.001, 1.0
    found = evaluate(reward, propensity, np.full(3000, 0.5))
    assert any("about 2 users' rare rows decide" in told for told in found.warnings)


def test_one_user_gives_a_value_and_no_interval() -> None:
    found = evaluate(**GOOD, user=["a", "a"]).as_json()
    assert found["estimates"]["ips"] == {"value": 1.0, "low": None, "high": None, "error": None}


def test_a_position_where_nothing_weighs_leaves_snips_undefined_and_the_rest_as_it_is() -> None:
    found = evaluate([1.0, 1.0], [0.5, 0.5], [1.0, 0.0], request=[0, 0], position=[0, 1]).as_json()
    assert found["estimates"]["snips"]["value"] is None
    assert found["estimates"]["ips"]["value"] == 2.0
    assert found["effective_requests"] == 0.0
