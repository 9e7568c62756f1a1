"""MLDG: a step that is good for some tasks shall be good for others too.

It must never adapt to a task: it looks for weights that serve tasks which nobody has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from recmeta.meta.inner_loop import descend
from recmeta.meta.interface import (
    Data,
    MetaLearner,
    Problem,
    Weights,
    count_tasks,
    for_each_task,
    losses_at,
)


class Mldg(MetaLearner):
    """Meta-learning for domain generalization (Li et al. 2018, algorithm 1).

    The tasks of a meta-batch are split at random into meta-train tasks, whose mean loss is F, and
    meta-test tasks, whose mean loss is G ::

        F(θ) + β * G(θ - inner_rate * gradient of F(θ))

    Without ``second_order`` the gradient of F counts as a constant. ``inner_steps`` above 1 are that
    many steps down F. Half of the tasks are meta-test tasks (rounded down); without a generator, the
    last ones. Each task's loss counts once, so β is the ratio of the two counts: 1 where the number of
    tasks is even, as in the paper, and below 1 where it is odd. One task is joint training.
    There is no query apart from the split: all rows are query rows.
    """

    name: ClassVar[str] = "mldg"

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
        """Return meta-train tasks' losses at ``weights`` and meta-test tasks' after the steps, in order.

        ``support`` is not read. Weights that belong to one task stay where they are: no step on another
        task's rows moves them.
        """
        tasks = count_tasks(query)
        if not self.options.inner_steps or tasks == 1:
            return losses_at(problem, weights, query)
        narrow, start = self.narrowed(problem, weights)
        order = torch.arange(tasks) if generator is None else torch.randperm(tasks, generator=generator)
        order = order.to(next(iter(query.values())).device)
        train, test = order[: tasks - tasks // 2], order[tasks - tasks // 2 :]
        own = {name: value for name, value in start.items() if name in problem.per_task}
        shared = {name: value for name, value in start.items() if name not in problem.per_task}
        train_rows, test_rows = _take(query, train), _take(query, test)

        def train_losses(at: Weights, rows: Data) -> Tensor:
            return losses_at(narrow, {**at, **_take(own, train)}, rows)

        together = Problem(loss=lambda at, rows: train_losses(at, rows).mean())
        path = descend(
            together,
            shared,
            {name: value[None] for name, value in train_rows.items()},  # all of them are one task
            steps=self.options.inner_steps,
            rate=float(self.options.inner_rate),
            second_order=self.options.second_order,
        )
        after = {name: value[0] for name, value in path[-1].items()}
        losses = torch.cat(
            [
                train_losses(shared, train_rows),
                losses_at(narrow, {**after, **_take(own, test)}, test_rows),
            ]
        )
        return losses[order.argsort()]

    def adapt(self, problem: Problem, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return ``weights`` once for each task: what generalizes is used as it is."""
        return for_each_task(problem, weights, count_tasks(support))


def _take(tensors: Mapping[str, Tensor], tasks: Tensor) -> dict[str, Tensor]:
    return {name: value[tasks] for name, value in tensors.items()}
