"""The cosine between contexts' gradients, beside vectors whose cosine is known."""

from __future__ import annotations

import math

import pytest
import torch
from few_contexts import Model, body_gradients, make

from recmeta.meta.outer.conflict import gradient_conflict


def test_cosines_are_those_of_known_vectors() -> None:
    leaf = torch.zeros(2, requires_grad=True)
    slopes = torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 3.0], [-1.0, 0.0]])
    found = gradient_conflict(slopes @ leaf, torch.tensor([1, 4, 2, 7]), [leaf])
    half = math.sqrt(0.5)
    expected = {(1, 2): half, (1, 4): 0.0, (1, 7): -1.0, (2, 4): half, (2, 7): -half, (4, 7): 0.0}
    assert found == pytest.approx(expected)
    assert all(a < b for a, b in found)


def test_tasks_of_one_context_are_averaged() -> None:
    leaf = torch.zeros(2, requires_grad=True)
    slopes = torch.tensor([[4.0, 0.0], [0.0, 1.0], [0.0, 4.0]])
    assert gradient_conflict(slopes @ leaf, torch.tensor([3, 5, 3]), [leaf]) == pytest.approx(
        {(3, 5): math.sqrt(0.5)}
    )


def test_a_context_without_a_gradient_has_no_cosine() -> None:
    leaf = torch.zeros(2, requires_grad=True)
    losses = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]) @ leaf
    assert gradient_conflict(losses, torch.tensor([1, 2, 3]), [leaf]) == {(1, 3): 1.0}
    assert gradient_conflict(losses[:2], torch.tensor([1, 2]), [leaf]) == {}
    assert gradient_conflict(math.nan * losses, torch.tensor([1, 2, 3]), [leaf]) == {}


def test_a_look_leaves_no_trace_and_the_graph_stays() -> None:
    groups, losses_seen = torch.tensor([1, 2, 2, 5]), []
    for looks in (False, True):
        model = Model(torch.float64)
        losses = model.losses(groups)
        if looks:
            found = gradient_conflict(losses, groups, model.shared)
            assert all(leaf.grad is None for leaf in model.leaves)
        make("upgrad").backward(losses, groups, model.shared, [model.table], model.penalty())
        losses_seen.append(model.gradients())
    assert all(torch.equal(left, right) for left, right in zip(*losses_seen, strict=True))
    one, five = body_gradients(model, list(model.losses(torch.tensor([1, 5]))))
    assert found[1, 5] == pytest.approx(float(one @ five / one.norm() / five.norm()))
