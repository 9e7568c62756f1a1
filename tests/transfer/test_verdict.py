"""The verdict judges every way of learning on the same rows; its sentence claims no more than they show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_effects import Surface, learnt

from recmeta.artifacts import to_json
from recmeta.evaluation.baselines import Trees
from recmeta.evaluation.cluster_errors import Area
from recmeta.models.shared import SharedModel
from recmeta.transfer import verdict as verdicts
from recmeta.transfer.bank import Bank, Learnt, fit_bank
from recmeta.transfer.verdict import Verdict, line, verdict

WAYS = {
    "joint", "joint_fine_tune", "meta_learned", "network_alone", "lightgbm_alone", "lightgbm_pooled", "stack",
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A night, its bank and its verdict."""

    learnt: Learnt
    full: Bank
    folder: Path
    found: dict[str, Verdict]

    def auc(self, context: str, way: str) -> float:
        """The AUC of one way on one context."""
        return self.found[context]["methods"][way]["auc"]


def judge(folder: Path, surfaces: dict[str, Surface]) -> Judged:
    made = learnt(surfaces, folder)
    full = fit_bank(made, folder / "full")
    return Judged(made, full, folder / "verdict", verdict(made, full, full.trees, folder / "verdict"))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    """A context with columns of its own; surfaces that were onboarded, long ago with two rules, and today."""
    surfaces = {
        "known": Surface(1200),
        "onboarded": Surface(60, named=False),
        "opposite": Surface(1200, sign=-1.0, named=False),
        "same": Surface(1200, named=False),
    }
    yield judge(tmp_path_factory.mktemp("judged"), surfaces)


def test_every_context_is_judged_in_every_way(judged: Judged) -> None:
    assert set(judged.found) == {"known", "onboarded", "opposite", "same"}
    for context in ("known", "opposite", "same"):
        assert set(judged.found[context]["methods"]) == WAYS
    # Sixty rows are too few for trees of their own.
    assert set(judged.found["onboarded"]["methods"]) == WAYS - {"lightgbm_alone"}
    for found in judged.found.values():
        assert found["serves"] is None
        best = max(found["methods"], key=lambda way: found["methods"][way]["auc"])
        assert found["best"] == best
        assert all(figure["low"] <= figure["auc"] <= figure["high"] for figure in found["methods"].values())
    to_json(judged.found)


def test_every_way_learns_the_rule_of_a_large_context(judged: Judged) -> None:
    for way in WAYS:
        assert judged.auc("known", way) > 0.65, way


def test_pooled_trees_know_which_context_a_row_is_of(judged: Judged) -> None:
    assert judged.auc("same", "lightgbm_pooled") > 0.6
    assert judged.auc("opposite", "lightgbm_pooled") > 0.6


def test_a_second_call_reads_the_networks_and_says_the_same(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(verdicts, "train", refuse)
    again = verdict(judged.learnt, judged.full, judged.full.trees, judged.folder)
    assert to_json(again) == to_json(judged.found)


def test_trees_that_are_not_given_are_fitted_alike(judged: Judged) -> None:
    again = verdict(judged.learnt, judged.full, {}, judged.folder)
    for context in ("known", "same"):
        figures = [found[context]["methods"]["lightgbm_alone"]["auc"] for found in (again, judged.found)]
        assert figures[0] == pytest.approx(figures[1], abs=0.01)


class Backwards(Trees):
    """Trees that say the opposite, loudly."""

    def logits(self, dense: Any) -> Any:
        """Return the opposite of what the booster says, times 20."""
        return -20.0 * super().logits(dense)


def test_a_stack_leaves_an_own_expert_that_is_wrong(judged: Judged) -> None:
    trees = judged.full.trees["known"]
    broken = replace(
        judged.full, trees={**judged.full.trees, "known": Backwards(trees.booster, trees.rounds)}
    )
    again = verdict(judged.learnt, broken, judged.full.trees, judged.folder)
    assert again["known"]["methods"]["stack"]["auc"] > 0.6


# The sentence -----------------------------------------------------------------------------------------


def areas(spread: float, **values: float) -> dict[str, Area]:
    """Methods with these AUCs; each pair of them differs by user by about ``spread``."""
    draw = np.random.default_rng(0)
    return {way: Area(value, draw.normal(0.0, spread, 100)) for way, value in values.items()}


def test_a_difference_beyond_its_interval_is_sure() -> None:
    told = line(areas(1e-6, meta_learned=0.80, joint_fine_tune=0.81, lightgbm_alone=0.79))
    assert told.startswith(
        "Joint training with fine-tuning is best (AUC .810), ahead of meta-learning by .010;"
    )
    assert (
        "meta-learning is surely worse than joint training with fine-tuning (-.010, -.010 to -.010)" in told
    )
    assert told.endswith("meta-learning is surely better than LightGBM alone (+.010, +.010 to +.010).")
    assert "noise" not in told


def test_what_another_seed_may_turn_round_is_not_called_sure() -> None:
    found = areas(1e-6, meta_learned=0.80, joint_fine_tune=0.81, lightgbm_alone=0.79)
    told = line(found, between=0.007**2)
    assert "meta-learning is within noise of joint training with fine-tuning" in told  # .010 < 1.96 * .007
    assert "meta-learning is surely better than LightGBM alone" in told  # which has no seed that matters
    assert "ahead of meta-learning by .010, which is within noise" in told


def test_another_seed_of_the_bank_widens_what_the_sentences_claim(judged: Judged) -> None:
    again = replace(judged.full, network=SharedModel(judged.learnt.shape).eval())  # far away
    found = verdict(judged.learnt, judged.full, judged.full.trees, judged.folder, again=again)
    assert "surely" not in " ".join(one["line"] for one in found.values())
    assert found["known"]["methods"] == judged.found["known"]["methods"]


def test_a_difference_within_its_interval_is_called_noise() -> None:
    told = line(areas(1e-2, meta_learned=0.80, joint_fine_tune=0.81, lightgbm_alone=0.79))
    assert "ahead of meta-learning by .010, which is within noise" in told
    assert "meta-learning is within noise of joint training with fine-tuning (-.010" in told
    assert "meta-learning is within noise of LightGBM alone (+.010" in told
    assert "surely" not in told
