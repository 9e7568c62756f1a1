"""DeepFM (Guo et al. 2017): a factorisation machine and a perceptron over the same inputs, summed.

The score is ``w x + sum_{f<g} <v_f, v_g> + head(trunk(x))``. Fields with a vector v_f are the user, the
item, the history, the context (a vector of its own, zero at first and for an unknown context until rows
with a hidden context teach otherwise), and each encoded dense feature, whose vector is multiplied by its
value. The sum over pairs is computed as ``((sum_f v_f)^2 - sum_f v_f^2) / 2`` (Rendle 2010), so a row costs
2 d multiplications a feature. The trunk is adapted, the machine is not. This file must never know how
vectors were looked up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recmeta.models.backbones.backbone import Tensors, inputs_of, project
from recmeta.models.backbones.mlp import Mlp

VECTOR_FIELDS = 3
"""User, item and history come first among the vectors."""


class DeepFm(Mlp):
    """Perceptron and factorisation machine; see the module."""

    @property
    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """The vector of the context, as a field."""
        return {"context_field": (self.shape.embedding_size,)}

    def initial_weights(self) -> dict[str, Tensor]:
        """Draw the perceptron, and small vectors of the encoded features."""
        size, encoded = self.shape.embedding_size, self.shape.encoded
        return super().initial_weights() | {
            "linear_weight": torch.zeros(1, self.shape.inputs),
            "field_weight": torch.randn(size, encoded) * 0.05 / max(encoded, 1) ** 0.5,
        }

    def prepare(self, gathered: Tensors, weights: Tensors) -> dict[str, Tensor]:
        """Return what the perceptron prepares, and ``wide`` [...], the machine's score."""
        encoded, vectors = inputs_of(gathered)
        size = self.shape.embedding_size
        fields = torch.unflatten(vectors[..., : VECTOR_FIELDS * size], -1, (VECTOR_FIELDS, size))
        context, values = gathered["context_field"], weights["field_weight"]
        total = fields.sum(-2) + context + functional.linear(encoded, values)
        squares = fields.square().sum(-2) + context.square()
        squares = squares + functional.linear(encoded.square(), values.square())
        pairs = (total.square() - squares).sum(-1) / 2
        linear = project((encoded, vectors), weights["linear_weight"]).squeeze(-1)
        return super().prepare(gathered, weights) | {"wide": linear + pairs}
