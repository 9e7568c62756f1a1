"""A small model with a dense body and a table, and contexts that disagree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recmeta.meta.outer.interface import OuterAggregation
from recmeta.meta.outer.registry import get_outer

CONTEXTS = 5
SIZES = torch.tensor([10, 400, 30, 80, 5])


class Model:
    """``tanh(table[row] @ body) @ head``, fitted to numbers of each context's own."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw).to(dtype).requires_grad_()

        self.table, self.body, self.head = leaf(12, 4), leaf(4, 3), leaf(3)
        self.targets = torch.randn(CONTEXTS + 1, 12, generator=draw).to(dtype)

    @property
    def shared(self) -> list[Tensor]:
        return [self.body, self.head]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.body, self.head, self.table]

    def losses(self, groups: Tensor, seed: int = 0) -> Tensor:
        """One loss a task; the same for the same context and seed, wherever the task stands."""
        return torch.stack([self._loss(int(context), seed) for context in groups])

    def _loss(self, context: int, seed: int) -> Tensor:
        row = torch.randint(0, 12, (6,), generator=torch.Generator().manual_seed(100 * seed + context))
        vectors = torch.nn.functional.embedding(row, self.table, sparse=True)
        found = torch.tanh(vectors @ self.body) @ self.head
        return (found - self.targets[context, row]).square().mean()

    def penalty(self) -> Tensor:
        vectors = torch.nn.functional.embedding(torch.arange(4), self.table, sparse=True)
        return vectors.square().mean() + self.head.square().mean()

    def gradients(self) -> list[Tensor]:
        """What backward left, tables as dense tensors, zero for nothing; then forgotten."""
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.leaves]
        for leaf in self.leaves:
            leaf.grad = None
        return [part.to_dense().detach().clone() for part in found]


def make(name: str, **options: object) -> OuterAggregation:
    given = {"contexts": CONTEXTS, "sizes": SIZES, "steps_per_epoch": 3} | options
    return get_outer(name, **given)  # type: ignore[arg-type]


def body_gradients(model: Model, losses: Sequence[Tensor]) -> Tensor:
    """Each loss's gradient over the body, by plain means: [losses, numbers]."""
    rows = [torch.autograd.grad(loss, model.shared, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
