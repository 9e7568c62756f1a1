"""Joint training: the meta-learner with zero inner steps. It must never look at support data."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.func import vmap

from recmeta.meta.interface import Data, LossFunction, MetaLearner, Weights


class Joint(MetaLearner):
    """Learn one set of weights that is good for all tasks as they are: multi-task learning.

    ``min over θ of mean over tasks of loss(θ, query)``. Adaptation, where it is wanted, is left to
    whoever uses the weights.
    """

    name: ClassVar[str] = "joint"

    def __init__(self, *, inner_steps: int = 0, inner_rate: float = 0.1) -> None:
        """Take the arguments of every meta-learner and make no inner step."""
        super().__init__(inner_steps=inner_steps, inner_rate=inner_rate)
        self.inner_steps = 0

    def meta_loss(self, loss: LossFunction, weights: Weights, support: Data, query: Data) -> Tensor:
        """Return the mean over tasks of the loss at ``weights``; ``support`` is not read."""
        losses: Tensor = vmap(loss, in_dims=(None, 0))(dict(weights), dict(query))
        return losses.mean()

    def adapt(self, loss: LossFunction, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return ``weights`` once for each task."""
        tasks = next(iter(support.values())).shape[0]
        return {name: value.expand(tasks, *value.shape) for name, value in weights.items()}
