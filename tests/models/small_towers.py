"""Small towers with weights everywhere, and rows for them."""

from __future__ import annotations

import torch

from recmeta.models.shared import ModelShape, SharedModel
from recmeta.models.two_towers import TowerShape, TwoTowers

SHAPE = TowerShape(item_features=4, user_features=5, contexts=4, vector_size=6, hidden=8)
ITEMS, USERS, CATEGORIES, HISTORY = 30, 12, 7, 5


def small_shared(seed: int = 0) -> SharedModel:
    torch.manual_seed(seed)
    model = SharedModel(
        ModelShape(
            features=3,
            users=USERS,
            items=ITEMS,
            categories=CATEGORIES,
            contexts=SHAPE.contexts,
            history_length=HISTORY,
            embedding_size=8,
            hidden=(4,),
        )
    )
    with torch.no_grad():
        for table in (model.user_table, model.item_table, model.category_table):
            table.normal_()
    model.learn_item_categories(torch.arange(ITEMS), torch.randint(0, CATEGORIES, (ITEMS, 4)))
    return model


def small_towers(seed: int = 0) -> TwoTowers:
    towers = TwoTowers(SHAPE, small_shared(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    towers.item_dense.learn(torch.randn(60, SHAPE.item_features, generator=generator))
    towers.user_dense.learn(torch.randn(60, SHAPE.user_features, generator=generator))
    return towers.eval()


def item_rows(count: int, seed: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "dense": torch.randn(count, SHAPE.item_features, generator=generator),
        "item": torch.randint(0, ITEMS - 1, (count,), generator=generator),
        "categories": torch.randint(0, CATEGORIES - 1, (count, 4), generator=generator),
    }


def user_rows(count: int, seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "dense": torch.randn(count, SHAPE.user_features, generator=generator),
        "user": torch.randint(0, USERS - 1, (count,), generator=generator),
        "history": torch.randint(0, ITEMS - 1, (count, HISTORY), generator=generator),
        "context": torch.randint(0, SHAPE.contexts - 1, (count,), generator=generator),
    }
