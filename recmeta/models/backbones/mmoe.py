"""MMoE (Ma et al. 2018): experts that all contexts share, mixed by a gate of each context.

The experts are E first layers, ``e_k = silu(W_k x + b_k)``; their mixture for context c is
``sum_k g_k e_k`` with ``g = softmax((G + G_c) x + g_c)``. G is shared, G_c and g_c are the context's own;
all three are zero at first, so that every gate starts even, and an unknown context has the shared gate,
until rows with a hidden context teach otherwise. The rest of the trunk is common; the tower of a context
is its share of the head. An adapter adds the same low-rank detour, scale and shift to every expert, and
adapts the rest of the trunk as usual.

A row costs E first layers, and E * (inputs + 1) numbers looked up. This file must never know which context
a row has.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recmeta.models.backbones.backbone import (
    Backbone,
    Tensors,
    adapted,
    draw_layers,
    inputs_of,
    masked,
    project_inputs,
)


class Mmoe(Backbone):
    """Experts and a gate a context; see the module."""

    @property
    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """What a gate has of its own."""
        experts = self.shape.experts
        return {"own_gate": (experts, self.shape.inputs), "own_gate_bias": (experts,)}

    def initial_weights(self) -> dict[str, Tensor]:
        """Draw the experts and the layers above."""
        inputs, experts, width = self.shape.inputs, self.shape.experts, self.shape.hidden[0]
        return {
            "layer0_weight": torch.randn(experts, width, inputs) * (2.0 / inputs) ** 0.5,
            "layer0_bias": torch.zeros(experts, width),
            "gate_weight": torch.zeros(experts, inputs),
        } | draw_layers(width, self.shape.hidden[1:], first=1)

    def prepare(self, gathered: Tensors, weights: Tensors) -> dict[str, Tensor]:
        """Return ``first`` [..., experts, hidden[0]], before activation, and ``gate`` [..., experts]."""
        parts = inputs_of(gathered)
        matrices = weights["layer0_weight"]
        first = torch.unflatten(project_inputs(gathered, matrices.flatten(0, 1)), -1, matrices.shape[:2])
        own = (gathered["own_gate"] @ torch.cat(parts, dim=-1).unsqueeze(-1)).squeeze(-1)
        gate = project_inputs(gathered, weights["gate_weight"]) + own + gathered["own_gate_bias"]
        return {"first": first + weights["layer0_bias"], "gate": gate.softmax(-1)}

    def hidden(self, gathered: Tensors, adapter: Tensors, weights: Tensors) -> Tensor:
        """Return the last hidden layer."""
        low = project_inputs(gathered, adapter["layer0_a"]).unsqueeze(-2)
        experts = functional.silu(adapted(gathered["first"], low, adapter, 0))
        mixed = (gathered["gate"].unsqueeze(-1) * experts).sum(-2)
        return self.upper_layers(masked(mixed, gathered, 0), gathered, adapter, weights)
