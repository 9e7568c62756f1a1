"""PEPNet (Chang et al. 2023): gates, from who and where, on embeddings and on hidden units.

A gate unit is ``2 * sigmoid(V relu(U z + u) + v)``, between 0 and 2. EPNet: the vectors x among the inputs
become ``x * gate([context, x'])``. PPNet: the output of trunk layer l becomes ``h_l * gate_l([user, item,
context, y'])``, with y the vectors after EPNet. The primes stop gradients, as in the paper: gates learn
from embeddings without pulling at them. V = v = 0 at first, so that all gates are 1. The paper's general
embedding and prior embeddings are here the same tables; the context counts as a prior of both nets. U has
`ModelShape.embedding_size` rows.

Gates read vectors only, so an adapter never changes them and they are prepared. An unknown context has the
vector of index 0, which rows with a hidden context teach. The trunk is adapted before its gates. A row
costs embedding_size * (2 * vectors + hidden) multiplications more a layer than a perceptron, whatever the
number of contexts. This file must never know how the vectors were looked up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recmeta.models.backbones.backbone import Backbone, Tensors, adapted, draw_layers, masked, project


class PepNet(Backbone):
    """Perceptron with gates on its vectors and its layers; see the module."""

    def initial_weights(self) -> dict[str, Tensor]:
        """Draw the trunk, and gates that are open."""
        shape = self.shape
        size, vectors, context = shape.embedding_size, shape.vectors, shape.context_size
        drawn = draw_layers(shape.inputs, shape.hidden) | self._gate_weights(
            "gate", context + vectors, vectors
        )
        for layer, width in enumerate(shape.hidden):
            drawn |= self._gate_weights(f"gate{layer}", 2 * size + context + vectors, width)
        return drawn

    def prepare(self, gathered: Tensors, weights: Tensors) -> dict[str, Tensor]:
        """Return ``gated`` [..., vectors], ``first`` [..., hidden[0]] and each layer's ``gate{l}``."""
        vectors, size = gathered["vectors"], self.shape.embedding_size
        context, who = vectors[..., -self.shape.context_size :], vectors[..., : 2 * size]
        gated = vectors * _gate(torch.cat([context, vectors.detach()], dim=-1), weights, "gate")
        first = project((gathered["encoded"], gated), weights["layer0_weight"]) + weights["layer0_bias"]
        prior = torch.cat([who, context, gated.detach()], dim=-1)
        gates = {
            f"gate{layer}": _gate(prior, weights, f"gate{layer}") for layer in range(len(self.shape.hidden))
        }
        return {"gated": gated, "first": first, **gates}

    def hidden(self, gathered: Tensors, adapter: Tensors, weights: Tensors) -> Tensor:
        """Return the last hidden layer, gated."""
        straight = gathered["first"]
        low = project((gathered["encoded"], gathered["gated"]), adapter["layer0_a"])
        hidden = functional.silu(adapted(straight, low, adapter, 0)) * gathered["gate0"]
        hidden = masked(hidden, gathered, 0)
        for layer in range(1, len(self.shape.hidden)):
            name = f"layer{layer}"
            straight = functional.linear(hidden, weights[f"{name}_weight"], weights[f"{name}_bias"])
            low = functional.linear(hidden, adapter[f"{name}_a"])
            hidden = functional.silu(adapted(straight, low, adapter, layer)) * gathered[f"gate{layer}"]
            hidden = masked(hidden, gathered, layer)
        return hidden

    def _gate_weights(self, name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
        units = self.shape.embedding_size
        return {
            f"{name}_in_weight": torch.randn(units, inputs) * (2.0 / inputs) ** 0.5,
            f"{name}_in_bias": torch.zeros(units),
            f"{name}_out_weight": torch.zeros(outputs, units),
            f"{name}_out_bias": torch.zeros(outputs),
        }


def _gate(inputs: Tensor, weights: Tensors, name: str) -> Tensor:
    units = functional.relu(
        functional.linear(inputs, weights[f"{name}_in_weight"], weights[f"{name}_in_bias"])
    )
    return 2.0 * torch.sigmoid(
        functional.linear(units, weights[f"{name}_out_weight"], weights[f"{name}_out_bias"])
    )
