"""The towers become two ONNX graphs: of items, and of users in a context.

As for the network, the same weights give the same bytes. This module must never know what is retrieved.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from recmeta.bundle.export import normalised, trace, write_graph
from recmeta.bundle.manifest import ITEM_TOWER, USER_TOWER
from recmeta.errors import InputError
from recmeta.models.two_towers import TwoTowers

VECTOR = "vector"
"""The output of both graphs, float32 [rows, d]."""
ITEM_COLUMNS = ("dense", "item", "categories")
USER_COLUMNS = ("dense", "user", "history", "context")
"""The graphs' inputs; types and shapes as `TwoTowers.item_vectors` and `queries` take them."""


class _Items(nn.Module):
    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, dense: Tensor, item: Tensor, categories: Tensor) -> Tensor:
        return self.towers.item_vectors(dense, item, categories)


class _Users(nn.Module):
    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, dense: Tensor, user: Tensor, history: Tensor, context: Tensor) -> Tensor:
        return self.towers.queries(dense, user, history, context)


def export_towers(towers: TwoTowers, folder: Path, *, history_length: int) -> None:
    """Write ``towers/item.onnx`` and ``towers/user.onnx`` below ``folder``; each takes two rows or more.

    Raises:
        InputError: a weight is NaN or infinite.
    """
    for name, tensor in towers.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"cannot export towers whose {name} holds NaN or infinity")
    shape = towers.shape
    items = {
        "dense": torch.zeros(3, shape.item_features),
        "item": torch.zeros(3, dtype=torch.int64),
        "categories": torch.zeros(3, towers.item_categories.shape[1], dtype=torch.int64),
    }
    users = {
        "dense": torch.zeros(3, shape.user_features),
        "user": torch.zeros(3, dtype=torch.int64),
        "history": torch.zeros(3, history_length, dtype=torch.int64),
        "context": torch.zeros(3, dtype=torch.int64),
    }
    for tower, rows, path in ((_Items(towers), items, ITEM_TOWER), (_Users(towers), users, USER_TOWER)):
        write_graph(normalised(trace(tower, rows, VECTOR), set(rows)), folder / path)
