"""STAR (Sheng et al. 2021): each layer's shared weights, multiplied element by element by the context's.

``h' = silu((W * M_c) h + b + b_c)``, with W and b shared. In the paper M_c is a full matrix for each of a
dozen domains; here contexts may be thousands, and a full matrix would be looked up for each row (53,000
numbers for a first layer of 411 x 128), so M_c has rank one, ``M_c = (1 + o_c)(1 + i_c)^T``, the form of
BatchEnsemble (Wen et al. 2020): ``(W * M_c) h = (1 + o_c) * W ((1 + i_c) * h)``. o_c, i_c and b_c are the
context's own and zero at first: M_c is all ones, and for an unknown context stays so until rows with a
hidden context teach otherwise. The paper's normalisation by domain is left out, because inputs are
standardised and a batch may hold one row; its auxiliary network's part is played by the context's share of
the head. All layers are adapted; the detour reads h as it is.

A row costs what a perceptron costs, and inputs + 2 * outputs numbers looked up at each layer. This file
must never know which context a row has.
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


class Star(Backbone):
    """Perceptron whose weights every context multiplies; see the module."""

    @property
    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """i_c, o_c and b_c of each layer."""
        shapes: dict[str, tuple[int, ...]] = {}
        width = self.shape.inputs
        for layer, outputs in enumerate(self.shape.hidden):
            shapes[f"own{layer}_in"] = (width,)
            shapes[f"own{layer}_out"] = (outputs,)
            shapes[f"own{layer}_bias"] = (outputs,)
            width = outputs
        return shapes

    def initial_weights(self) -> dict[str, Tensor]:
        """Draw the layers."""
        return draw_layers(self.shape.inputs, self.shape.hidden)

    def prepare(self, gathered: Tensors, weights: Tensors) -> dict[str, Tensor]:
        """Return ``first`` [..., hidden[0]], the first layer without an adapter."""
        return {"first": _layer(inputs_of(gathered), gathered, weights, 0)}

    def hidden(self, gathered: Tensors, adapter: Tensors, weights: Tensors) -> Tensor:
        """Return the last hidden layer."""
        straight, low = gathered["first"], project(inputs_of(gathered), adapter["layer0_a"])
        hidden = masked(functional.silu(adapted(straight, low, adapter, 0)), gathered, 0)
        for layer in range(1, len(self.shape.hidden)):
            straight = _layer((hidden,), gathered, weights, layer)
            low = functional.linear(hidden, adapter[f"layer{layer}_a"])
            hidden = masked(functional.silu(adapted(straight, low, adapter, layer)), gathered, layer)
        return hidden


def _layer(parts: tuple[Tensor, ...], gathered: Tensors, weights: Tensors, layer: int) -> Tensor:
    """A layer of the row's context, before adaptation: [..., inputs] -> [..., outputs]."""
    name = f"own{layer}"
    scales = torch.split(1.0 + gathered[f"{name}_in"], [part.shape[-1] for part in parts], dim=-1)
    scaled = [part * scale for part, scale in zip(parts, scales, strict=True)]
    product = project(scaled, weights[f"layer{layer}_weight"])
    bias = weights[f"layer{layer}_bias"] + gathered[f"{name}_bias"]
    return product * (1.0 + gathered[f"{name}_out"]) + bias
