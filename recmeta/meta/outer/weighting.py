"""Outer aggregations that weigh losses: one number out of all contexts', and one backward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, autograd

from recmeta.errors import InputError
from recmeta.meta.outer.interface import OuterAggregation


class Weighting(OuterAggregation):
    """Follow the gradient of one scalar made of the contexts' losses. Costs one backward pass."""

    @abstractmethod
    def total(self, losses: Tensor, present: Tensor) -> Tensor:
        """Return the scalar to minimise, of each present context's loss and its position."""

    def backward(
        self,
        losses: Tensor,
        groups: Tensor,
        shared: Sequence[Tensor],
        others: Sequence[Tensor] = (),
        extra: Tensor | None = None,
    ) -> None:
        """See `OuterAggregation.backward`; ``shared`` and ``others`` are treated alike."""
        present, means = self.by_context(losses, groups)
        total = self.total(means, present)
        if extra is not None:
            total = total + extra
        autograd.backward(total, inputs=[*shared, *others, *self.parameters()])


class Mean(Weighting):
    """All contexts that are present count the same."""

    name = "mean"

    def total(self, losses: Tensor, present: Tensor) -> Tensor:
        """Return the mean."""
        return losses.mean()


class PerTask(Weighting):
    """All tasks count the same, so a context counts as often as it was drawn."""

    name = "per_task"

    def by_context(self, losses: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tasks as they are, after the same checks."""
        super().by_context(losses, groups)
        return groups - 1, losses

    def total(self, losses: Tensor, present: Tensor) -> Tensor:
        """Return the mean over tasks."""
        return losses.mean()


class BySize(Weighting):
    """A context counts as much as it has rows: what training on the pooled rows would minimise."""

    name = "by_size"
    sizes: Tensor

    def __init__(self, contexts: int, sizes: Tensor) -> None:
        """Take each context's number of rows, [contexts]; one that is never present may have none."""
        super().__init__(contexts)
        if sizes.shape != (contexts,) or not bool((sizes >= 0).all()):
            raise InputError(
                f"outer aggregation by_size: expected a size from 0 for each of {contexts} contexts, "
                f"found {sizes.tolist()}"
            )
        self.register_buffer("sizes", sizes.double(), persistent=False)

    def total(self, losses: Tensor, present: Tensor) -> Tensor:
        """Return the mean, weighted by size."""
        sizes = self.sizes[present]
        return (losses * (sizes / sizes.sum()).to(losses.dtype)).sum()
