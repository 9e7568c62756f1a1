"""Lists of an explored context: the served log holds what was answered, and swaps keep the budget."""

from __future__ import annotations

import numpy as np
from conftest import Living

from recmeta.serving.recommender import Recommender
from recmeta.serving.served_log import ServedLog, scan_served
from recmeta.settings import load_settings


def test_an_explored_list_is_logged_as_it_was_answered(living: Living) -> None:
    workspace = living.settings.workspace
    settings = load_settings(
        workspace, serving={"exploration": {"feed": {"epsilon": 1.0, "pool": 5, "budget": 0.5}}}
    )
    users = living.events["user_id"].unique().sort().to_list()[:40]
    with ServedLog(settings.served_folder) as log:
        recommender = Recommender(settings, served=log)
        answers = [recommender.recommend("feed", user, 4, living.until) for user in users]
        recommender.recommend("reading", users[0], 4, living.until)  # not explored
    rows = scan_served(settings.served_folder).collect()
    assert rows["context"].unique().to_list() == ["feed"]
    assert rows.height == sum(len(answer.items) for answer in answers)
    for answer in answers:
        found = rows.filter(user_id=answer.user_id).sort("position")
        assert found["item_id"].to_list() == [item.item_id for item in answer.items]
        assert found["propensity"].to_list() == [item.propensity for item in answer.items]
        assert set(found["bundle"]) == {living.version}
        assert set(found["as_of"]) == {answer.as_of}
        score, best = found["score"].to_numpy(), found["best_score"].to_numpy()
        np.testing.assert_allclose(score[found["greedy"].to_numpy()], best[found["greedy"].to_numpy()])
        assert (best >= score - 1e-9).all()
    tried = int((~rows["greedy"]).sum())
    assert 0.3 * rows.height < tried <= 0.5 * rows.height


def test_another_bundle_goes_on_with_the_budget_that_is_spent(living: Living) -> None:
    settings = load_settings(
        living.settings.workspace, serving={"exploration": {"feed": {"epsilon": 1.0, "budget": 0.1}}}
    )
    first = Recommender(settings)
    for _ in range(20):
        first.recommend("feed", living.reader(), 4, living.until)
    spent = first._exploration.spent("feed")
    assert spent[1] > 0
    assert Recommender(settings, first)._exploration.spent("feed") == spent


def test_without_a_setting_lists_are_the_ranking_and_carry_no_propensity(living: Living) -> None:
    with ServedLog(living.settings.served_folder) as log:
        answer = Recommender(living.settings, served=log).recommend("feed", living.reader(), 4, living.until)
    assert all(item.propensity is None for item in answer.items)
    assert not living.settings.served_folder.exists()
