"""From the simulator's log, by its propensities, the value of a policy that the simulator can play out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recmeta.evaluation.off_policy import evaluate
from recmeta.events.simulated_feed import simulate_feed
from recmeta.events.simulator import SimulatorSettings, simulate, simulate_shown_alike

SMALL = {"users": 80, "items": 120, "days": 12, "slates_per_day": 1.0, "slate": 3}


@pytest.mark.parametrize("sharpness", [0.5, 1.5])
def test_weighing_the_log_recovers_the_value_of_another_policy(sharpness: float) -> None:
    errors, gains = [], []
    for seed in range(25):
        trial = simulate_feed(SimulatorSettings(seed=seed, **SMALL), sharpness)
        found = evaluate(
            trial.reward, trial.propensity, trial.target, request=trial.slate, position=trial.position,
            user=trial.user, weighting="slate",
        )  # fmt: skip
        errors.append(found.estimates["ips"].value - trial.value)
        gains.append(trial.value - trial.logged_value)
    errors = np.array(errors)
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(len(errors))
    assert abs(np.mean(gains)) > 10 * errors.std() / np.sqrt(len(errors))  # it is another value, surely


def test_the_watched_feed_is_the_feed_of_the_log() -> None:
    settings = SimulatorSettings(**SMALL)
    trial = simulate_feed(settings, 1.0)
    shown = simulate(settings).rows.filter(pl.col("event_type") == "IMPRESSION")
    assert shown.height == len(trial.reward)
    assert sorted(shown["propensity"]) == pytest.approx(sorted(trial.propensity), rel=1e-6)
    np.testing.assert_allclose(trial.target, trial.propensity, rtol=1e-9)
    clicks = simulate(settings).rows.filter(pl.col("event_type") == "CLICK").height
    assert abs(clicks - trial.reward.sum()) <= 2  # some click after the log's end


def test_a_feed_that_shows_all_alike_has_the_same_past_and_even_propensities_afterwards() -> None:
    settings = SimulatorSettings(**SMALL)
    plain, alike = simulate(settings).rows, simulate_shown_alike(settings, 8).rows
    border = plain["event_timestamp"].dt.truncate("1d").min() + pl.duration(days=8)  # type: ignore[operator]
    columns = ["user_id", "item_id", "event_type", "event_timestamp", "propensity"]
    past = [rows.filter(pl.col("event_timestamp") < border).select(columns) for rows in (plain, alike)]
    assert past[0].equals(past[1])
    later = alike.filter(pl.col("event_timestamp") >= border, pl.col("position") == 0)
    spread = later.filter(pl.col("event_type") == "IMPRESSION").group_by("event_timestamp").agg("propensity")
    assert later["propensity"].max() < 0.1 < plain["propensity"].max()
    assert spread.height > 100
