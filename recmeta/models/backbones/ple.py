"""PLE (Tang et al. 2020): at every layer, experts that are shared beside one of the context's own.

Two streams start at the inputs, one that is shared and one of the context. At layer l, with E shared
experts ``e_k = silu(W_k s + b_k)`` of the shared stream s and the context's own ``e_c = silu(B_c (A + A_c) h
+ t_c)`` of its stream h, the new streams are gated sums of all E + 1: the context's under
``softmax((G + G_c) h + g_c)``, the shared one's under ``softmax(S s)``. The last layer has no shared stream.
Above it stands the head. (In the paper the shared stream also reads the experts of all other contexts;
here, where contexts may be many, it reads those of the row's own.)

A_c, B_c, G_c and all biases of a context are its own and zero at first, so every context starts as the
shared network with an expert that says nothing; an unknown context stays so until rows with a hidden
context teach otherwise. Its own expert has rank `ModelShape.rank`, because a full one would be a matrix
looked up for each row. An adapter adds the same detour of the shared stream, scale and shift to each
shared expert of a layer.

A row costs E trunks, and at each layer (E + 1 + rank) * inputs + (rank + 1) * outputs numbers looked up.
This file must never know which context a row has.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recmeta.models.backbones.backbone import Backbone, Tensors, adapted, inputs_of, masked


class Ple(Backbone):
    """Progressive layers of experts; see the module."""

    @property
    def _widths(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer."""
        return list(zip((self.shape.inputs, *self.shape.hidden[:-1]), self.shape.hidden, strict=True))

    @property
    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """The context's own expert and gate at each layer."""
        rank, choices = self.shape.rank, self.shape.experts + 1
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (inputs, outputs) in enumerate(self._widths):
            shapes[f"own{layer}_a"] = (rank, inputs)
            shapes[f"own{layer}_b"] = (outputs, rank)
            shapes[f"own{layer}_bias"] = (outputs,)
            shapes[f"own{layer}_gate"] = (choices, inputs)
            shapes[f"own{layer}_gate_bias"] = (choices,)
        return shapes

    def initial_weights(self) -> dict[str, Tensor]:
        """Draw the shared experts, and where own experts start; gates are even."""
        drawn: dict[str, Tensor] = {}
        experts, last = self.shape.experts, len(self.shape.hidden) - 1
        for layer, (inputs, outputs) in enumerate(self._widths):
            drawn[f"layer{layer}_weight"] = torch.randn(experts, outputs, inputs) * (2.0 / inputs) ** 0.5
            drawn[f"layer{layer}_bias"] = torch.zeros(experts, outputs)
            drawn[f"start{layer}_a"] = torch.randn(self.shape.rank, inputs) / inputs**0.5
            drawn[f"gate{layer}_weight"] = torch.zeros(experts + 1, inputs)
            if layer < last:
                drawn[f"shared_gate{layer}_weight"] = torch.zeros(experts + 1, inputs)
        return drawn

    def prepare(self, gathered: Tensors, weights: Tensors) -> dict[str, Tensor]:
        """Return the first layer: ``inputs``, shared experts before activation, own expert, own gate."""
        inputs = torch.cat(inputs_of(gathered), dim=-1)
        prepared = {"inputs": inputs, "first": _straight(inputs, weights, 0)}
        prepared["own_first"] = self._own_expert(inputs, gathered, weights, 0)
        prepared["gate"] = self._own_gate(inputs, gathered, weights, 0)
        return prepared

    def hidden(self, gathered: Tensors, adapter: Tensors, weights: Tensors) -> Tensor:
        """Return the last layer of the context's stream."""
        shared = own = gathered["inputs"]
        straight, expert, gate = gathered["first"], gathered["own_first"], gathered["gate"]
        last = len(self.shape.hidden) - 1
        for layer in range(last + 1):
            if layer:
                straight = _straight(shared, weights, layer)
                expert = self._own_expert(own, gathered, weights, layer)
                gate = self._own_gate(own, gathered, weights, layer)
            low = functional.linear(shared, adapter[f"layer{layer}_a"]).unsqueeze(-2)
            experts = functional.silu(adapted(straight, low, adapter, layer))
            choices = torch.cat([experts, expert.unsqueeze(-2)], dim=-2)
            own = masked((gate.unsqueeze(-1) * choices).sum(-2), gathered, layer)
            if layer < last:
                even = functional.linear(shared, weights[f"shared_gate{layer}_weight"]).softmax(-1)
                shared = masked((even.unsqueeze(-1) * choices).sum(-2), gathered, layer)
        return own

    def _own_expert(self, own: Tensor, gathered: Tensors, weights: Tensors, layer: int) -> Tensor:
        name = f"own{layer}"
        low = functional.linear(own, weights[f"start{layer}_a"]) + _times(gathered[f"{name}_a"], own)
        return functional.silu(_times(gathered[f"{name}_b"], low) + gathered[f"{name}_bias"])

    def _own_gate(self, own: Tensor, gathered: Tensors, weights: Tensors, layer: int) -> Tensor:
        name = f"own{layer}_gate"
        score = functional.linear(own, weights[f"gate{layer}_weight"]) + _times(gathered[name], own)
        return (score + gathered[f"{name}_bias"]).softmax(-1)


def _straight(shared: Tensor, weights: Tensors, layer: int) -> Tensor:
    """All shared experts before activation: [..., inputs] -> [..., experts, outputs]."""
    matrices = weights[f"layer{layer}_weight"]
    found = torch.unflatten(functional.linear(shared, matrices.flatten(0, 1)), -1, matrices.shape[:2])
    return found + weights[f"layer{layer}_bias"]


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Each row's matrix by its vector: [..., outputs, inputs] and [..., inputs] -> [..., outputs]."""
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)
