"""Domain regularization: weights of a task's own that were tried out on other tasks first.

This module knows losses and gradients; it must never know what a task is or who asks for weights of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, vmap

from recmeta.errors import InputError
from recmeta.meta.interface import Data, Problem, Weights, count_tasks


def regularized_direction(
    problem: Problem,
    weights: Weights,
    data: Data,
    *,
    rate: float,
    helpers: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return, for each task, what to go against instead of its gradient: [tasks, ...].

    Domain regularization of MAMDR (Luo et al. 2023, algorithm 2). Task ``i`` has weights φ_i. For a
    helper task ``j`` drawn at random ::

        step_ij = φ_i - rate * gradient of loss_j(φ_i)
        end_ij = step_ij - rate * gradient of loss_i(step_ij)

    and the result is ``(φ_i - end_ij) / rate``, its mean over helpers. It is the gradient of the
    helper's loss plus that of the task's own, taken after the helper's step: what a helper suggests
    counts as far as the task's own rows bear it out. The paper moves φ_i by γ after each helper; here
    all helpers start from the same φ_i and their moves are averaged, which is the same up to terms of
    γ², and is one batched program. SGD on the result with rate ``γ * rate`` is the paper's move by γ.

    A task alone has no helper; its result is its plain gradient, about half as long.

    Args:
        problem: the loss of one task.
        weights: each task's own, [tasks, ...].
        data: rows of each task, [tasks, ...]; a helper's are read under the weights of those it helps.
        rate: length of the two steps.
        helpers: how many other tasks each task tries, all different; where there are fewer, all.
        generator: draws the helpers, on the CPU.

    Raises:
        InputError: no helpers are asked for, the rate is not above 0, or weights belong to the rows of
            one task, so that they mean nothing to another.
    """
    if helpers < 1 or not rate > 0:
        raise InputError(
            "domain regularization: expected helpers from 1 and a rate above 0, "
            f"found helpers={helpers}, rate={rate}"
        )
    if problem.per_task:
        raise InputError(
            "domain regularization: expected weights that every task can use, found weights that belong "
            f"to the rows of one task: {sorted(problem.per_task)}"
        )
    gradient = grad(problem.loss)
    tasks = count_tasks(data)
    if tasks == 1:
        alone: dict[str, Tensor] = vmap(gradient)(dict(weights), dict(data))
        return alone

    def with_helper(
        own: dict[str, Tensor], helper_rows: dict[str, Tensor], own_rows: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        first = gradient(own, helper_rows)
        stepped = {name: value - rate * first[name] for name, value in own.items()}
        second = gradient(stepped, own_rows)
        return {name: first[name] + second[name] for name in own}

    chosen = _draw_helpers(tasks, min(helpers, tasks - 1), generator)
    theirs = {name: value[chosen.to(value.device)] for name, value in data.items()}
    each = vmap(vmap(with_helper, in_dims=(None, 0, None)))(dict(weights), theirs, dict(data))
    return {name: value.mean(1) for name, value in each.items()}


def _draw_helpers(tasks: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw for each task ``count`` different others: indices, int64 [tasks, count]."""
    drawn = torch.rand(tasks, tasks - 1, generator=generator).argsort(dim=1)[:, :count]
    return drawn + (drawn >= torch.arange(tasks)[:, None])
