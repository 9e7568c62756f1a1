"""The inner loop that gradient-based meta-learners share: a few SGD steps, batched over tasks.

This module knows gradients; it must never know what the weights or the data mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, vmap

from recmeta.meta.interface import Data, LossFunction, Weights


def descend(
    loss: LossFunction, weights: Weights, support: Data, *, steps: int, rate: float
) -> dict[str, Tensor]:
    """Take ``steps`` SGD steps from ``weights`` on each task of ``support`` at once: [tasks, ...].

    Differentiable in ``weights`` and in all that ``loss`` closes over, through every step (Finn et
    al. 2017, the inner update). All tasks run in one program (vmap), none in a Python loop.
    """
    gradient = grad(loss)

    def one_task(data: Data) -> dict[str, Tensor]:
        fast = dict(weights)
        for _ in range(steps):
            slopes = gradient(fast, data)
            fast = {name: value - rate * slopes[name] for name, value in fast.items()}
        return fast

    stacked: dict[str, Tensor] = vmap(one_task)(dict(support))
    return stacked


def descend_first_order(
    loss: LossFunction, weights: Weights, support: Data, *, steps: int, rate: float
) -> dict[str, Tensor]:
    """Do as `descend`, but treat the steps as constants: the result's derivative in ``weights`` is 1.

    ``torch.func.grad`` heeds a ``no_grad`` inside the loss and not the one around it. So under
    ``no_grad`` the steps themselves are exact, while no graph is kept for the outer loop.
    """
    with torch.no_grad():
        fast = descend(loss, weights, support, steps=steps, rate=rate)
        moved = {name: value - weights[name] for name, value in fast.items()}
    return {name: weights[name] + moved[name] for name in moved}


def mean_over_tasks(loss: LossFunction, fast: Weights, query: Data) -> Tensor:
    """Return the mean over tasks of each task's loss under its own fast weights."""
    losses: Tensor = vmap(loss)(dict(fast), dict(query))
    return losses.mean()
