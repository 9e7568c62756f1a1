"""A retrieval model of two towers: an item is one vector whoever asks, a user in a context another.

What serves is no product of two vectors, and so cannot be asked about a whole catalogue in a request. The
towers imitate it well enough to say which items are worth asking about: their score is the inner product of
a query and an item's vector (Huang et al. 2013; Covington et al. 2016), of which the best of many can be
found quickly. Item vectors know nothing of the context, so that all contexts share them.

Id tables are taken from a `SharedModel` and stay as they are: it learnt them from every label, and a student
has but a minute. This module must never know a teacher, a file or how it is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recmeta.errors import SchemaError
from recmeta.models.shared import CLIP, SharedModel, dense_scales

BINS = 4
"""Pieces of each dense feature, as in `ModelShape.bins`."""

CONTEXT_SIZE = 8
"""Of a context's embedding, as in `ModelShape.context_size`."""


@dataclass(frozen=True)
class TowerShape:
    """What decides the size of `TwoTowers`, beside the tables that it takes over."""

    item_features: int
    user_features: int
    contexts: int
    """Rows of the context table: the known ones, and at 0 the unknown."""
    vector_size: int = 64
    hidden: int = 128

    def __post_init__(self) -> None:
        """Refuse sizes that make no model."""
        for name in ("item_features", "user_features", "contexts", "vector_size", "hidden"):
            value = getattr(self, name)
            if value < 1:
                raise SchemaError(f"tower shape, {name}: expected at least 1, found {value}")


class TwoTowers(nn.Module):
    """`item_vectors` and `queries`, whose inner products are scores for retrieval."""

    user_table: Tensor
    item_table: Tensor
    category_table: Tensor
    item_categories: Tensor

    def __init__(self, shape: TowerShape, like: SharedModel) -> None:
        """Take over the tables of ``like``; draw the rest from torch's global generator."""
        super().__init__()
        self.shape = shape
        for name in ("user_table", "item_table", "category_table", "item_categories"):
            self.register_buffer(name, getattr(like, name).detach().clone())
        size = like.shape.embedding_size
        self.item_dense = _Encoded(shape.item_features)
        self.user_dense = _Encoded(shape.user_features)
        self.context_table = nn.Parameter(torch.randn(shape.contexts, CONTEXT_SIZE) * 0.05)
        self.item_tower = _Tower(self.item_dense.width + size, shape)
        self.user_tower = _Tower(self.user_dense.width + 2 * size + 1 + CONTEXT_SIZE, shape)

    def item_vectors(self, dense: Tensor, item: Tensor, categories: Tensor) -> Tensor:
        """Return the vectors [n, d] of n items.

        Args:
            dense: float32 [n, item_features], what items are whoever asks.
            item: int64 [n], 0 for one that the tables do not know.
            categories: int64 [n, K], padded with 0.
        """
        identity = functional.embedding(item, self.item_table) + self._content(categories)
        found: Tensor = self.item_tower(torch.cat([self.item_dense(dense), identity], dim=-1))
        return found

    def queries(self, dense: Tensor, user: Tensor, history: Tensor, context: Tensor) -> Tensor:
        """Return the queries [n, d] of n users, each in a context.

        Args:
            dense: float32 [n, user_features], what a row says of the user and the instant.
            user: int64 [n], 0 for one that the tables do not know.
            history: int64 [n, H] of items, padded with 0.
            context: int64 [n], 0 for one that was not known when the towers were fitted.
        """
        known = (history > 0).to(self.item_table.dtype)
        length = known.sum(-1, keepdim=True)
        met = functional.embedding(history, self.item_table)
        met = met + self._content(functional.embedding(history, self.item_categories))
        mean = (met * known.unsqueeze(-1)).sum(-2) / length.clamp(min=1.0)
        who = functional.embedding(user, self.user_table)
        where = functional.embedding(context, self.context_table)
        given = [self.user_dense(dense), who, mean, torch.log1p(length), where]
        found: Tensor = self.user_tower(torch.cat(given, dim=-1))
        return found

    def _content(self, categories: Tensor) -> Tensor:
        """Mean vector of the known categories, zero without any: [..., K] -> [..., d]."""
        known = (categories > 0).to(self.category_table.dtype)
        vectors = functional.embedding(categories, self.category_table) * known.unsqueeze(-1)
        return vectors.sum(-2) / known.sum(-1, keepdim=True).clamp(min=1.0)


class _Encoded(nn.Module):
    """Dense features, standardised and in pieces: [n, F] -> [n, width]."""

    dense_mean: Tensor
    dense_scale: Tensor
    bin_start: Tensor
    bin_scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.width = features * (1 + BINS)
        self.register_buffer("dense_mean", torch.zeros(features))
        self.register_buffer("dense_scale", torch.zeros(features))
        self.register_buffer("bin_start", torch.zeros(features, BINS))
        self.register_buffer("bin_scale", torch.zeros(features, BINS))

    @torch.no_grad()
    def learn(self, dense: Tensor) -> None:
        """Set how features are encoded, from float32 [n, F], n > 0."""
        for name, found in dense_scales(dense, BINS).items():
            getattr(self, name).copy_(found)

    def forward(self, dense: Tensor) -> Tensor:
        standard = ((dense - self.dense_mean) * self.dense_scale).clamp(-CLIP, CLIP)
        pieces = ((dense.unsqueeze(-1) - self.bin_start) * self.bin_scale).clamp(0.0, 1.0)
        return torch.cat([standard, pieces.flatten(-2)], dim=-1)


class _Tower(nn.Module):
    """One hidden layer beside a linear one: what is linear in the inputs needs no hidden unit."""

    def __init__(self, inputs: int, shape: TowerShape) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, shape.hidden)
        self.outer = nn.Linear(shape.hidden, shape.vector_size)
        self.straight = nn.Linear(inputs, shape.vector_size, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.outer(functional.relu(self.inner(inputs))) + self.straight(inputs)
        return found


def distillation_loss(scores: Tensor, teacher: Tensor, centred: float) -> Tensor:
    """How far students' scores of lists are from the teacher's: a scalar.

    The cross entropy of the two softmaxes over each list (Cao et al. 2007, with a teacher's logits for
    relevance), less its least possible value; plus ``centred`` times the mean square difference of the
    logits, each list's mean taken away: a list's order matters, its level does not.

    Args:
        scores: [..., m].
        teacher: [..., m], logits.
        centred: from 0 on.
    """
    wanted = functional.log_softmax(teacher, dim=-1)
    divergence = (wanted.exp() * (wanted - functional.log_softmax(scores, dim=-1))).sum(-1).mean()
    gap = scores - teacher
    square = (gap - gap.mean(-1, keepdim=True)).square().mean()
    return divergence + centred * square
