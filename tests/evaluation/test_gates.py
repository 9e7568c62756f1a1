"""Each gate can refuse alone, with one line that says why; what serves is never made worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recmeta.errors import InputError
from recmeta.evaluation.gates import (
    Decision,
    Scored,
    beats_shared,
    calibrated,
    decide,
    decide_bundle,
    not_below,
    parity,
    volume,
)
from recmeta.evaluation.resampling import resample
from recmeta.settings import GateSettings

SETTINGS = GateSettings(resamples=200)
CHANCE = np.log(0.3 / 0.7)


def scored(signals: dict[str, float], *, rows: int = 3000, users: int = 150, seed: int = 0) -> Scored:
    """Rows whose label follows one hidden cause; a candidate sees the cause through noise.

    A candidate's signal is the variance that it explains; its logits are the honest ones for what it sees.
    """
    generator = np.random.default_rng(seed)
    parts = generator.normal(size=(10, rows))  # ten independent causes of equal weight
    label = (generator.random(rows) < 1 / (1 + np.exp(-(parts.sum(axis=0) * 0.6 - 1)))).astype(np.float64)
    logits = {name: parts[: int(signal)].sum(axis=0) * 0.6 - 1 for name, signal in signals.items()}
    user = generator.integers(0, users, rows)
    return Scored(label, np.ones(rows), user, user, logits)


def decided(signals: dict[str, float], **options: object) -> Decision:
    validation, test = (scored(signals, seed=seed, **options) for seed in (1, 2))  # type: ignore[arg-type]
    return decide("feed", validation, test, SETTINGS, seed=0)


ALL = {"popularity": 1, "bias_only": 2, "shared": 5, "adapter": 7, "trees": 5, "blend": 6}


def test_the_best_of_the_night_serves_where_it_passes_every_gate() -> None:
    decision = decided(ALL)
    assert (decision.serves, decision.promoted) == ("adapter", True)
    assert decision.reason.startswith("adapter beats the shared model: AUC +0.")
    assert all(check.passed for check in decision.checks)
    assert {check.name for check in decision.checks} == {
        "volume",
        "adapter.calibrated",
        "adapter.beats_shared",
        "adapter.not_below_popularity",
        "adapter.not_below_bias_only",
        "adapter.not_below_trees",
    }


def test_an_adapter_that_does_not_beat_the_shared_model_does_not_serve() -> None:
    validation = scored({**ALL, "adapter": 7}, seed=1)
    test = scored({**ALL, "adapter": 5}, seed=2)
    decision = decide("feed", validation, test, SETTINGS, seed=0)
    assert (decision.serves, decision.promoted) == ("shared", True)
    assert "adapter does not beat the shared model: AUC +0.0000" in decision.reason
    assert "\n" not in decision.reason


def test_what_serves_now_stays_where_nothing_beats_it() -> None:
    decision = decided({**ALL, "incumbent": 7})
    assert (decision.serves, decision.promoted) == ("incumbent", False)
    assert decision.reason.startswith("what serves now stays: adapter does not beat what serves now")


def test_a_worse_incumbent_is_replaced() -> None:
    decision = decided({**ALL, "incumbent": 4})
    assert (decision.serves, decision.promoted) == ("adapter", True)
    assert "beats what serves now" in decision.reason


def test_trees_that_win_on_later_data_are_shipped_instead() -> None:
    signals = {**ALL, "adapter": 5, "blend": 5, "trees": 8}
    validation = scored({**signals, "trees": 4}, seed=1)  # validation does not see it yet
    decision = decide("feed", validation, scored(signals, seed=2), SETTINGS, seed=0)
    assert (decision.serves, decision.promoted) == ("trees", True)
    assert "shared below trees" in decision.reason


def test_popularity_serves_where_it_is_better_than_anything_learnt() -> None:
    decision = decided({"popularity": 8, "shared": 3, "adapter": 3, "trees": 3})
    assert (decision.serves, decision.promoted) == ("popularity", True)


def test_a_bias_only_model_that_wins_leaves_nothing_to_serve_because_it_cannot() -> None:
    decision = decided({**ALL, "bias_only": 10})
    assert (decision.serves, decision.promoted) == ("nothing", False)
    assert "below bias_only" in decision.reason


def test_a_candidate_worse_than_the_base_rate_is_refused_for_its_calibration() -> None:
    test = scored(ALL, seed=2)
    loud = {name: 40 * logit for name, logit in test.logits.items()}
    decision = decide("feed", scored(ALL, seed=1), replace(test, logits=loud), SETTINGS, seed=0)
    assert decision.serves == "nothing"
    refused = [check for check in decision.checks if not check.passed]
    assert {check.name for check in refused} >= {"adapter.calibrated", "shared.calibrated"}
    assert "is worse than the base rate's" in refused[0].reason


def test_equal_candidates_leave_the_choice_to_the_simplest() -> None:
    decision = decided({"popularity": 1, "shared": 5, "adapter": 5, "trees": 5, "blend": 5})
    assert decision.serves == "shared"


@pytest.mark.parametrize(
    ("rows", "users", "said"),
    [
        (0, 1, "0 positives where 30 are needed"),
        (40, 40, "positives where"),
        (3000, 5, "5 users where 10 are"),
    ],
)
def test_too_few_rows_decide_nothing_and_what_serves_stays(rows: int, users: int, said: str) -> None:
    fresh = decided(ALL, rows=rows, users=users)
    assert (fresh.serves, fresh.promoted) == ("shared", False)
    assert said in fresh.reason
    kept = decided({**ALL, "incumbent": 1}, rows=rows, users=users)
    assert (kept.serves, kept.promoted) == ("incumbent", False)


def test_rows_of_one_label_only_decide_nothing() -> None:
    test = scored(ALL, seed=2)
    decision = decide("feed", scored(ALL, seed=1), replace(test, label=np.ones(3000)), SETTINGS, seed=0)
    assert decision.serves == "shared"
    assert decision.metrics["shared"]["auc"] == {"value": None, "low": None, "high": None}


def test_pure_noise_promotes_an_adapter_about_as_rarely_as_the_confidence_says() -> None:
    promoted = 0
    for turn in range(60):
        generator = np.random.default_rng(turn)
        test = scored({"popularity": 1, "shared": 4}, rows=600, seed=turn)
        noise = test.logits["shared"] + generator.normal(scale=0.5, size=600)
        other = test.logits["shared"] + generator.normal(scale=0.5, size=600)
        logits = {"shared": noise, "adapter": other}
        resampled = resample(test.label, logits, test.user, resamples=200, seed=turn)
        promoted += beats_shared("adapter", resampled, SETTINGS).passed
    assert promoted <= 13, "10 % of 60, and three deviations"


def test_a_decision_is_the_same_for_the_same_seed() -> None:
    assert decided(ALL) == decided(ALL)


def test_figures_of_every_candidate_come_with_intervals() -> None:
    decision = decided(ALL)
    assert set(decision.metrics) == set(ALL)
    figure = decision.metrics["trees"]["ndcg"]
    assert figure["low"] is not None and figure["value"] is not None and figure["high"] is not None
    assert figure["low"] < figure["value"] < figure["high"]


def test_each_gate_refuses_alone_with_one_line() -> None:
    test = scored(ALL, seed=2)
    resampled = resample(
        test.label,
        {**test.logits, "base rate": np.full(3000, CHANCE), "loud": -10 * test.logits["shared"]},
        test.user,
        resamples=100,
    )
    refusals = [
        volume(replace(test, label=np.zeros(3000)), SETTINGS),
        calibrated("loud", resampled, SETTINGS),
        beats_shared("popularity", resampled, SETTINGS),
        not_below("popularity", "trees", resampled, SETTINGS),
        parity("units/ab", 2e-4, SETTINGS),
        parity("units/ab", float("nan"), SETTINGS),
    ]
    for refusal in refusals:
        assert not refusal.passed
        assert refusal.reason
        assert "\n" not in refusal.reason


def test_a_difference_within_the_tolerance_is_no_reason_to_prefer_a_baseline() -> None:
    test = scored({"shared": 5}, seed=2)
    better = test.logits["shared"] + 0.02 * (test.label - 0.5)  # always a little better, never by much
    resampled = resample(test.label, {**test.logits, "trees": better}, test.user, resamples=100)
    gap = resampled.difference("trees", "shared", "auc")
    assert gap.value is not None
    assert 0 < gap.value < SETTINGS.tolerance
    assert gap.probability_better == 1.0
    assert not_below("shared", "trees", resampled, SETTINGS).passed


@pytest.mark.parametrize(
    ("validation", "test", "said"),
    [
        (ALL, {**ALL, "incumbent": 1}, "same ones on validation and test"),
        ({"shared": 1}, {"shared": 1}, r"missing \['popularity'\]"),
        ({**ALL, "magic": 1}, {**ALL, "magic": 1}, r"unknown \['magic'\]"),
    ],
)
def test_unknown_and_missing_candidates_are_named(
    validation: dict[str, float], test: dict[str, float], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        decide("feed", scored(validation), scored(test), SETTINGS, seed=0)


def test_a_first_bundle_is_promoted_where_any_context_passed() -> None:
    decisions = {"feed": decided(ALL), "thin": decided(ALL, rows=10)}
    found = decide_bundle(decisions, {"units/ab": 1e-6}, SETTINGS, parent_contexts=None)
    assert found.promote
    assert found.reason == "something better serves feed"


def test_a_bundle_whose_export_differs_from_its_model_is_refused() -> None:
    found = decide_bundle({"feed": decided(ALL)}, {"trees/feed": 0.1}, SETTINGS, parent_contexts=None)
    assert not found.promote
    assert found.reason == "trees/feed: logits differ by at most 0.1, allowed are 0.0001"


def test_a_bundle_in_which_nothing_changed_is_refused() -> None:
    kept = {"feed": decided({**ALL, "incumbent": 7})}
    found = decide_bundle(kept, {}, SETTINGS, parent_contexts=frozenset({"feed"}))
    assert not found.promote
    assert "nothing changed" in found.reason
    new = {**kept, "fresh": decided(ALL, rows=10)}
    assert decide_bundle(new, {}, SETTINGS, parent_contexts=frozenset({"feed"})).promote


def test_what_is_outdated_makes_room_even_for_the_same_but_not_for_damage() -> None:
    kept = {"feed": decided({**ALL, "incumbent": 7})}
    serving = frozenset({"feed"})
    found = decide_bundle(kept, {}, SETTINGS, parent_contexts=serving, outdated="it knows no items")
    assert found.promote and found.reason == "it knows no items"
    assert not decide_bundle(kept, {"a": 1.0}, SETTINGS, parent_contexts=serving, outdated="old").promote


def test_a_stack_that_was_climbed_anew_is_chosen_and_judged_like_others() -> None:
    better = decided({**ALL, "incumbent": 5, "stack": 9})
    assert (better.serves, better.promoted) == ("stack", True)
    assert {"stack.beats_shared", "stack.beats_incumbent"} <= {check.name for check in better.checks}
    assert decided({**ALL, "incumbent": 9, "stack": 9}).serves == "incumbent"


def test_a_first_bundle_without_any_evidence_is_refused() -> None:
    found = decide_bundle({"feed": decided(ALL, rows=10)}, {}, SETTINGS, parent_contexts=None)
    assert not found.promote
    assert found.reason == "no context has anything that passed its gates"
