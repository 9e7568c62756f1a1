"""Learners that set tasks against one another: each is its paper's algorithm, written out as a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sinusoids import loss, make_tasks, make_weights
from torch import Tensor

from recmeta.errors import InputError
from recmeta.meta.domain_regularization import regularized_direction
from recmeta.meta.interface import Options, Problem
from recmeta.meta.registry import get_meta_learner

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


def outer_gradient(
    name: str,
    weights: dict[str, Tensor],
    data: dict[str, Tensor],
    seed: int | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    learner = get_meta_learner(name, Options(inner_rate=0.03, **options))
    return slopes_of(learner.meta_losses(PROBLEM, weights, {}, data, generator=draw).mean(), weights)


def walk(weights: dict[str, Tensor], data: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """Where SGD steps on the tasks in this order lead."""
    for task in order:
        weights = step_on(weights, one(data, task), 0.03)
    return weights


def test_negotiation_of_one_task_in_one_pass_is_an_sgd_step() -> None:
    weights, (_, data) = make_weights(), make_tasks(1, 10, seed=6)
    plain = slopes_of(loss(weights, one(data, 0)), weights)
    assert_same(outer_gradient("domain_negotiation", weights, data, inner_steps=1), plain, 1e-6)


def test_negotiation_points_to_where_the_walk_ends() -> None:
    weights, (_, data) = make_weights(), make_tasks(3, 10, seed=7)
    found = outer_gradient("domain_negotiation", weights, data, inner_steps=2)
    end = walk(weights, data, [0, 1, 2, 0, 1, 2])
    assert_same(found, {name: (weights[name] - end[name]) / 0.03 / 3 for name in weights}, 1e-4)
    joint = outer_gradient("joint", weights, data)
    assert not torch.allclose(found["weight1"], 2 * joint["weight1"], atol=1e-3)


def test_negotiation_takes_another_order_in_every_pass_and_keeps_each_loss_with_its_task() -> None:
    weights, (_, data) = make_weights(), make_tasks(3, 10, seed=8)
    draw = torch.Generator().manual_seed(4)
    orders = [torch.randperm(3, generator=draw).tolist() for _ in range(2)]
    assert orders[0] != orders[1]
    expected = torch.zeros(3)
    at = weights
    for task in orders[0] + orders[1]:
        expected[task] += loss(at, one(data, task)).detach()
        at = walk(at, data, [task])
    learner = get_meta_learner("domain_negotiation", Options(inner_steps=2, inner_rate=0.03))
    found = learner.meta_losses(PROBLEM, weights, {}, data, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_negotiation_moves_the_weights_of_a_task_on_its_own_rows_alone() -> None:
    (_, data), weights = make_tasks(3, 10, seed=9), make_weights()
    weights["bias0"] = weights["bias0"].detach().expand(3, -1).clone().requires_grad_()
    problem = Problem(loss=loss, per_task=frozenset({"bias0"}))
    learner = get_meta_learner("domain_negotiation", Options(inner_steps=2, inner_rate=0.03))
    found = slopes_of(learner.meta_losses(problem, weights, {}, data).sum(), weights)
    at, own = {k: v for k, v in weights.items() if k != "bias0"}, list(weights["bias0"].detach())
    for task in [0, 1, 2, 0, 1, 2]:
        end = step_on(at | {"bias0": own[task].requires_grad_()}, one(data, task), 0.03)
        own[task] = end.pop("bias0").detach()
        at = end
    ends = at | {"bias0": torch.stack(own)}
    assert_same(found, {name: (weights[name] - ends[name]) / 0.03 for name in weights}, 1e-4)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("tasks", [4, 5])
def test_mldg_is_its_formula(second_order: bool, tasks: int) -> None:
    weights, (_, data) = make_weights(), make_tasks(tasks, 10, seed=10)
    order = torch.randperm(tasks, generator=torch.Generator().manual_seed(3)).tolist()
    cut = tasks - tasks // 2

    def mean(at: dict[str, Tensor], chosen: list[int]) -> Tensor:
        return torch.stack([loss(at, one(data, task)) for task in chosen]).mean()

    train = mean(weights, order[:cut])
    stepped = weights
    for _ in range(2):
        slopes = slopes_of(mean(stepped, order[:cut]), stepped, keep=second_order)
        stepped = {name: value - 0.03 * slopes[name] for name, value in stepped.items()}
    ratio = (tasks - cut) / cut
    objective = (train + ratio * mean(stepped, order[cut:])) / (1 + ratio)
    found = outer_gradient("mldg", weights, data, seed=3, inner_steps=2, second_order=second_order)
    assert_same(found, slopes_of(objective, weights), 1e-4)


def test_mldg_without_a_generator_holds_out_the_last_half_and_keeps_each_loss_with_its_task() -> None:
    weights, (_, data) = make_weights(), make_tasks(5, 10, seed=11)
    joint = get_meta_learner("joint").meta_losses(PROBLEM, weights, {}, data)
    mldg = get_meta_learner("mldg", Options(inner_steps=1, inner_rate=0.03))
    fixed = mldg.meta_losses(PROBLEM, weights, {}, data)
    assert (fixed == joint).tolist() == [True, True, True, False, False]
    drawn = mldg.meta_losses(PROBLEM, weights, {}, data, generator=torch.Generator().manual_seed(1))
    held_out = torch.randperm(5, generator=torch.Generator().manual_seed(1))[3:]
    assert torch.isclose(drawn, joint).logical_not().nonzero().flatten().tolist() == sorted(held_out.tolist())


def test_mldg_of_one_task_is_joint_training() -> None:
    weights, (_, data) = make_weights(), make_tasks(1, 10, seed=12)
    assert_same(outer_gradient("mldg", weights, data), outer_gradient("joint", weights, data), 1e-6)


def test_the_gradient_of_mldg_equals_finite_differences() -> None:
    (_, data), weights = make_tasks(4, 5, seed=13), make_weights(width=3)
    rows = {name: value.double() for name, value in data.items()}
    mldg = get_meta_learner("mldg", Options(inner_steps=2, inner_rate=0.03))

    def objective(*values: Tensor) -> Tensor:
        return mldg.meta_losses(PROBLEM, dict(zip(weights, values, strict=True)), {}, rows).mean()

    inputs = tuple(value.detach().double().requires_grad_() for value in weights.values())
    assert torch.autograd.gradcheck(objective, inputs)


def test_mldg_moves_no_weights_of_a_task_on_another_tasks_rows() -> None:
    (_, data), weights = make_tasks(4, 10, seed=14), make_weights()
    shared = outer_gradient("mldg", weights, data, fast=("weight", "bias1", "bias2"))
    weights["bias0"] = weights["bias0"].detach().expand(4, -1).clone().requires_grad_()
    problem = Problem(loss=loss, per_task=frozenset({"bias0"}))
    mldg = get_meta_learner("mldg", Options(inner_rate=0.03))
    own = slopes_of(mldg.meta_losses(problem, weights, {}, data).mean(), weights)
    assert_same(own | {"bias0": own["bias0"].sum(0)}, shared)


@pytest.mark.parametrize("name", ["mldg", "domain_negotiation"])
def test_a_drawn_order_is_the_order_given_of_tasks_that_stand_so(name: str) -> None:
    weights, (_, data) = make_weights(), make_tasks(4, 10, seed=15)
    learner = get_meta_learner(name, Options(inner_steps=1, inner_rate=0.03))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(6))
    drawn = learner.meta_losses(PROBLEM, weights, {}, data, generator=torch.Generator().manual_seed(6))
    turned = {part: value[order] for part, value in data.items()}
    given = learner.meta_losses(PROBLEM, weights, {}, turned)
    torch.testing.assert_close(drawn[order], given, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(drawn, learner.meta_losses(PROBLEM, weights, {}, data), atol=1e-4)
