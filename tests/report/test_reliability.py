"""Reliability: honest probabilities lie on the diagonal, dishonest ones do not, and users widen intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recmeta.errors import InputError
from recmeta.report.bins import bin_of, equal_count_edges
from recmeta.report.reliability import reliability, wilson


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probability = generator.beta(1, 6, count)
    return (generator.random(count) < probability).astype(float), probability


def test_bins_hold_equally_many_rows_in_ascending_order() -> None:
    label, probability = rows(5000)
    found = reliability(label, probability)
    assert [each["rows"] for each in found["bins"]] == [500] * 10
    predicted = [each["predicted"] for each in found["bins"]]
    assert predicted == sorted(predicted)
    assert sum(each["observed"] * each["rows"] for each in found["bins"]) == pytest.approx(label.sum())


def test_honest_probabilities_lie_within_their_intervals_and_halved_ones_do_not() -> None:
    label, probability = rows(20_000)

    def inside(found: dict) -> int:  # type: ignore[type-arg]
        return sum(each["low"] <= each["predicted"] <= each["high"] for each in found["bins"])

    honest, halved = reliability(label, probability), reliability(label, probability / 2)
    assert inside(honest) >= 9
    assert inside(halved) <= 2
    assert honest["error"] < 0.01 < halved["error"]
    assert honest["log_loss"] < honest["base_rate_log_loss"]


def test_equal_probabilities_stay_in_one_bin() -> None:
    found = reliability([0, 1] * 50, [0.5] * 100)
    assert [each["rows"] for each in found["bins"]] == [100]
    assert found["bins"][0]["observed"] == 0.5


def test_a_weight_of_three_counts_as_three_rows() -> None:
    label, probability = rows(400)
    weight = np.where(np.arange(400) % 2 == 0, 3.0, 1.0)
    repeated = np.repeat(np.arange(400), weight.astype(int))
    heavy = reliability(label, probability, weight)
    copied = reliability(label[repeated], probability[repeated])
    for a, b in zip(heavy["bins"], copied["bins"], strict=True):
        assert a["observed"] == pytest.approx(b["observed"])
        assert a["predicted"] == pytest.approx(b["predicted"])
    assert heavy["log_loss"] == pytest.approx(copied["log_loss"])


def test_rows_that_a_user_repeats_say_no_more_than_one_of_them() -> None:
    label, probability = rows(300)
    repeated = np.repeat(np.arange(300), 10)
    once = reliability(label, probability, bins=1)["bins"][0]
    many = reliability(label[repeated], probability[repeated], bins=1, user=repeated)["bins"][0]
    naive = reliability(label[repeated], probability[repeated], bins=1)["bins"][0]
    width = {
        name: found["high"] - found["low"]
        for name, found in {"once": once, "many": many, "naive": naive}.items()
    }
    assert width["many"] == pytest.approx(width["once"], rel=0.01)
    assert width["naive"] < 0.5 * width["many"]


def test_a_rate_of_nothing_has_an_interval_as_wide_as_its_users() -> None:
    low, high = wilson(0.0, 10)
    assert low == 0.0
    assert high == pytest.approx(0.2775, abs=1e-4)  # Wilson's upper end for 0 of 10
    found = reliability([0] * 1000, [0.01] * 1000, user=[row % 10 for row in range(1000)])
    assert found["bins"][0]["high"] == pytest.approx(high)


def test_without_rows_nothing_is_said() -> None:
    found = reliability([], [])
    assert (found["bins"], found["rows"], found["log_loss"]) == ([], 0, None)


def test_certainty_that_was_wrong_has_a_finite_loss() -> None:
    assert math.isfinite(reliability([1.0, 0.0], [0.0, 1.0])["log_loss"])


@pytest.mark.parametrize(
    ("label", "probability", "options"),
    [
        ([0, 2], [0.1, 0.2], {}),
        ([0, 1], [0.1, 1.2], {}),
        ([0, 1], [0.1, math.nan], {}),
        ([0, 1], [0.1], {}),
        ([0, 1], [0.1, 0.2], {"weight": [1.0, 0.0]}),
        ([0, 1], [0.1, 0.2], {"bins": 0}),
    ],
)
def test_what_is_no_label_or_probability_is_refused(label: list, probability: list, options: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError):
        reliability(label, probability, **options)


def test_a_border_is_the_largest_value_of_the_bin_to_its_left() -> None:
    values = np.array([0.0] * 8 + [1.0, 2.0])
    edges = equal_count_edges(values, np.ones(10), 10)
    assert edges.tolist() == [0.0, 1.0]
    assert bin_of(np.array([-5.0, 0.0, 0.5, 1.0, 2.0, 9.0]), edges).tolist() == [0, 0, 1, 1, 2, 2]
