"""The inner loop against the same steps written out, one task after the other, in double precision."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional

from recmeta.meta.inner_loop import Rates, descend
from recmeta.meta.interface import Problem

TASKS, ROWS, STEPS = 3, 7, 4
ORDERS = (True, False)


def some(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net:
    """Two layers over looked-up rows of a task's own table, with a matrix that no inner step moves."""

    def __init__(self) -> None:
        self.closed_over = some(5, 4, seed=1).requires_grad_()
        self.weights = {
            "hidden": some(4, 5, seed=2).requires_grad_(),
            "bias": some(4, seed=3).requires_grad_(),
            "head": some(4, seed=4).requires_grad_(),
            "table": some(TASKS, 6, 5, seed=5).requires_grad_(),
        }
        self.problem = Problem(loss=self.loss, per_task=frozenset({"table"}))
        self.support, self.query = (
            {
                "x": some(TASKS, ROWS, 5, seed=seed).requires_grad_(),
                "row": torch.randint(6, (TASKS, ROWS), generator=torch.Generator().manual_seed(seed)),
                "y": some(TASKS, ROWS, seed=seed + 1),
            }
            for seed in (6, 8)
        )
        self.rates = {
            "hidden": (0.1 * some(4, 5, seed=10)).requires_grad_(),
            "bias": (0.1 * some(4, seed=11)).requires_grad_(),
            "head": (0.1 * some(4, seed=12)).requires_grad_(),
            "table": torch.tensor(0.07, dtype=torch.float64, requires_grad=True),
        }

    def loss(self, weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
        inputs = data["x"] + functional.embedding(data["row"], weights["table"])
        hidden = torch.tanh(functional.linear(inputs, weights["hidden"], weights["bias"]))
        return ((hidden + inputs @ self.closed_over) @ weights["head"] - data["y"]).square().mean()

    def leaves(self, rate: Rates) -> list[Tensor]:
        rates = [] if isinstance(rate, float) else list(rate.values())
        return [*self.weights.values(), self.closed_over, self.query["x"], *rates]

    def start(self, task: int) -> dict[str, Tensor]:
        return {name: value[task] if name == "table" else value for name, value in self.weights.items()}


def written_out(net: Net, rate: Rates, *, second_order: bool) -> list[dict[str, Tensor]]:
    """The update of the docstring, word for word; in first order each gradient is a constant."""
    tasks = []
    for task in range(TASKS):
        data = {name: value[task] for name, value in net.support.items()}
        at, path = net.start(task), []
        for _ in range(STEPS):
            slopes = grad(net.loss(at, data), list(at.values()), create_graph=True)
            steps = {
                name: slope if second_order else slope.detach()
                for name, slope in zip(at, slopes, strict=True)
            }
            at = {
                name: value - (rate if isinstance(rate, float) else rate[name]) * steps[name]
                for name, value in at.items()
            }
            path.append(at)
        tasks.append(path)
    return [
        {name: torch.stack([path[step][name] for path in tasks]) for name in net.weights}
        for step in range(STEPS)
    ]


def later_loss(net: Net, path: list[dict[str, Tensor]]) -> Tensor:
    """Something that depends on every step, on query data and on what the loss closes over."""
    total = torch.zeros((), dtype=torch.float64)
    for number, weights in enumerate(path, start=1):
        for task in range(TASKS):
            data = {name: value[task] for name, value in net.query.items()}
            total = total + number * net.loss({name: value[task] for name, value in weights.items()}, data)
    return total


def rates_of(net: Net, kind: str) -> Rates:
    return 0.05 if kind == "one rate" else net.rates


@pytest.mark.parametrize("kind", ["one rate", "a rate for each number"])
@pytest.mark.parametrize("second_order", ORDERS)
def test_points_and_outer_gradients_are_those_of_the_steps_written_out(second_order: bool, kind: str) -> None:
    net = Net()
    rate = rates_of(net, kind)
    found = descend(net.problem, net.weights, net.support, steps=STEPS, rate=rate, second_order=second_order)
    expected = written_out(net, rate, second_order=second_order)
    assert len(found) == STEPS
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            torch.testing.assert_close(left[name], right[name], atol=1e-12, rtol=1e-11, msg=name)
    leaves = net.leaves(rate)
    for left, right in zip(
        grad(later_loss(net, found), leaves), grad(later_loss(net, expected), leaves), strict=True
    ):
        torch.testing.assert_close(left, right, atol=1e-11, rtol=1e-9)


def test_support_data_get_a_gradient_in_second_order_only() -> None:
    net = Net()

    def slope(second_order: bool) -> Tensor | None:
        path = descend(
            net.problem, net.weights, net.support, steps=STEPS, rate=0.05, second_order=second_order
        )
        return grad(later_loss(net, path), net.support["x"], allow_unused=True)[0]

    expected = grad(later_loss(net, written_out(net, 0.05, second_order=True)), net.support["x"])[0]
    found = slope(True)
    assert found is not None
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-9)
    assert slope(False) is None


@pytest.mark.parametrize("second_order", ORDERS)
def test_steps_are_exact_where_nothing_is_recorded(second_order: bool) -> None:
    net = Net()
    expected = written_out(net, 0.05, second_order=True)[-1]
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            found = descend(
                net.problem, net.weights, net.support, steps=STEPS, rate=0.05, second_order=second_order
            )[-1]
        for name, value in found.items():
            assert not value.requires_grad
            torch.testing.assert_close(value, expected[name], atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("second_order", ORDERS)
def test_one_rate_is_the_same_rate_for_each_number(second_order: bool) -> None:
    net = Net()
    alike = {name: torch.full_like(value, 0.05) for name, value in net.weights.items()}
    alike["table"] = torch.tensor(0.05, dtype=torch.float64)
    one, many = (
        descend(net.problem, net.weights, net.support, steps=STEPS, rate=rate, second_order=second_order)
        for rate in (0.05, alike)
    )
    leaves = list(net.weights.values())
    for left, right in zip(
        grad(later_loss(net, one), leaves), grad(later_loss(net, many), leaves), strict=True
    ):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-10)


def saved_numbers(result: Tensor) -> int:
    """Numbers that the graph behind a result keeps for the way back."""
    found, left = {}, [result.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            values = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
            found[node] = sum(value.numel() for value in values if isinstance(value, Tensor))
            left += [following for following, _ in node.next_functions]
    return sum(found.values())


def test_first_order_keeps_nothing_of_the_way_for_the_outer_loop() -> None:
    net = Net()
    first, second = (
        descend(net.problem, net.weights, net.support, steps=STEPS, rate=0.05, second_order=second_order)[-1]
        for second_order in (False, True)
    )
    assert saved_numbers(first["hidden"]) == 0
    assert saved_numbers(second["hidden"]) > 0
