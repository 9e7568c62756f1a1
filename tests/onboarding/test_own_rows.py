"""What a surface's own rows can take back, where users are left out in turn."""

from __future__ import annotations

import numpy as np
import pytest

from recmeta.transfer.ladder import Climbed, Labelled, Step
from recmeta.transfer.own_rows import judge_on_own_rows
from recmeta.transfer.stack import Stack

ROWS, USERS = 600, 40


def rows(seed: int = 0) -> tuple[Labelled, list[str]]:
    """One expert that knows the truth, and one that knows nothing."""
    rng = np.random.default_rng(seed)
    scaled = rng.standard_normal((ROWS, 2))
    label = (rng.random(ROWS) < 1 / (1 + np.exp(-2 * scaled[:, 0]))).astype(np.float64)
    users = [f"user-{number}" for number in rng.integers(USERS, size=ROWS)]
    return Labelled(scaled, np.zeros((ROWS, 1), dtype=np.float32), label, np.ones(ROWS)), users


def serving(**weights: tuple[float, float]):  # type: ignore[no-untyped-def]
    """A ladder whose rungs serve these weights, whatever they see."""
    seen: list[Labelled] = []

    def fit(step: Step, labelled: Labelled) -> Climbed:
        seen.append(labelled)
        return Climbed(step.rung, Stack(np.array(weights[step.rung]), 0.0), None)

    return fit, seen


GOOD, NOISE, WRONG = (2.0, 0.0), (0.0, 1.0), (-2.0, 0.0)


@pytest.mark.parametrize(
    ("boosted", "stack", "zero", "left", "refused"),
    [
        (GOOD, NOISE, NOISE, "boosted", []),
        (WRONG, GOOD, NOISE, "stack", ["boosted"]),
        (WRONG, WRONG, NOISE, "zero_shot", ["boosted", "stack"]),
        (NOISE, GOOD, GOOD, "stack", ["boosted"]),
    ],
)
def test_a_rung_that_is_worse_than_zero_shot_makes_room_for_the_next_lower_one(
    boosted: tuple[float, float],
    stack: tuple[float, float],
    zero: tuple[float, float],
    left: str,
    refused: list[str],
) -> None:
    labelled, users = rows()
    fit, _ = serving(boosted=boosted, stack=stack, zero_shot=zero)
    found = judge_on_own_rows(Step(0, "boosted", 30.0, 0.2), labelled, users, fit, least_positives=30)
    assert found is not None
    assert found.step == Step(0, left, 30.0, 0.2)  # type: ignore[arg-type]
    assert [rung for rung, _ in found.refused] == refused


def test_a_difference_within_the_error_refuses_nothing() -> None:
    labelled, users = rows()
    fit, _ = serving(stack=(2.0, 0.02), zero_shot=GOOD)
    found = judge_on_own_rows(Step(0, "stack", 30.0, 0.2), labelled, users, fit, least_positives=30)
    assert found is not None and found.step.rung == "stack" and found.refused == ()


def test_nobody_is_predicted_by_what_was_learnt_of_themselves() -> None:
    labelled, users = rows()
    labelled = Labelled(
        np.column_stack([labelled.scaled, [int(user.split("-")[1]) for user in users]]),
        labelled.dense,
        labelled.label,
        labelled.weight,
    )
    fit, seen = serving(zero_shot=(1.0, 0.0, 0.0))  # type: ignore[arg-type]
    found = judge_on_own_rows(Step(0, "zero_shot", 30.0, 0.2), labelled, users, fit, least_positives=30)
    assert found is not None and found.folds == len(seen) == 5
    taught = [set(part.scaled[:, 2]) for part in seen]
    everyone = set(labelled.scaled[:, 2])
    left_out = [everyone - one for one in taught]
    assert sum(map(len, left_out)) == len(everyone)
    assert set().union(*left_out) == everyone
    sizes = [len(part.label) for part in seen]
    assert max(sizes) - min(sizes) < 0.1 * ROWS


def test_its_figures_are_those_of_the_rung_that_is_left() -> None:
    labelled, users = rows()
    fit, _ = serving(zero_shot=GOOD)
    found = judge_on_own_rows(Step(0, "zero_shot", 30.0, 0.2), labelled, users, fit, least_positives=30)
    assert found is not None and found.auc is not None and found.low is not None
    logits = 2 * labelled.scaled[:, 0]
    loss = np.mean(np.logaddexp(0, logits) - labelled.label * logits)
    assert found.loss == pytest.approx(loss)
    above = logits[labelled.label == 1][:, None] > logits[labelled.label == 0]
    assert found.auc == pytest.approx(above.mean())
    assert found.low < found.auc
    assert not found.against_base_rate.worse
    assert found.base_rate_loss == pytest.approx(np.log(2), abs=0.02)


def test_overconfidence_is_worse_than_the_base_rate() -> None:
    labelled, users = rows()
    fit, _ = serving(zero_shot=WRONG)
    found = judge_on_own_rows(Step(0, "zero_shot", 30.0, 0.2), labelled, users, fit, least_positives=30)
    assert found is not None and found.against_base_rate.worse


def test_too_few_positives_or_users_say_nothing() -> None:
    labelled, users = rows()
    fit, seen = serving(zero_shot=GOOD)
    step = Step(0, "zero_shot", 30.0, 0.2)
    few = labelled.take(np.cumsum(labelled.label) < 30)
    assert judge_on_own_rows(step, few, users[: len(few.label)], fit, least_positives=30) is None
    two = [f"user-{number % 2}" for number in range(ROWS)]
    assert judge_on_own_rows(step, labelled, two, fit, least_positives=30) is None
    assert not seen
