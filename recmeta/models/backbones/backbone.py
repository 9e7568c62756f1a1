"""What a backbone is: pure functions from gathered rows, an adapter and weights to a hidden layer.

Each has a trunk of adapted layers, ``layer0``, ``layer1``, ..., as wide as ``ModelShape.hidden`` says.
What a context has of its own stands in one row of a table, all of it zero at first, and zero is
neutral: an unknown context, index 0, starts as the shared network and is then what rows with a hidden
context teach. A backbone must never know what its inputs mean beyond their order, or who learns its
weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from recmeta.models.shared import ModelShape

Tensors = Mapping[str, Tensor]


class Backbone(ABC):
    """One architecture at one size. It holds no tensors: weights are always given."""

    def __init__(self, shape: ModelShape) -> None:
        """Take the sizes."""
        self.shape = shape

    @property
    def outputs(self) -> int:
        """Width of the hidden layer that the head reads."""
        return self.shape.hidden[-1]

    @property
    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what each context has of its own, beside its vector and its head."""
        return {}

    @abstractmethod
    def initial_weights(self) -> dict[str, Tensor]:
        """Draw the dense weights, all but the head's, from torch's global generator."""

    @abstractmethod
    def prepare(self, gathered: Tensors, weights: Tensors) -> dict[str, Tensor]:
        """Return what no adapter changes, so that inner steps need not compute it again.

        Args:
            gathered: ``encoded`` [..., encoded] and ``vectors`` [..., inputs - encoded], which together are
                the inputs, and each of `context_shapes`, [..., *shape].
            weights: as `initial_weights` names and shapes them.

        What is called ``wide`` [...] is added to the score.
        """

    @abstractmethod
    def hidden(self, gathered: Tensors, adapter: Tensors, weights: Tensors) -> Tensor:
        """Return the last hidden layer [..., outputs] from what was gathered and prepared.

        ``mask0``, ``mask1``, ... [..., hidden[i]], where they were gathered, multiply the trunk's layers.
        """

    def upper_layers(self, hidden: Tensor, gathered: Tensors, adapter: Tensors, weights: Tensors) -> Tensor:
        """Run the plain layers of the trunk from ``layer1`` on: [..., hidden[0]] -> [..., hidden[-1]]."""
        for layer in range(1, len(self.shape.hidden)):
            name = f"layer{layer}"
            straight = functional.linear(hidden, weights[f"{name}_weight"], weights[f"{name}_bias"])
            low = functional.linear(hidden, adapter[f"{name}_a"])
            hidden = masked(functional.silu(adapted(straight, low, adapter, layer)), gathered, layer)
        return hidden


def inputs_of(gathered: Tensors) -> tuple[Tensor, Tensor]:
    """Return the two parts of the inputs; see `project`."""
    return gathered["encoded"], gathered["vectors"]


def project_inputs(gathered: Tensors, matrix: Tensor) -> Tensor:
    """Multiply the inputs by a matrix [outputs, inputs]: [..., outputs].

    Where they were gathered apart, as ``of_asker``, ``of_item``, ``of_pair`` and ``of_both`` with the places
    of their columns, each part is multiplied by itself: what is made of one stands for many rows.
    """
    if "of_asker" not in gathered:
        return project(inputs_of(gathered), matrix)
    asker, item, pair, both = (
        functional.linear(gathered[part], matrix.index_select(-1, gathered[f"{part}_columns"]))
        for part in ("of_asker", "of_item", "of_pair", "of_both")
    )
    return asker + item + pair + both


def project(parts: Sequence[Tensor], matrix: Tensor) -> Tensor:
    """Multiply inputs, given in parts, by a matrix [outputs, inputs]: [..., outputs].

    In parts, because encoded features, the widest, then need no gradient. The matrix is sliced, not split:
    the exporter folds slices of constants.
    """
    products, start = [], 0
    for part in parts:
        end = start + part.shape[-1]
        products.append(functional.linear(part, matrix[..., start:end]))
        start = end
    return sum(products[1:], products[0])


def adapted(straight: Tensor, low: Tensor, adapter: Tensors, layer: int) -> Tensor:
    """Adapt a layer before it is activated: ``(1 + scale) * (straight + B low) + shift``, [..., outputs]."""
    name = f"layer{layer}"
    detour = functional.linear(low, adapter[f"{name}_b"])
    return (straight + detour) * (1.0 + adapter[f"{name}_scale"]) + adapter[f"{name}_shift"]


def masked(hidden: Tensor, gathered: Tensors, layer: int) -> Tensor:
    """Apply dropout's mask of a layer, drawn beforehand, where there is one."""
    return hidden * gathered[f"mask{layer}"] if f"mask{layer}" in gathered else hidden


def draw_layers(inputs: int, hidden: Sequence[int], *, first: int = 0) -> dict[str, Tensor]:
    """Draw weights and biases of ``layer{first}``, ... for layers that are activated (He et al. 2015)."""
    drawn = {}
    width = inputs
    for layer, outputs in enumerate(hidden, start=first):
        drawn[f"layer{layer}_weight"] = torch.randn(outputs, width) * (2.0 / width) ** 0.5
        drawn[f"layer{layer}_bias"] = torch.zeros(outputs)
        width = outputs
    return drawn
