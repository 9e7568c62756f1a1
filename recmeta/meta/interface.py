"""What a meta-learner is: a way to learn weights over tasks, for any differentiable loss.

A task is data. A loss is a function of weights and data. Nothing here knows recommendation, so the
same meta-learners fit sinusoids, users or surfaces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor

from recmeta.errors import InputError

Weights = Mapping[str, Tensor]
"""The tensors that the inner loop moves, by name: the fast weights' starting point."""

Data = Mapping[str, Tensor]
"""The tensors of one task; where many tasks are given, each has a leading axis of tasks."""

LossFunction = Callable[[Weights, Data], Tensor]
"""The mean loss of one task's data under given weights, a scalar.

It may close over further parameters that need gradients: the outer loop reaches them, the inner
loop leaves them alone. It is called under ``torch.func.vmap`` and ``torch.func.grad``, so it may not
branch on values, draw random numbers or look up tables with sparse gradients.
"""


class MetaLearner(ABC):
    """A strategy for learning weights over tasks."""

    name: ClassVar[str]

    def __init__(self, *, inner_steps: int = 0, inner_rate: float = 0.1) -> None:
        """Set how far the inner loop goes; joint training ignores both.

        Raises:
            InputError: a negative number of steps, or a rate that is not above 0.
        """
        if inner_steps < 0 or not inner_rate > 0:
            raise InputError(
                "meta-learner: expected inner_steps from 0 and inner_rate above 0, "
                f"found inner_steps={inner_steps} inner_rate={inner_rate}"
            )
        self.inner_steps = inner_steps
        self.inner_rate = inner_rate

    @property
    def uses_support(self) -> bool:
        """Whether support rows are looked at; where not, they are better spent as query rows."""
        return self.inner_steps > 0

    @abstractmethod
    def meta_loss(self, loss: LossFunction, weights: Weights, support: Data, query: Data) -> Tensor:
        """Return the scalar whose gradient the outer loop follows: the mean over tasks.

        Args:
            loss: of one task.
            weights: where every task starts, without an axis of tasks.
            support: data to adapt to, [tasks, ...]; may be empty where `uses_support` is false.
            query: later data to be good at, [tasks, ...].
        """

    @abstractmethod
    def adapt(self, loss: LossFunction, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return each task's fast weights, [tasks, ...]."""
