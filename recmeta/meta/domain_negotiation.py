"""Domain negotiation: walk through the tasks one after the other, and learn from the whole walk.

It must never walk in an order that the data decide: what a task suggests last would weigh most.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad_and_value

from recmeta.meta.interface import (
    Data,
    MetaLearner,
    Problem,
    Weights,
    count_tasks,
    for_each_task,
    losses_at,
)


class DomainNegotiation(MetaLearner):
    """Domain negotiation of MAMDR (Luo et al. 2023, algorithm 1).

    From θ, one SGD step of ``inner_rate`` on each task in turn, in random order; ``inner_steps`` passes,
    each in an order of its own. The outer gradient is ``(θ - end) / inner_rate``: the sum of the
    gradients met, each at its own point. A later gradient is taken where earlier tasks led, and so,
    over all orders, their agreement is rewarded. As in Reptile, the meta-loss is the
    sum of the losses along the walk, where every point counts as moving one to one with θ; parameters
    that the loss closes over learn from the same points.

    With one task and one pass it is an SGD step of joint training. The walk is sequential by nature: no
    two tasks are computed together. There is no query: all rows are walked on.
    """

    name: ClassVar[str] = "domain_negotiation"

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
        """Return each task's loss where the walk met it, summed over passes; ``support`` is not read."""
        if not self.options.inner_steps:
            return losses_at(problem, weights, query)
        narrow, start = self.narrowed(problem, weights)
        tasks = count_tasks(query)
        step = grad_and_value(narrow.loss)  # one forward pass gives the step and the loss to learn from
        walked = {name: torch.zeros_like(value.detach()) for name, value in start.items()}
        met: list[list[Tensor]] = [[] for _ in range(tasks)]
        for _ in range(self.options.inner_steps):
            for task in _order(tasks, generator):
                own = {name: _of(task, value, name in problem.per_task) for name, value in start.items()}
                way = {name: _of(task, value, name in problem.per_task) for name, value in walked.items()}
                at = {name: value + way[name] for name, value in own.items()}
                slopes, loss = step(at, {name: value[task] for name, value in query.items()})
                for name, moved in way.items():
                    moved.sub_(slopes[name].detach(), alpha=self.options.inner_rate)
                met[task].append(loss)
        return torch.stack([torch.stack(losses).sum() for losses in met])

    def adapt(self, problem: Problem, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return ``weights`` once for each task: negotiation ends in one set of weights for all.

        What is a task's own is left to domain regularization.
        """
        return for_each_task(problem, weights, count_tasks(support))


def _order(tasks: int, generator: torch.Generator | None) -> list[int]:
    if generator is None:
        return list(range(tasks))
    order: list[int] = torch.randperm(tasks, generator=generator).tolist()
    return order


def _of(task: int, value: Tensor, per_task: bool) -> Tensor:
    return value[task] if per_task else value
