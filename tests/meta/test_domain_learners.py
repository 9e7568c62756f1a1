"""Learners that set tasks against one another: each is its paper's algorithm, written out as a loop."""

from __future__ import annotations

import pytest
import torch
from sinusoids import loss, make_tasks, make_weights
from torch import Tensor

from recmeta.errors import InputError
from recmeta.meta.domain_regularization import regularized_direction
from recmeta.meta.interface import Problem

PROBLEM = Problem(loss=loss)


def one(data: dict[str, Tensor], task: int) -> dict[str, Tensor]:
    return {name: value[task] for name, value in data.items()}


def slopes_of(value: Tensor, weights: dict[str, Tensor], *, keep: bool = False) -> dict[str, Tensor]:
    return dict(
        zip(weights, torch.autograd.grad(value, list(weights.values()), create_graph=keep), strict=True)
    )


def step_on(weights: dict[str, Tensor], data: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
    slopes = slopes_of(loss(weights, data), weights)
    return {name: (value - rate * slopes[name]).detach().requires_grad_() for name, value in weights.items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=tolerance, rtol=tolerance, msg=name)


def own_weights(tasks: int) -> dict[str, Tensor]:
    """Weights of each task's own, stacked and all different."""
    each = [make_weights(seed=task) for task in range(tasks)]
    return {name: torch.stack([weights[name].detach() for weights in each]) for name in each[0]}


def direction(
    weights: dict[str, Tensor], data: dict[str, Tensor], helpers: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return regularized_direction(PROBLEM, weights, data, rate=0.03, helpers=helpers, generator=draw)


def tried_on(
    weights: dict[str, Tensor], data: dict[str, Tensor], task: int, helper: int
) -> dict[str, Tensor]:
    """(start - end) / rate of one task's weights after a step on the helper and one on itself."""
    start = {name: value.requires_grad_() for name, value in one(weights, task).items()}
    end = step_on(step_on(start, one(data, helper), 0.03), one(data, task), 0.03)
    return {name: ((start[name] - end[name]) / 0.03).detach() for name in start}


def test_domain_regularization_is_a_step_on_each_helper_and_then_on_the_task_itself() -> None:
    weights, (_, data) = own_weights(4), make_tasks(4, 10, seed=1)
    found = direction(weights, data, helpers=3)  # three of three others: all of them, in whatever order
    for task in range(4):
        ends = [tried_on(weights, data, task, helper) for helper in range(4) if helper != task]
        mean = {name: torch.stack([end[name] for end in ends]).mean(0) for name in ends[0]}
        assert_same(one(found, task), mean, 1e-4)


def test_domain_regularization_draws_helpers_among_the_others_and_differently_each_time() -> None:
    weights, (_, data) = own_weights(4), make_tasks(4, 10, seed=2)
    met: list[set[int]] = [set() for _ in range(4)]
    for seed in range(20):
        found = direction(weights, data, helpers=1, seed=seed)
        for task in range(4):
            fits = [
                helper
                for helper in range(4)
                if torch.allclose(
                    found["weight1"][task], tried_on(weights, data, task, helper)["weight1"], atol=1e-4
                )
            ]
            assert len(fits) == 1
            met[task] |= set(fits)
    assert met == [{0, 1, 2, 3} - {task} for task in range(4)]


def test_the_same_generator_draws_the_same_helpers_and_more_than_there_are_means_all() -> None:
    weights, (_, data) = own_weights(3), make_tasks(3, 10, seed=3)
    assert_same(direction(weights, data, helpers=1, seed=5), direction(weights, data, helpers=1, seed=5), 0.0)
    assert_same(direction(weights, data, helpers=2), direction(weights, data, helpers=9), 1e-6)


def test_domain_regularization_of_one_task_is_its_plain_gradient() -> None:
    weights, (_, data) = own_weights(1), make_tasks(1, 10, seed=4)
    alone = {name: value.requires_grad_() for name, value in one(weights, 0).items()}
    plain = slopes_of(loss(alone, one(data, 0)), alone)
    assert_same(one(direction(weights, data), 0), plain, 1e-6)


def test_domain_regularization_refuses_what_no_helper_can_use() -> None:
    weights, (_, data) = own_weights(2), make_tasks(2, 10, seed=5)
    with pytest.raises(InputError, match=r"expected helpers from 1 .* found helpers=0"):
        direction(weights, data, helpers=0)
    bound = Problem(loss=loss, per_task=frozenset({"weight0"}))
    with pytest.raises(InputError, match=r"rows of one task: \['weight0'\]"):
        regularized_direction(bound, weights, data, rate=0.1, helpers=1, generator=torch.Generator())
