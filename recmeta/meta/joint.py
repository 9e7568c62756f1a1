"""Joint training: the meta-learner with zero inner steps. It must never look at support data."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from recmeta.meta.interface import (
    Data,
    MetaLearner,
    Problem,
    Weights,
    count_tasks,
    for_each_task,
    losses_at,
)


class Joint(MetaLearner):
    """Learn one set of weights that is good for all tasks as they are: multi-task learning.

    ``min over θ of mean over tasks of loss(θ, query)``. Adaptation, where it is wanted, is left to
    whoever uses the weights: joint training followed by adaptation is fine-tuning.
    """

    name: ClassVar[str] = "joint"

    @property
    def uses_support(self) -> bool:
        """Never: all rows are query rows."""
        return False

    def meta_losses(
        self,
        problem: Problem,
        weights: Weights,
        support: Data,
        query: Data,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return each task's loss at ``weights``; ``support`` is not read."""
        return losses_at(problem, weights, query)

    def adapt(self, problem: Problem, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return ``weights`` once for each task."""
        return for_each_task(problem, weights, count_tasks(support))
