"""Implicit MAML: its gradient is that of the minimum, exactly, and it forgets how it got there."""

from __future__ import annotations

import pytest
import torch
from labelled_tasks import Case, gradients, losses_of, make_case, make_learner
from torch import Tensor

from recmeta.meta.implicit_maml import conjugate_gradient
from recmeta.meta.inner_loop import descend
from recmeta.meta.interface import Data, Options, Problem, Weights, losses_under
from recmeta.meta.registry import get_meta_learner


def bowls(tasks: int, size: int, draw: torch.Generator) -> dict[str, Tensor]:
    root = torch.randn(tasks, size, size, generator=draw, dtype=torch.float64)
    lowest = torch.randn(tasks, size, generator=draw, dtype=torch.float64)
    return {"curve": root @ root.mT / size, "lowest": lowest}


def test_on_quadratics_it_is_the_closed_form() -> None:
    draw = torch.Generator().manual_seed(0)
    support, query = bowls(4, 5, draw), bowls(4, 5, draw)
    start = torch.randn(5, generator=draw, dtype=torch.float64, requires_grad=True)
    closed_over = torch.randn(5, generator=draw, dtype=torch.float64, requires_grad=True)

    def loss(weights: Weights, data: Data) -> Tensor:
        away = weights["w"] - closed_over * data["lowest"]
        return 0.5 * away @ data["curve"] @ away

    learner = get_meta_learner(
        "implicit_maml", Options(inner_steps=400, inner_rate=0.2, proximal=0.7, conjugate_steps=8)
    )
    found = learner.meta_losses(Problem(loss=loss), {"w": start}, support, query)

    pulled = support["curve"] + 0.7 * torch.eye(5, dtype=torch.float64)
    middle = (support["curve"] @ (closed_over * support["lowest"]).unsqueeze(-1)).squeeze(-1) + 0.7 * start
    minimum = torch.linalg.solve(pulled, middle)
    expected = losses_under(Problem(loss=loss), {"w": minimum}, query)
    torch.testing.assert_close(found, expected)
    adapted = learner.adapt(Problem(loss=loss), {"w": start}, support)["w"]
    torch.testing.assert_close(adapted, minimum.detach())
    for each, right in zip(found, expected, strict=True):  # of each task, not of their mean alone
        for value in (start, closed_over):
            slopes = [torch.autograd.grad(one, value, retain_graph=True)[0] for one in (each, right)]
            torch.testing.assert_close(*slopes)


def unrolled(case: Case, steps: int, pull: float) -> Tensor:
    """MAML through every step of the same inner problem."""

    def pulled_back(weights: Weights, data: Data) -> Tensor:
        away = sum((weights[name] - case.weights[name]).square().sum() for name in weights)
        return case.loss(weights, data) + 0.5 * pull * away

    inner = Problem(loss=pulled_back)
    path = descend(inner, case.weights, case.support, steps=steps, rate=0.3, second_order=True)
    return losses_under(case.problem, path[-1], case.query)


def test_it_is_maml_unrolled_until_the_end() -> None:
    case = make_case(dtype=torch.float64)
    learner = make_learner(
        "implicit_maml", case, inner_steps=60, inner_rate=0.3, proximal=1.5, conjugate_steps=30
    )
    found, expected = losses_of(learner, case), unrolled(case, 60, 1.5)
    torch.testing.assert_close(found, expected)
    learnt = case.learnt(learner)
    slopes, right = gradients(found.mean(), learnt), gradients(expected.mean(), learnt)
    for name in learnt:
        torch.testing.assert_close(slopes[name], right[name], atol=1e-6, rtol=1e-5, msg=name)


def test_more_conjugate_steps_come_nearer() -> None:
    case = make_case(dtype=torch.float64)
    right = gradients(unrolled(case, 60, 1.5).mean(), case.weights)["body_weight"]

    def distance(steps: int) -> float:
        learner = make_learner(
            "implicit_maml", case, inner_steps=60, inner_rate=0.3, proximal=1.5, conjugate_steps=steps
        )
        slope = gradients(losses_of(learner, case).mean(), case.weights)["body_weight"]
        return (slope - right).norm().item()

    first, second, third = (distance(steps) for steps in (1, 3, 6))
    assert first > 3 * second > 9 * third


def bytes_kept(result: Tensor) -> int:
    """How many bytes the graph behind a result holds on to for its gradient."""
    waiting, seen, kept = [result.grad_fn], set(), {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_") and isinstance(value := getattr(node, name), Tensor):
                kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(kept.values())


@pytest.mark.parametrize(("name", "grows"), [("implicit_maml", False), ("maml", True)])
def test_memory_does_not_grow_with_the_inner_steps(name: str, grows: bool) -> None:
    case = make_case()

    def kept(steps: int) -> int:
        return bytes_kept(losses_of(make_learner(name, case, inner_steps=steps), case))

    assert (kept(20) > 5 * kept(2)) if grows else (kept(20) == kept(2) > 0)


def solved(matrix: Tensor, target: Tensor, steps: int) -> Tensor:
    return conjugate_gradient(lambda x: {"x": matrix @ x["x"]}, {"x": target}, steps=steps)["x"]


def test_the_conjugate_gradient_is_exact_after_as_many_steps_as_there_are_numbers_and_stays() -> None:
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix, target = torch.eye(6, dtype=torch.float64) + root @ root.T, root[0]
    for steps in (6, 7, 50):
        torch.testing.assert_close(solved(matrix, target, steps), torch.linalg.solve(matrix, target))
    nothing = torch.zeros(6, dtype=torch.float64)
    assert torch.equal(solved(matrix, nothing, 5), nothing)
    assert torch.equal(solved(torch.eye(6, dtype=torch.float64), target, 5), target)


def test_the_conjugate_gradient_makes_no_step_along_negative_curvature() -> None:
    target = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(solved(-torch.eye(3), target, 5), target)
    mixed = torch.diag(torch.tensor([2.0, 4.0, -1.0]))
    few, many = solved(mixed, target, 3), solved(mixed, target, 30)
    assert torch.equal(few, many)
    assert few.isfinite().all()
