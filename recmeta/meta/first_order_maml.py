"""First-order MAML: be good after a few steps, without derivatives of derivatives."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from recmeta.meta.inner_loop import descend_first_order, mean_over_tasks
from recmeta.meta.interface import Data, LossFunction, MetaLearner, Weights


class FirstOrderMaml(MetaLearner):
    """Model-agnostic meta-learning with the first-order approximation (Finn et al. 2017, section 5.2).

    For each task, ``fast = θ - rate * sum of the gradients met on the way`` on support data; the outer
    gradient is that of ``loss(fast, query)``, taken as if ``fast`` moved one to one with ``θ``.
    """

    name: ClassVar[str] = "first_order_maml"

    def meta_loss(self, loss: LossFunction, weights: Weights, support: Data, query: Data) -> Tensor:
        """Return the mean over tasks of the query loss after the inner steps on support data."""
        tasks = next(iter(query.values())).shape[0]
        if not self.inner_steps:  # no support is needed, and there may be none
            fast = {name: value.expand(tasks, *value.shape) for name, value in weights.items()}
        else:
            fast = self.adapt(loss, weights, support)
        return mean_over_tasks(loss, fast, query)

    def adapt(self, loss: LossFunction, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return each task's weights after ``inner_steps`` SGD steps on its support data."""
        return descend_first_order(loss, weights, support, steps=self.inner_steps, rate=self.inner_rate)
