"""A small network with weights everywhere, an adapter that changes much, rows: the same in any process."""

from __future__ import annotations

import torch

from recmeta.models.adapters import Adapter
from recmeta.models.shared import ModelShape, SharedModel

SHAPE = ModelShape(
    features=9,
    users=20,
    items=30,
    categories=6,
    contexts=4,
    history_length=7,
    embedding_size=8,
    hidden=(16, 8),
    rank=2,
)


def sample_model(seed: int = 0) -> SharedModel:
    torch.manual_seed(seed)
    model = SharedModel(SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    model.learn_scales(torch.randn(50, SHAPE.features) * 3 + 1)
    model.learn_item_categories(torch.arange(30), torch.randint(0, 6, (30, SHAPE.categories_per_item)))
    return model


def sample_adapter(model: SharedModel, seed: int = 1) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in model.adapter_shapes.items()}


def sample_rows(count: int, seed: int = 2) -> dict[str, torch.Tensor]:
    """Rows with unknown ids, empty histories and far-off features among them."""
    generator = torch.Generator().manual_seed(seed)

    def index(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, (count, *shape), generator=generator)

    history = index(SHAPE.items, SHAPE.history_length)
    history[::3] = 0
    return {
        "dense": torch.randn(count, SHAPE.features, generator=generator) * 10,
        "user": index(SHAPE.users),
        "item": index(SHAPE.items),
        "categories": index(SHAPE.categories, SHAPE.categories_per_item),
        "history": history,
        "context": index(SHAPE.contexts),
    }
