"""Numbers read off curves whose answers are known."""

from __future__ import annotations

import pytest

from recmeta.transfer.forecast import break_even, forecast, positives_to_match


def points(**areas: float) -> dict[str, dict[str, float | int]]:
    """K10=.7 is an AUC of .7 with 10 positives; all_1000=.8 with all 1,000."""
    found: dict[str, dict[str, float | int]] = {}
    for name, area in areas.items():
        label = "all" if name.startswith("all") else name[1:]
        found[label] = {"auc": area, "positives": int(name.split("_")[-1].lstrip("K"))}
    return found


CURVE = {
    "ours": points(K0=0.66, K10=0.70, K100=0.72, all_1000=0.74),
    "lightgbm": points(K10=0.60, K100=0.70, all_1000=0.76),
    "logistic": points(K10=0.62, K100=0.66, all_1000=0.70),
}


def test_a_model_from_scratch_needs_so_many_for_the_same() -> None:
    assert positives_to_match(CURVE, 0.70) == pytest.approx(100)
    assert positives_to_match(CURVE, 0.62) == pytest.approx(10)
    between = positives_to_match(CURVE, 0.73)
    assert between is not None and 100 < between < 1000
    assert positives_to_match(CURVE, 0.80) is None


def test_break_even_is_where_scratch_stays_at_least_as_good() -> None:
    assert break_even(CURVE) == 1000
    never = {**CURVE, "lightgbm": points(K10=0.60, K100=0.70, all_1000=0.73)}
    assert break_even(never) is None
    once = {**CURVE, "lightgbm": points(K10=0.71, K100=0.70, all_1000=0.73)}
    assert break_even(once) is None


def test_the_forecast_is_the_median_of_what_other_surfaces_needed() -> None:
    slow = {"ours": points(K0=0.5, K10=0.5, K100=0.6, all_1000=0.7)}
    told = forecast({"contexts": {"a": {"curve": CURVE}, "b": {"curve": slow}}}, 10)
    assert told["contexts"] == 2
    assert told["low"] < told["needed"] < told["high"]
    assert told["more"] == told["needed"] - 10
    assert told["auc"] == pytest.approx((0.70 + 0.50) / 2)


def test_a_surface_that_has_enough_needs_no_more() -> None:
    assert forecast({"contexts": {"a": {"curve": CURVE}}}, 5_000)["more"] == 0


def test_no_evidence_gives_no_number() -> None:
    told = forecast({}, 10)
    assert told["needed"] is None and told["more"] is None and told["auc"] is None
