"""What is shown, how probable it was, and how much may be tried."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from recmeta.errors import InputError
from recmeta.serving.exploration import Exploration, Shown
from recmeta.settings import ContextExploration, load_settings

NOON = datetime(2026, 6, 30, 12, tzinfo=UTC)
SCORES = [0.3, 1.0, -0.5, 0.9, 0.2]
STRATEGIES = {
    "epsilon_greedy": ContextExploration(strategy="epsilon_greedy", epsilon=0.6, pool=3, budget=1.0),
    "plackett_luce": ContextExploration(strategy="plackett_luce", temperature=0.7, pool=4, budget=1.0),
}


def drawn(settings: ContextExploration, draws: int, slots: int = 3) -> list[Shown]:
    """Many lists, each as if it were the first of its day."""
    random = np.random.default_rng(0)
    return [
        Exploration({"feed": settings}, random).show("feed", SCORES, slots, now=NOON) for _ in range(draws)
    ]


def stated(lists: list[Shown]) -> dict[tuple[int, ...], float]:
    """The probability of each list that was seen, from its propensities."""
    return {tuple(found.indices.tolist()): float(np.prod(found.propensities)) for found in lists}


def by_enumeration(name: str, settings: ContextExploration, allowed: int) -> dict[tuple[int, ...], float]:
    """The probability of every list of three, from the definitions, while so many slots may be tried."""
    found = {}
    ranked = sorted(range(5), key=lambda item: -SCORES[item])
    for order in itertools.permutations(range(5), 3):
        chance, left, budget = 1.0, list(ranked), allowed
        pool = ranked[: settings.pool]
        for item in order:
            if budget <= 0:
                chance *= float(item == left[0])
            elif name == "epsilon_greedy":
                near = left[: settings.pool]
                each = settings.epsilon / len(near) if item in near else 0.0
                chance *= each + (1 - settings.epsilon) * (item == left[0])
            else:
                masses = {
                    other: np.exp(SCORES[other] / settings.temperature) for other in pool if other in left
                }
                chance *= masses.get(item, 0.0) / sum(masses.values())
            budget -= item != left[0]
            left.remove(item)
        if chance > 0:
            found[order] = chance
    return found


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(("budget", "allowed"), [(1.0, 3), (0.7, 2), (0.34, 1)])
def test_propensities_are_those_of_the_definition(name: str, budget: float, allowed: int) -> None:
    settings = STRATEGIES[name].model_copy(update={"budget": budget})
    found = stated(drawn(settings, 4000))
    expected = by_enumeration(name, settings, allowed)
    assert found == pytest.approx(expected, abs=1e-12)
    assert sum(found.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("budget", [1.0, 0.34])
def test_lists_come_as_often_as_their_propensities_say(name: str, budget: float) -> None:
    lists = drawn(STRATEGIES[name].model_copy(update={"budget": budget}), 6000)
    chance = stated(lists)
    seen = Counter(tuple(found.indices.tolist()) for found in lists)
    expected = np.array([chance[order] for order in seen]) * len(lists)
    often = expected >= 5
    observed = np.array([seen[order] for order in seen])[often]
    assert chisquare(observed, expected[often] * observed.sum() / expected[often].sum()).pvalue > 0.001


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_generator_shows_the_same_lists(name: str) -> None:
    one, other = drawn(STRATEGIES[name], 50), drawn(STRATEGIES[name], 50)
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first.indices, second.indices)
        np.testing.assert_array_equal(first.propensities, second.propensities)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e3, 1e150])
def test_propensities_are_probabilities_whatever_the_scores(name: str, scale: float) -> None:
    scores = np.random.default_rng(1).normal(size=300) * scale
    explorer = Exploration({"feed": STRATEGIES[name]}, np.random.default_rng(2))
    for _ in range(20):
        shown = explorer.show("feed", scores, 10, now=NOON)
        assert ((shown.propensities > 0) & (shown.propensities <= 1)).all()
        assert len(set(shown.indices.tolist())) == 10


@pytest.mark.parametrize("name", STRATEGIES)
def test_never_more_is_tried_than_the_budget_of_the_day(name: str) -> None:
    settings = STRATEGIES[name].model_copy(update={"budget": 0.05})
    explorer = Exploration({"feed": settings}, np.random.default_rng(3))
    for count in range(1, 400):
        explorer.show("feed", SCORES, 3, now=NOON)
        slots, tried = explorer.spent("feed")
        assert slots == 3 * count
        assert tried <= 0.05 * slots
    assert tried == int(0.05 * slots)  # and all of it is used where so much would be tried
    explorer.show("feed", SCORES, 3, now=NOON + timedelta(days=1))
    assert explorer.spent("feed") == (3, 0)


def test_without_a_budget_the_best_are_shown_with_certainty() -> None:
    assert ContextExploration().budget == 0
    explorer = Exploration({"feed": ContextExploration(epsilon=1.0)}, np.random.default_rng(4))
    for context in ("feed", "elsewhere"):
        shown = explorer.show(context, SCORES, 3)
        assert shown.indices.tolist() == [1, 3, 0]
        assert shown.propensities.tolist() == [1.0, 1.0, 1.0]
        assert shown.greedy.all()
        assert not explorer.explores(context)


def test_equal_scores_keep_the_order_in_which_they_were_given() -> None:
    assert Exploration({}).show("feed", [1.0, 2.0, 2.0, 1.0], 4).indices.tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("name", STRATEGIES)
def test_fewer_items_than_slots_are_all_shown(name: str) -> None:
    explorer = Exploration({"feed": STRATEGIES[name]}, np.random.default_rng(5))
    assert sorted(explorer.show("feed", SCORES, 100, now=NOON).indices.tolist()) == [0, 1, 2, 3, 4]
    assert len(explorer.show("feed", [], 10, now=NOON).indices) == 0
    assert len(explorer.show("feed", SCORES, 0, now=NOON).indices) == 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_lies_beneath_the_depth_changes_nothing(name: str) -> None:
    scores = np.sort(np.random.default_rng(6).normal(size=500))[::-1]
    deep = Exploration({"feed": STRATEGIES[name]}, np.random.default_rng(7))
    cut = Exploration({"feed": STRATEGIES[name]}, np.random.default_rng(7))
    for _ in range(20):
        all_of_them = deep.show("feed", scores, 5, now=NOON)
        enough = cut.show("feed", scores[: cut.depth("feed", 5)], 5, now=NOON)
        np.testing.assert_array_equal(all_of_them.indices, enough.indices)
        np.testing.assert_array_equal(all_of_them.propensities, enough.propensities)


@pytest.mark.parametrize("scores", [[1.0, np.nan], [np.inf], [[1.0]]])
def test_scores_that_order_nothing_are_refused(scores: list[float]) -> None:
    with pytest.raises(InputError, match="scores"):
        Exploration({}).show("feed", scores, 1)


def test_settings_are_read_from_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "recmeta.toml").write_text(
        '[serving.exploration.feed]\nstrategy = "plackett_luce"\nbudget = 0.1\n'
    )
    assert load_settings(tmp_path).serving.exploration["feed"].strategy == "plackett_luce"
    (tmp_path / "recmeta.toml").write_text("[serving.exploration.feed]\nbudget = 2\n")
    with pytest.raises(InputError, match="budget"):
        load_settings(tmp_path)
