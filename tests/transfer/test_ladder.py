"""The ladder: which rung serves, and that a surface unlike all others may overrule what others proved."""

from __future__ import annotations

import numpy as np
import pytest

from recmeta.contexts import Contexts
from recmeta.evaluation.metrics import auc
from recmeta.settings import TransferSettings
from recmeta.transfer.ladder import Labelled, Step, Terms, climb, kind_of, settle, step_for

POLICY = (Step(0, "zero_shot", 30.0, 0.2), Step(10, "stack", 30.0, 0.2), Step(100, "boosted", 30.0, 0.2))
SCALES = np.ones(3)


def terms(rate: float) -> Terms:
    return Terms(SCALES, rate, TransferSettings())


def shots(rows: int, seed: int = 0, *, experts_know: bool = True, features_know: bool = False) -> Labelled:
    rng = np.random.default_rng(seed)
    label = (rng.random(rows) < 0.2).astype(np.float64)
    truth = (2.0 * label - 1.0)[:, None]
    scaled = rng.normal(size=(rows, 3)) + (0.3 * truth if experts_know else 0.0)
    dense = rng.normal(size=(rows, 4)).astype(np.float32)
    if features_know:
        dense[:, 2] += 1.5 * truth[:, 0]
    return Labelled(scaled, dense, label, np.ones(rows))


def none() -> Labelled:
    return Labelled(np.empty((0, 3)), np.empty((0, 4), np.float32), np.empty(0), np.empty(0))


@pytest.mark.parametrize(
    ("positives", "rung"),
    [(0, "zero_shot"), (9, "zero_shot"), (10, "stack"), (99, "stack"), (100, "boosted"), (10_000, "boosted")],
)
def test_the_rung_is_the_last_one_that_is_reached(positives: int, rung: str) -> None:
    assert step_for(POLICY, positives).rung == rung


def test_a_surface_without_any_row_is_served_by_the_prior() -> None:
    climbed = climb(POLICY[2], none(), terms(0.1))
    assert climbed.rung == "zero_shot" and climbed.residual is None
    np.testing.assert_allclose(climbed.stack.weights, [0.4, 0.4, 0.2])


def test_zero_shot_moves_the_intercept_and_no_weight() -> None:
    given = shots(200)
    climbed = climb(POLICY[0], given, terms(0.5))
    np.testing.assert_allclose(climbed.stack.weights, [0.4, 0.4, 0.2])
    chance = 1 / (1 + np.exp(-climbed.logits(given.scaled, given.dense)))
    assert chance.mean() == pytest.approx(given.label.mean(), abs=0.01)


def test_the_boosted_rung_adds_trees_to_the_stack() -> None:
    given, later = shots(1_500, features_know=True), shots(1_500, seed=1, features_know=True)
    stack, boosted = (climb(step, given, terms(0.2)) for step in POLICY[1:])
    assert boosted.rung == "boosted" and boosted.residual is not None
    scores = [auc(later.label, one.logits(later.scaled, later.dense)) for one in (stack, boosted)]
    assert (scores[1] or 0) > (scores[0] or 1) + 0.02


def test_too_few_rows_for_trees_stay_on_the_stack() -> None:
    assert climb(POLICY[2], shots(15), terms(0.2)).rung == "stack"


def test_a_surface_unlike_all_others_moves_up_by_its_own_rows() -> None:
    unlike = shots(300, experts_know=False, features_know=True)
    assert settle(POLICY[1], unlike, terms(0.2)).rung == "boosted"


def test_a_surface_like_the_others_stays_where_their_evidence_put_it() -> None:
    assert settle(POLICY[1], shots(300), terms(0.2)) == POLICY[1]


def test_a_handful_of_rows_decides_nothing() -> None:
    few = shots(40, experts_know=False, features_know=True)
    assert few.label.sum() < 10
    assert settle(POLICY[1], few, terms(0.2)) == POLICY[1]


def test_what_was_met_and_what_was_drawn_are_two_kinds() -> None:
    contexts = Contexts.model_validate(
        {
            "contexts": {
                "reading": {"positives": ["READ"], "negatives": {"sample": {}}},
                "liking": {"positives": ["LIKE"], "negatives": {"exposure": {"context": "reading"}}},
            }
        }
    )
    assert [kind_of(context) for context in contexts.declared()] == ["met", "sampled"]
