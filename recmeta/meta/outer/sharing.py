"""Outer aggregations that settle conflicts between contexts' gradients over the dense body."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, autograd, nn

from recmeta.meta.outer.draws import Draws
from recmeta.meta.outer.gradients import context_gradients
from recmeta.meta.outer.interface import OuterAggregation


class Sharing(OuterAggregation):
    """Combine contexts' gradients over ``shared``; all other leaves get the gradient of the mean loss.

    Only dense parameters are combined: a table's row is looked up by few contexts, and a matrix of all
    tables' gradients would be as large as contexts times tables.

    Costs one backward pass a context for ``shared``, and one for the others; one in all where a single
    context is present, because there is nothing to settle.
    """

    @abstractmethod
    def combine(self, gradients: Tensor, present: Tensor) -> Tensor:
        """Return one gradient [n] of those of two or more contexts [contexts, n] at these positions."""

    def backward(
        self,
        losses: Tensor,
        groups: Tensor,
        shared: Sequence[Tensor],
        others: Sequence[Tensor] = (),
        extra: Tensor | None = None,
    ) -> None:
        """See `OuterAggregation.backward`."""
        present, means = self.by_context(losses, groups)
        plain = means.mean() if extra is None else means.mean() + extra
        if len(present) == 1:
            autograd.backward(plain, inputs=[*shared, *others])
            return
        gradients, reached = context_gradients(means, shared)
        combined = self._settled(gradients, present)
        if extra is not None and extra.requires_grad:
            autograd.backward(extra, inputs=list(shared), retain_graph=True)
        if others:
            autograd.backward(plain, inputs=list(others))
        pieces = torch.split(combined, [leaf.numel() for leaf in shared])
        for leaf, piece, known in zip(shared, pieces, reached, strict=True):
            if known:
                leaf.grad = piece.view_as(leaf) if leaf.grad is None else leaf.grad + piece.view_as(leaf)

    @torch.no_grad()
    def _settled(self, gradients: Tensor, present: Tensor) -> Tensor:
        if not gradients.any():  # which has no direction, and which some solvers refuse
            return gradients[0]
        wide = gradients if gradients.dtype == torch.float64 else gradients.float()  # solvers know no half
        return self.combine(wide, present).to(gradients.dtype)


class Stateless(Sharing):
    """An aggregator of torchjd that remembers nothing from one step to the next."""

    def __init__(
        self,
        name: str,
        contexts: int,
        aggregator: nn.Module,
        *,
        length: Callable[[int], float] = lambda present: 1.0,
        seed: int = 0,
    ) -> None:
        """Take the aggregator; of n equal gradients it makes one ``length(n)`` times as long."""
        super().__init__(contexts)
        self.name = name
        self.aggregator = aggregator
        self.length = length
        self.draws = Draws(seed)

    def combine(self, gradients: Tensor, present: Tensor) -> Tensor:
        """Return what the aggregator makes of them, on the scale of a mean."""
        with self.draws.next():
            combined: Tensor = self.aggregator(gradients)
        return combined / self.length(len(gradients))
