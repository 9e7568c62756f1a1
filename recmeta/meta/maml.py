"""MAML: be good after a few steps. Its relatives change one thing each: see the classes below it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from recmeta.meta.inner_loop import Rates, descend
from recmeta.meta.interface import (
    Data,
    MetaLearner,
    Problem,
    Weights,
    count_tasks,
    for_each_task,
    losses_at,
    losses_under,
)


class Maml(MetaLearner):
    """Model-agnostic meta-learning (Finn et al. 2017, algorithm 1), with second derivatives.

    ``min over θ of mean over tasks of loss(fast(θ), query)``, where ``fast(θ)`` is θ after
    ``inner_steps`` SGD steps on support data. The outer gradient goes through those steps. With
    ``step_weights`` the query loss after each step counts (Antoniou et al. 2019, section 4).
    """

    name: ClassVar[str] = "maml"
    second_order: bool = True

    def meta_losses(
        self,
        problem: Problem,
        weights: Weights,
        support: Data,
        query: Data,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return each task's query loss after the inner steps on its support data."""
        if not self.options.inner_steps:
            return losses_at(problem, weights, query)
        narrow, fast = self.narrowed(problem, weights)
        path = self._path(narrow, fast, support)
        shares = self.options.step_weights
        if not shares:
            return losses_under(narrow, path[-1], query)
        counted = zip(path, shares, strict=True)
        losses = torch.stack([share * losses_under(narrow, at, query) for at, share in counted if share])
        return losses.sum(0) / sum(shares)

    def adapt(self, problem: Problem, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return each task's weights after ``inner_steps`` SGD steps on its support data."""
        everywhere = for_each_task(problem, weights, count_tasks(support))
        if not self.options.inner_steps:
            return everywhere
        narrow, fast = self.narrowed(problem, weights)
        return everywhere | self._path(narrow, fast, support)[-1]

    def _path(self, problem: Problem, fast: Weights, support: Data) -> list[dict[str, Tensor]]:
        return descend(
            problem,
            fast,
            support,
            steps=self.options.inner_steps,
            rate=self._rates(),
            second_order=self.second_order,
        )

    def _rates(self) -> Rates:
        return float(self.options.inner_rate)
