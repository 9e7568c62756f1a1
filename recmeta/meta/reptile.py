"""Reptile: walk to where a task wants the weights, then move there part of the way."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad, vmap

from recmeta.errors import InputError
from recmeta.meta.interface import Data, Problem, Weights, count_tasks, losses_at, losses_under
from recmeta.meta.maml import Maml


class Reptile(Maml):
    """Reptile (Nichol et al. 2018, algorithm 2): the outer gradient is ``(θ - fast) / inner_rate``.

    That is the sum of the gradients met on the way, each at its own point. So the meta-loss is the sum
    of the losses along the walk, where every point counts as moving one to one with θ; parameters
    that the loss closes over learn from the same points. Each step reads its own part of a task's
    rows: it is the change of rows that rewards gradients which agree. With one step it is an SGD
    step of joint training. There is no query: all rows are walked on.
    """

    name: ClassVar[str] = "reptile"
    second_order = False

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
        """Return each task's summed loss along the walk; ``support`` is not read."""
        steps = self.options.inner_steps
        if steps <= 1:
            return losses_at(problem, weights, query)
        narrow, start = self.narrowed(problem, weights)
        gradient = vmap(grad(narrow.loss))
        fast = {name: value.detach() for name, value in start.items()}
        at = {
            name: value if name in problem.per_task else value.expand(count_tasks(query), *value.shape)
            for name, value in fast.items()
        }
        origin = at
        losses = []
        for part in _parts(query, steps):
            shifted = {name: start[name] + (at[name] - origin[name]) for name in start}
            losses.append(losses_under(narrow, shifted, part))
            with torch.no_grad():
                slopes = gradient(at, part)
                at = {name: value - self.options.inner_rate * slopes[name] for name, value in at.items()}
        return torch.stack(losses).sum(0)


def _parts(data: Data, count: int) -> list[dict[str, Tensor]]:
    """Split each task's rows into ``count`` parts of consecutive rows."""
    rows = next(iter(data.values())).shape[1]
    if rows < count:
        raise InputError(f"reptile: expected at least {count} rows a task, one an inner step, found {rows}")
    split = {name: value.tensor_split(count, dim=1) for name, value in data.items()}
    return [{name: parts[number] for name, parts in split.items()} for number in range(count)]
