"""What an outer aggregation is: many contexts' losses in, one gradient for each parameter out.

It must never know a meta-learner, or what a loss measures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recmeta.errors import InputError


class OuterAggregation(nn.Module, ABC):
    """A way to weigh contexts against each other, or to settle conflicts between their gradients.

    It is a module because some remember or learn a number a context. All that it remembers is in its
    ``state_dict``, made of tensors, numbers, lists and dictionaries. What it learns are its parameters;
    `backward` sets their gradients, and whoever trains the model makes the step (without weight decay).

    Everything is on the scale of a mean over contexts: where contexts agree, the gradient does not
    grow with their number, and a penalty keeps its strength.
    """

    name: str
    looks_back: ClassVar[bool] = False
    """Whether `after_step` reads the losses again, which costs another forward pass."""

    def __init__(self, contexts: int) -> None:
        """Expect contexts 1, 2, ..., ``contexts``."""
        super().__init__()
        if contexts < 1:
            raise InputError(f"outer aggregation: expected contexts from 1, found {contexts}")
        self.contexts = contexts

    @abstractmethod
    def backward(
        self,
        losses: Tensor,
        groups: Tensor,
        shared: Sequence[Tensor],
        others: Sequence[Tensor] = (),
        extra: Tensor | None = None,
    ) -> None:
        """Add to ``.grad`` of all leaves given, as ``loss.backward()`` would, and free the graph.

        A leaf that nothing depends on keeps the ``.grad`` that it had, ``None`` as a rule.

        Args:
            losses: one a task, [tasks], with a graph.
            groups: int64 [tasks], each task's context, from 1. Tasks of one context are averaged first;
                not every context need be there.
            shared: dense parameters, over which contexts may be in conflict.
            others: all other leaves, such as tables with sparse gradients or what a meta-learner learns.
                A weighting weighs for them too; where gradients are combined, they get the mean's.
            extra: a scalar that is added to the whole, whatever the weights, such as a penalty.

        Raises:
            InputError: ``groups`` do not fit the losses or the number of contexts.
        """

    def after_step(self, losses: Callable[[], Tensor]) -> None:
        """Learn from the last step; ``losses()`` are those of the last `backward`, computed anew."""

    def by_context(self, losses: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions (context - 1) of those present, ascending, and each one's mean loss.

        Raises:
            InputError: as `backward`.
        """
        if losses.dim() != 1 or groups.shape != losses.shape or not len(losses):
            raise InputError(
                f"outer aggregation {self.name}: expected losses [tasks] and as many contexts, "
                f"found {tuple(losses.shape)} and {tuple(groups.shape)}"
            )
        present, position = torch.unique(groups, return_inverse=True)
        if not 1 <= int(present[0]) <= int(present[-1]) <= self.contexts:
            raise InputError(
                f"outer aggregation {self.name}: expected contexts from 1 to {self.contexts}, "
                f"found {present.tolist()}"
            )
        sums = losses.new_zeros(len(present)).index_add(0, position, losses)
        return present - 1, sums / torch.bincount(position).to(losses.dtype)
