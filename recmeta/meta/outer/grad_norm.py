"""GradNorm: let contexts train at the same pace, by the lengths of their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recmeta.errors import InputError
from recmeta.meta.outer.gradients import context_gradients
from recmeta.meta.outer.weighting import Weighting


class GradNorm(Weighting):
    """Gradient normalization (Chen et al. 2018, algorithm 1 and equations 1 and 2).

    Weights ``w``, one a context, with mean one. Their own loss is ``Σ |G_i - Ḡ r_i^α|``, where
    ``G_i = w_i |gradient of loss_i|``, Ḡ is the mean of ``G``, and ``r_i`` is ``loss_i / first loss_i``
    over its mean: a context that has learnt less than the others should pull harder. ``Ḡ r_i^α`` counts
    as a constant, so ``w_i`` has the gradient ``sign(G_i - Ḡ r_i^α) |gradient of loss_i|``.

    The weights are a parameter that whoever trains the model moves; the next step makes their mean one
    again. Lengths are over all of ``shared``, where the paper takes one layer to save time. Means are
    over the contexts that are present; the weight of an absent one gets a gradient of zero.

    Costs one backward pass a context, and one more.
    """

    name = "grad_norm"
    first: Tensor

    def __init__(self, contexts: int, *, alpha: float = 1.5) -> None:
        """Start from equal weights; ``alpha`` is how hard a slow context is pushed (1.5 in the paper)."""
        super().__init__(contexts)
        if alpha < 0:
            raise InputError(f"outer aggregation grad_norm: expected alpha from 0, found {alpha}")
        self.alpha = alpha
        self.weights = nn.Parameter(torch.ones(contexts))
        self.register_buffer("first", torch.full((contexts,), torch.nan, dtype=torch.float64))

    def backward(
        self,
        losses: Tensor,
        groups: Tensor,
        shared: Sequence[Tensor],
        others: Sequence[Tensor] = (),
        extra: Tensor | None = None,
    ) -> None:
        """See `OuterAggregation.backward`; adds the weights' own gradient."""
        present, means = self.by_context(losses, groups)
        gradients, _ = context_gradients(means, shared)
        slopes = self._slopes(gradients.norm(dim=1), means.detach(), present)
        super().backward(losses, groups, shared, others, extra)
        self.weights.grad = slopes if self.weights.grad is None else self.weights.grad + slopes

    def total(self, losses: Tensor, present: Tensor) -> Tensor:
        """Return the mean of the weighted losses."""
        return (self.weights.detach()[present].to(losses.dtype) * losses).mean()

    @torch.no_grad()
    def _slopes(self, lengths: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """Gradient of the weights' loss, [contexts], after their mean was made one."""
        self.weights.clamp_(min=0.0)  # a step may cross zero, and no context shall be unlearnt
        self.weights.mul_(self.contexts / self.weights.sum())
        now = losses.to(self.first.dtype)
        self.first[present] = torch.where(self.first[present].isnan(), now, self.first[present])
        ratio = now / self.first[present]
        pace = (ratio / ratio.mean()) ** self.alpha
        lengths = lengths.to(self.first.dtype)
        pull = self.weights[present].to(self.first.dtype) * lengths
        slopes = torch.sign(pull - pull.mean() * pace) * lengths
        return torch.zeros_like(self.weights).index_put((present,), slopes.to(self.weights.dtype))
