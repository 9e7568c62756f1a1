"""DCN-v2 (Wang et al. 2021): layers that multiply inputs explicitly, below or beside the trunk.

With x_0 the inputs, of width d, a full cross layer is ``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`` (their
equation 1). With ``cross_rank`` r > 0, the default, it is their mixture of K = ``experts`` low-rank ones
(equations 3 and 4): ``x_{l+1} = x_0 * (sum_k g_k(x_l) U_k tanh(C_k tanh(V_k x_l)) + b_l) + x_l`` with
``g = softmax(G x_l)``, V_k [r, d], C_k [r, r], U_k [d, r]. ``dcn_v2`` is stacked: the trunk reads the last
x. ``dcn_v2_parallel``: the trunk reads x_0, and the head reads the last x beside the trunk's last layer.
The trunk is adapted, the cross layers are not: no inner step on an adapter computes them again.

A row costs 2 K r d multiplications a cross layer, or d * d if full. This file must never know the contexts
otherwise than among the inputs.
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
    project,
)

SMALL = 0.1
"""A cross layer starts near the identity: products of products are large where inputs are."""


class DcnV2(Backbone):
    """Stacked: cross layers, then the trunk; see the module."""

    def initial_weights(self) -> dict[str, Tensor]:
        """Draw the cross layers and the trunk."""
        width, rank, experts = self.shape.inputs, self.shape.cross_rank, self.shape.experts
        drawn: dict[str, Tensor] = {}
        for layer in range(self.shape.cross_layers):
            name = f"cross{layer}"
            drawn[f"{name}_bias"] = torch.zeros(width)
            if not rank:
                drawn[f"{name}_weight"] = torch.randn(width, width) * SMALL / width**0.5
                continue
            drawn[f"{name}_down"] = torch.randn(experts, rank, width) / width**0.5
            drawn[f"{name}_core"] = torch.randn(experts, rank, rank) / rank**0.5
            drawn[f"{name}_up"] = torch.randn(experts, width, rank) * SMALL / rank**0.5
            drawn[f"{name}_gate"] = torch.zeros(experts, width)
        return drawn | draw_layers(width, self.shape.hidden)

    def prepare(self, gathered: Tensors, weights: Tensors) -> dict[str, Tensor]:
        """Return ``crossed`` [..., inputs], the last x, and ``first`` [..., hidden[0]]."""
        inputs = torch.cat(inputs_of(gathered), dim=-1)
        crossed = inputs
        for layer in range(self.shape.cross_layers):
            crossed = inputs * self._cross(crossed, weights, f"cross{layer}") + crossed
        first = project(self._trunk_inputs(gathered, crossed), weights["layer0_weight"])
        return {"crossed": crossed, "first": first + weights["layer0_bias"]}

    def hidden(self, gathered: Tensors, adapter: Tensors, weights: Tensors) -> Tensor:
        """Return the last hidden layer."""
        low = project(self._trunk_inputs(gathered, gathered["crossed"]), adapter["layer0_a"])
        hidden = functional.silu(adapted(gathered["first"], low, adapter, 0))
        return self.upper_layers(masked(hidden, gathered, 0), gathered, adapter, weights)

    def _trunk_inputs(self, gathered: Tensors, crossed: Tensor) -> tuple[Tensor, ...]:
        return (crossed,)

    def _cross(self, x: Tensor, weights: Tensors, name: str) -> Tensor:
        """What multiplies x_0: [..., inputs] -> [..., inputs]."""
        bias = weights[f"{name}_bias"]
        if not self.shape.cross_rank:
            return functional.linear(x, weights[f"{name}_weight"], bias)
        down, up = weights[f"{name}_down"], weights[f"{name}_up"]
        low = torch.tanh(functional.linear(x, down.flatten(0, 1)))
        low = torch.unflatten(low, -1, down.shape[:2])
        low = torch.tanh(torch.einsum("...kr,ksr->...ks", low, weights[f"{name}_core"]))
        gate = functional.linear(x, weights[f"{name}_gate"]).softmax(-1)
        mixed = (low * gate.unsqueeze(-1)).flatten(-2)
        return functional.linear(mixed, up.transpose(0, 1).flatten(1), bias)


class DcnV2Parallel(DcnV2):
    """Parallel: cross layers beside the trunk; see the module."""

    @property
    def outputs(self) -> int:
        """Width of the last x and the trunk's last layer together."""
        return self.shape.inputs + self.shape.hidden[-1]

    def hidden(self, gathered: Tensors, adapter: Tensors, weights: Tensors) -> Tensor:
        """Return the last x and the trunk's last layer, side by side."""
        return torch.cat([gathered["crossed"], super().hidden(gathered, adapter, weights)], dim=-1)

    def _trunk_inputs(self, gathered: Tensors, crossed: Tensor) -> tuple[Tensor, ...]:
        return inputs_of(gathered)
