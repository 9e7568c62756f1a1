"""The inner loop that gradient-based meta-learners share: a few SGD steps, batched over tasks.

This module knows gradients; it must never know what the weights or the data mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import grad, vmap

from recmeta.meta.interface import Data, Problem, Weights

Rates = float | Mapping[str, Tensor]
"""One rate, or one for each number of each weight."""


def descend(
    problem: Problem,
    weights: Weights,
    support: Data,
    *,
    steps: int,
    rate: Rates,
    second_order: bool,
) -> list[dict[str, Tensor]]:
    """Return each task's weights after SGD step 1, 2, ..., ``steps`` on its support data: [tasks, ...].

    ``fast_k = fast_(k-1) - rate * gradient of loss(fast_(k-1), support)``, from ``fast_0 = weights``
    (Finn et al. 2017, the inner update). All tasks run in one program (vmap), none in a Python loop.
    The result is differentiable in ``weights``, ``rate`` and, in second order, in all that the loss
    closes over. In first order the gradients on the way count as constants.
    """
    gradient = grad(problem.loss)

    def slopes_at(at: dict[str, Tensor], data: dict[str, Tensor]) -> dict[str, Tensor]:
        # torch.func.grad heeds a no_grad inside the loss and not the one around it. So under no_grad
        # gradients are exact, while nothing of how they came about is kept for the outer loop.
        with torch.set_grad_enabled(second_order and torch.is_grad_enabled()):
            slopes: dict[str, Tensor] = gradient(at, data)
        return slopes

    def one_task(start: dict[str, Tensor], data: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        path = [start]
        for _ in range(steps):
            slopes = slopes_at(path[-1], data)
            path.append({name: _moved(value, slopes[name], rate, name) for name, value in path[-1].items()})
        return path[1:]

    # Until the first step a weight that is not a task's own stays without an axis of tasks: then one
    # product serves all tasks.
    axes = {name: 0 if name in problem.per_task else None for name in weights}
    path: list[dict[str, Tensor]] = vmap(one_task, in_dims=(axes, 0))(dict(weights), dict(support))
    return path


def _moved(value: Tensor, slope: Tensor, rate: Rates, name: str) -> Tensor:
    if isinstance(rate, float):
        return torch.add(value, slope, alpha=-rate)  # one pass over memory, where a product needs two
    return value - rate[name] * slope
