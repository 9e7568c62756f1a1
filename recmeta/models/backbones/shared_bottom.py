"""Shared bottom (Caruana 1997): one trunk for all contexts, and a small tower for each.

With h the trunk's last layer, the tower of context c is ``silu((T + T_c) h + t + t_c)``, as wide as an
embedding, and the head reads it. T and t are dense weights; T_c and t_c are the context's own, zero at
first. So a tower is any matrix, yet one with few rows stays near the tower that all share, and an unknown
context has that one, until rows with a hidden context teach otherwise. The trunk is adapted.

A row costs embedding_size * (hidden[-1] + 1) numbers looked up, and as many multiplications, however many
contexts there are. This file must never know which context a row has.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recmeta.models.backbones.backbone import Tensors
from recmeta.models.backbones.mlp import Mlp


class SharedBottom(Mlp):
    """Perceptron below a tower a context; see the module."""

    @property
    def outputs(self) -> int:
        """Width of a tower."""
        return self.shape.embedding_size

    @property
    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """What a tower has of its own."""
        return {"own_tower": (self.outputs, self.shape.hidden[-1]), "own_tower_bias": (self.outputs,)}

    def initial_weights(self) -> dict[str, Tensor]:
        """Draw the trunk and the tower that all share."""
        width = self.shape.hidden[-1]
        return super().initial_weights() | {
            "tower_weight": torch.randn(self.outputs, width) * (2.0 / width) ** 0.5,
            "tower_bias": torch.zeros(self.outputs),
        }

    def hidden(self, gathered: Tensors, adapter: Tensors, weights: Tensors) -> Tensor:
        """Return the tower's layer."""
        bottom = super().hidden(gathered, adapter, weights)
        shared = functional.linear(bottom, weights["tower_weight"], weights["tower_bias"])
        own = (gathered["own_tower"] @ bottom.unsqueeze(-1)).squeeze(-1) + gathered["own_tower_bias"]
        return functional.silu(shared + own)
