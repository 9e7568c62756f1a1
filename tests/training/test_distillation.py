"""A student of two towers learns what a teacher says, whatever the teacher is, and does so reproducibly."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from recmeta.distillation import Lists, distil
from recmeta.models.shared import ModelShape, SharedModel
from recmeta.models.two_towers import TwoTowers
from recmeta.settings import RetrievalSettings

SETTINGS = RetrievalSettings(vector_size=16, hidden=32, rounds=2, steps=80, lists_per_step=2)
CONTEXTS = 3


def like() -> SharedModel:
    torch.manual_seed(9)
    return SharedModel(
        ModelShape(features=2, users=20, items=50, categories=5, contexts=CONTEXTS + 1, history_length=4)
    )


def teacher(users: torch.Tensor, items: torch.Tensor, context: int) -> torch.Tensor:
    """Something that is no product: thresholds, and each context for itself."""
    product = users @ items[:, : users.shape[1]].T
    return torch.tanh(product) * 2 + (items[:, -1] > context - 2).float() + torch.relu(items[:, 0])


class Drawn:
    """Lists of random users and items, and what the student was when they were drawn."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.students: list[TwoTowers | None] = []

    def __call__(self, towers: TwoTowers | None) -> Sequence[Lists]:
        self.students.append(towers)
        return [self.one(1 + number % CONTEXTS) for number in range(9)]

    def one(self, context: int) -> Lists:
        users = torch.randn(12, 3, generator=self.generator)
        items = torch.randn(60, 5, generator=self.generator)
        draw = {"generator": self.generator}
        return Lists(
            user_dense=users,
            user=torch.randint(0, 20, (12,), **draw),
            history=torch.randint(0, 50, (12, 4), **draw),
            context=context,
            item_dense=items,
            item=torch.randint(0, 50, (60,), **draw),
            categories=torch.randint(0, 5, (60, 4), **draw),
            teacher=teacher(users, items, context),
        )


def agreement(towers: TwoTowers, lists: Lists) -> float:
    """Of the teacher's ten best of each list, the share among the student's ten best."""
    context = torch.full((len(lists.user),), lists.context)
    with torch.no_grad():
        queries = towers.queries(lists.user_dense, lists.user, lists.history, context)
        scores = queries @ towers.item_vectors(lists.item_dense, lists.item, lists.categories).T
    best, found = (values.topk(10, dim=1).indices for values in (lists.teacher, scores))
    return (best.unsqueeze(2) == found.unsqueeze(1)).any(dim=2).float().mean().item()


def test_the_student_finds_the_teachers_best_among_items_it_never_saw() -> None:
    towers = distil(Drawn(), like(), CONTEXTS, SETTINGS, seed=0)
    later = Drawn(seed=77)
    shares = [agreement(towers, later.one(context)) for context in (1, 2, 3)]
    assert min(shares) > 0.5  # by luck a sixth


def test_later_rounds_are_drawn_with_the_student_as_it_is_by_then() -> None:
    drawn = Drawn()
    distil(drawn, like(), CONTEXTS, SETTINGS, seed=0)
    assert drawn.students[0] is None
    assert isinstance(drawn.students[1], TwoTowers)


def test_the_same_lists_and_seed_give_the_same_weights_and_another_seed_others() -> None:
    states = [
        distil(Drawn(), like(), CONTEXTS, SETTINGS, seed=seed).state_dict()["item_tower.inner.weight"]
        for seed in (4, 4, 5)
    ]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_it_tells_how_far_it_is() -> None:
    told: list[tuple[str, int, int]] = []
    distil(Drawn(), like(), CONTEXTS, SETTINGS, 0, lambda *news: told.append(news))
    assert told[0] == ("towers", 0, 160)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})


def test_an_unknown_context_is_served_by_what_contexts_share() -> None:
    towers = distil(Drawn(), like(), CONTEXTS, SETTINGS, seed=0)
    lists = Drawn(seed=5).one(2)
    unknown = Lists(**{**vars(lists), "context": 0})
    assert agreement(towers, unknown) == pytest.approx(agreement(towers, lists), abs=0.35)
    assert agreement(towers, unknown) > 0.3
