"""Properties that every meta-learner must have, on tasks that are no recommendation."""

from __future__ import annotations

import copy

import pytest
import torch
from sinusoids import loss, make_tasks, make_weights
from torch import Tensor

from recmeta.errors import InputError
from recmeta.meta.inner_loop import descend, descend_first_order, mean_over_tasks
from recmeta.meta.interface import MetaLearner
from recmeta.meta.registry import META_LEARNERS, get_meta_learner

NAMES = sorted(META_LEARNERS)


def learner(name: str, steps: int = 3, rate: float = 0.05) -> MetaLearner:
    return get_meta_learner(name, inner_steps=steps, inner_rate=rate)


def gradients(value: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True))


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_zero_inner_steps_are_joint_training(name: str) -> None:
    weights, (support, query) = make_weights(), make_tasks(5, 10, seed=1)
    found = learner(name, steps=0).meta_loss(loss, weights, support, query)
    expected = learner("joint").meta_loss(loss, weights, support, query)
    assert abs(found.item() - expected.item()) < 1e-6
    assert_same(gradients(found, weights), gradients(expected, weights), 1e-6)
    plain = sum(loss(weights, {part: values[task] for part, values in query.items()}) for task in range(5))
    assert abs(plain.item() / 5 - expected.item()) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_many_tasks_at_once_are_one_task_after_the_other(name: str) -> None:
    weights, (support, query) = make_weights(), make_tasks(4, 10, seed=2)
    together = learner(name).adapt(loss, weights, support)
    losses = []
    for task in range(4):
        fast: dict[str, Tensor] = dict(weights)
        for _ in range(learner(name).inner_steps):
            data = {part: values[task] for part, values in support.items()}
            slopes = gradients(loss(fast, data), fast)
            fast = {part: fast[part] - 0.05 * slopes[part] for part in fast}
        assert_same({part: values[task] for part, values in together.items()}, fast, 1e-5)
        losses.append(loss(fast, {part: values[task] for part, values in query.items()}))
    found = learner(name).meta_loss(loss, weights, support, query)
    torch.testing.assert_close(found, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_tasks_and_of_rows_does_not_matter(name: str) -> None:
    weights, (support, query) = make_weights(), make_tasks(4, 10, seed=3)
    before = gradients(learner(name).meta_loss(loss, weights, support, query), weights)
    turned = [{part: values.flip(0).flip(1) for part, values in data.items()} for data in (support, query)]
    assert_same(gradients(learner(name).meta_loss(loss, weights, *turned), weights), before, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_as_they_were(name: str) -> None:
    weights, data = make_weights(), make_tasks(3, 5, seed=4)
    before = copy.deepcopy((weights, data))
    learner(name).meta_loss(loss, weights, *data).backward()
    assert_same(weights, before[0], 0.0)
    for part, earlier in zip(data, before[1], strict=True):
        assert_same(part, earlier, 0.0)


def test_first_order_maml_is_maml_whose_inner_gradients_are_constants() -> None:
    weights, (support, query) = make_weights(), make_tasks(5, 10, seed=5)
    found = gradients(learner("first_order_maml").meta_loss(loss, weights, support, query), weights)
    fast: dict[str, Tensor] = {name: value.expand(5, *value.shape) for name, value in weights.items()}
    for _ in range(3):  # MAML, written out, with each gradient detached
        slopes = torch.autograd.grad(mean_over_tasks(loss, fast, support) * 5, list(fast.values()))
        fast = {
            name: value - 0.05 * slope.detach()
            for (name, value), slope in zip(fast.items(), slopes, strict=True)
        }
    assert_same(found, gradients(mean_over_tasks(loss, fast, query), weights), 1e-5)


def test_first_order_is_second_order_where_curvature_is_zero_and_not_elsewhere() -> None:
    def flat(weights: dict[str, Tensor], data: dict[str, Tensor]) -> Tensor:
        return (weights["w"] * data["x"]).sum(-1).mean()

    weights = {"w": torch.randn(3, requires_grad=True)}
    support, query = {"x": torch.randn(4, 6, 3)}, {"x": torch.randn(4, 6, 3)}

    def outer(
        program: object, loss_of_one: object, start: dict[str, Tensor], *data: dict[str, Tensor]
    ) -> Tensor:
        fast = program(loss_of_one, start, data[0], steps=2, rate=0.1)
        return mean_over_tasks(loss_of_one, fast, data[1])

    both = [
        gradients(outer(program, flat, weights, support, query), weights)
        for program in (descend, descend_first_order)
    ]
    assert_same(*both, 1e-6)
    curved, tasks = make_weights(), make_tasks(4, 6, seed=6)
    first, second = (
        gradients(outer(program, loss, curved, *tasks), curved)["weight1"]
        for program in (descend, descend_first_order)
    )
    assert not torch.allclose(first, second, atol=1e-4)


def test_first_order_reaches_what_the_loss_closes_over() -> None:
    slope = torch.tensor(2.0, requires_grad=True)

    def closing(weights: dict[str, Tensor], data: dict[str, Tensor]) -> Tensor:
        return (slope * data["x"] + weights["b"] - data["y"]).square().mean()

    weights = {"b": torch.zeros(1)}
    support, query = make_tasks(3, 6, seed=7)
    learner("first_order_maml").meta_loss(closing, weights, support, query).backward()
    fast = learner("first_order_maml").adapt(closing, weights, support)
    assert not fast["b"].requires_grad  # the support data's graph is not kept
    assert slope.grad is not None
    expected = torch.autograd.grad(mean_over_tasks(closing, fast, query), slope)[0]
    torch.testing.assert_close(slope.grad, expected)


def train(name: str, steps: int) -> dict[str, Tensor]:
    weights = make_weights(seed=8)
    optimizer = torch.optim.Adam(weights.values(), lr=5e-3)
    for step in range(steps):
        optimizer.zero_grad()
        learner(name, steps=3, rate=0.05).meta_loss(loss, weights, *make_tasks(16, 10, seed=step)).backward()
        optimizer.step()
    return weights


def test_meta_training_learns_to_adapt_to_a_new_sinusoid() -> None:
    support, query = make_tasks(50, 10, seed=10_000)

    def after_adaptation(weights: dict[str, Tensor]) -> float:
        fast = descend(loss, weights, support, steps=10, rate=0.05)
        return mean_over_tasks(loss, fast, query).item()

    untrained, joint = after_adaptation(make_weights(seed=8)), after_adaptation(train("joint", 300))
    meta = after_adaptation(train("first_order_maml", 300))
    assert meta < 0.8 * joint
    assert meta < 0.5 * untrained


def test_an_unknown_name_and_impossible_numbers_are_refused() -> None:
    with pytest.raises(
        InputError, match="unknown meta-learner 'reptiles'; there are first_order_maml, joint"
    ):
        get_meta_learner("reptiles", inner_steps=1, inner_rate=0.1)
    for steps, rate in ((-1, 0.1), (1, 0.0), (1, float("nan"))):
        with pytest.raises(InputError, match="expected inner_steps from 0"):
            get_meta_learner("joint", inner_steps=steps, inner_rate=rate)
