"""A small model and rows for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from recmeta.models.shared import ModelShape, SharedModel

SHAPE = ModelShape(
    features=6, users=9, items=12, categories=5, contexts=4, history_length=7,
    embedding_size=4, context_size=3, hidden=(16, 8), rank=2,
)  # fmt: skip


def make_model(seed: int = 0, shape: ModelShape = SHAPE) -> SharedModel:
    """A model in which no tensor is zero, so that nothing is right by accident."""
    torch.manual_seed(seed)
    model = SharedModel(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.learn_scales(torch.randn(50, shape.features) * 3 + 1)
    model.learn_item_categories(
        torch.arange(shape.items),
        torch.randint(0, shape.categories, (shape.items, shape.categories_per_item)),
    )
    return model.eval()


def make_columns(*leading: int, seed: int = 0, shape: ModelShape = SHAPE) -> dict[str, Tensor]:
    """The six columns that a model reads, with any leading axes."""
    draw = torch.Generator().manual_seed(seed)

    def indices(size: int, *more: int) -> Tensor:
        return torch.randint(0, size, (*leading, *more), generator=draw)

    return {
        "dense": torch.randn(*leading, shape.features, generator=draw) * 3,
        "user": indices(shape.users),
        "item": indices(shape.items),
        "categories": indices(shape.categories, shape.categories_per_item),
        "history": indices(shape.items, shape.history_length),
        "context": indices(shape.contexts),
    }


def random_adapter(model: SharedModel, seed: int = 0) -> dict[str, Tensor]:
    """An adapter that changes everything."""
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in model.adapter_shapes.items()}
