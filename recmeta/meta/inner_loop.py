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
    if second_order:
        return _descend_exactly(problem, weights, support, steps, rate)
    # torch.func.grad heeds a no_grad inside the loss and not the one around it. So under no_grad the
    # steps themselves are exact, while no graph is kept for the outer loop.
    with torch.no_grad():
        sums = _gradient_sums(problem, weights, support, steps, rate)
    return [
        {name: value - _rate(rate, name) * total[name] for name, value in weights.items()} for total in sums
    ]


def _descend_exactly(
    problem: Problem, weights: Weights, support: Data, steps: int, rate: Rates
) -> list[dict[str, Tensor]]:
    gradient = grad(problem.loss)

    def one_task(start: dict[str, Tensor], data: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        path = [start]
        for _ in range(steps):
            slopes = gradient(path[-1], data)
            path.append({name: value - _rate(rate, name) * slopes[name] for name, value in path[-1].items()})
        return path[1:]

    path: list[dict[str, Tensor]] = vmap(one_task, in_dims=(_axes(problem, weights), 0))(
        dict(weights), dict(support)
    )
    return path


def _gradient_sums(
    problem: Problem, weights: Weights, support: Data, steps: int, rate: Rates
) -> list[dict[str, Tensor]]:
    """Sum of the gradients met until step 1, 2, ...: where a path is, apart from its start and its rate."""
    gradient = grad(problem.loss)

    def one_task(start: dict[str, Tensor], data: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        sums: list[dict[str, Tensor]] = []
        fast = start
        for _ in range(steps):
            slopes = gradient(fast, data)
            sums.append({name: slopes[name] + sums[-1][name] if sums else slopes[name] for name in start})
            fast = {name: value - _rate(rate, name) * slopes[name] for name, value in fast.items()}
        return sums

    sums: list[dict[str, Tensor]] = vmap(one_task, in_dims=(_axes(problem, weights), 0))(
        dict(weights), dict(support)
    )
    return sums


def _axes(problem: Problem, weights: Weights) -> dict[str, int | None]:
    return {name: 0 if name in problem.per_task else None for name in weights}


def _rate(rate: Rates, name: str) -> float | Tensor:
    return rate if isinstance(rate, float) else rate[name]
