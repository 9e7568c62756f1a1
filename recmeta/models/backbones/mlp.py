"""A multilayer perceptron over all inputs: the plainest backbone, and the one to beat.

``h_0 = silu(W_0 x + b_0)``, ``h_1 = silu(W_1 h_0 + b_1)``, ... All layers are adapted. A context is known
to it by its vector among the inputs. It must never know the contexts otherwise.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from recmeta.models.backbones.backbone import (
    Backbone,
    Tensors,
    adapted,
    draw_layers,
    masked,
    project_inputs,
)


class Mlp(Backbone):
    """Perceptron; see the module."""

    def initial_weights(self) -> dict[str, Tensor]:
        """Draw the layers."""
        return draw_layers(self.shape.inputs, self.shape.hidden)

    def prepare(self, gathered: Tensors, weights: Tensors) -> dict[str, Tensor]:
        """Return ``first`` [..., hidden[0]], the first layer without an adapter."""
        return {"first": project_inputs(gathered, weights["layer0_weight"]) + weights["layer0_bias"]}

    def hidden(self, gathered: Tensors, adapter: Tensors, weights: Tensors) -> Tensor:
        """Return the last hidden layer."""
        low = project_inputs(gathered, adapter["layer0_a"])
        hidden = functional.silu(adapted(gathered["first"], low, adapter, 0))
        return self.upper_layers(masked(hidden, gathered, 0), gathered, adapter, weights)
