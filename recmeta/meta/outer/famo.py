"""FAMO: let all contexts' losses fall at the same rate, from the losses alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torchjd.scalarization import FAMO

from recmeta.meta.outer.weighting import Weighting


class Famo(Weighting):
    """Fast adaptive multitask optimization (Liu et al. 2023, algorithm 2), with the formulas of torchjd.

    Minimises ``c Σ z log(loss)`` with ``z = softmax(w)`` over the contexts present, and ``c`` such that
    the gradient is a convex combination. After the step it moves ``w``, by an Adam of its own, towards
    those whose loss fell least. An absent context counts as having fared as the others did on average,
    so that Adam learns nothing of it, and its ``w`` stays. Losses must be above zero.

    Its parameter ``w`` never gets a ``.grad``, so another optimizer that holds it leaves it alone.
    What lies between a `backward` and its `after_step` is not part of the state: save after both.
    """

    name = "famo"
    looks_back = True

    def __init__(self, contexts: int) -> None:
        """Start from equal weights."""
        super().__init__(contexts)
        self.scalarizer = FAMO(contexts)
        self._groups = torch.empty(0, dtype=torch.int64)
        self._before = torch.empty(0)

    def backward(
        self,
        losses: Tensor,
        groups: Tensor,
        shared: Sequence[Tensor],
        others: Sequence[Tensor] = (),
        extra: Tensor | None = None,
    ) -> None:
        """See `OuterAggregation.backward`; remembers the losses until `after_step`."""
        self._groups = groups
        super().backward(losses, groups, shared, others, extra)

    def total(self, losses: Tensor, present: Tensor) -> Tensor:
        """Return the weighted logarithms of the losses."""
        self._before = losses.detach()
        learnt = {
            name: value[present]
            for name, value in (*self.scalarizer.named_parameters(), *self.scalarizer.named_buffers())
        }
        total: Tensor = torch.func.functional_call(self.scalarizer, learnt, (losses,))
        return total

    def after_step(self, losses: Callable[[], Tensor]) -> None:
        """Move the weights by how much each loss fell."""
        present, after = self.by_context(losses().detach(), self._groups)
        logits = self.scalarizer._w.detach()
        kept = logits.clone()
        fell = (self._before.log() - after.log()).to(logits.dtype)
        average = (torch.softmax(logits[present], dim=0) * fell).sum()
        whole = torch.zeros_like(logits).index_put((present,), fell - average)
        self.scalarizer._prev_losses = torch.ones_like(logits)
        self.scalarizer.update(torch.exp(-whole))
        kept[present] = logits[present]
        logits.copy_(kept)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what its Adam remembers."""
        adam = self.scalarizer._optimizer
        return {} if adam is None else dict(adam.state[self.scalarizer._w])

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_extra_state`."""
        famo = self.scalarizer
        famo._optimizer = Adam([famo._w], lr=famo.lr, weight_decay=famo.weight_decay) if state else None
        if famo._optimizer is not None:
            famo._optimizer.state[famo._w] = {
                # Adam counts its steps on the CPU, wherever the rest of it is.
                name: value.clone() if name == "step" else value.to(famo._w.device, copy=True)
                for name, value in state.items()
            }
