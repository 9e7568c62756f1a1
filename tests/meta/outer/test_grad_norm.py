"""GradNorm beside its formula, written out by automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from few_contexts import Model, make

from recmeta.errors import InputError
from recmeta.meta.outer.grad_norm import GradNorm

ALPHA = 1.5


def test_weights_follow_the_gradient_of_their_own_loss() -> None:
    model, outer, groups = Model(torch.float64), GradNorm(3, alpha=ALPHA), torch.tensor([1, 2, 3])
    adam = torch.optim.Adam([*outer.parameters(), *model.leaves], lr=0.02)
    weights, first = torch.ones(3, dtype=torch.float64), model.losses(groups).detach()
    moved = False
    for _ in range(12):
        weights = (3 * weights / weights.sum()).requires_grad_()
        losses = model.losses(groups)
        lengths = []
        for weight, value in zip(weights, losses, strict=True):
            slopes = torch.autograd.grad(weight * value, model.shared, create_graph=True)
            lengths.append(torch.cat([slope.flatten() for slope in slopes]).norm())
        pull = torch.stack(lengths)
        ratio = losses.detach() / first
        target = (pull.mean() * (ratio / ratio.mean()) ** ALPHA).detach()
        (expected,) = torch.autograd.grad((pull - target).abs().sum(), [weights])
        body = torch.autograd.grad((weights.detach() * losses).mean(), model.body, retain_graph=True)[0]

        adam.zero_grad()
        outer.backward(losses, groups, model.shared, [model.table])
        assert outer.weights.grad is not None
        torch.testing.assert_close(outer.weights.grad.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.body.grad, body, atol=1e-6, rtol=1e-6)
        assert model.table.grad is not None
        model.table.grad = model.table.grad.to_dense()
        adam.step()
        moved = moved or bool((outer.weights - 1).abs().max() > 0.05)
        weights = outer.weights.detach().double()
    assert moved


def test_a_weight_does_not_fall_below_zero() -> None:
    model, outer, groups = Model(), make("grad_norm"), torch.tensor([1, 2])
    assert isinstance(outer, GradNorm)
    with torch.no_grad():
        outer.weights[0] = -3.0
    outer.backward(model.losses(groups), groups, model.shared, [model.table])
    assert outer.weights[0] == 0
    torch.testing.assert_close(outer.weights.sum(), torch.tensor(5.0))
    assert outer.weights.grad is not None
    assert outer.weights.grad[0] < 0  # and the next step lifts it


def test_a_first_loss_is_that_of_the_first_time_that_a_context_comes() -> None:
    model, outer = Model(torch.float64), make("grad_norm")
    for seed, groups in ((0, torch.tensor([1, 2])), (1, torch.tensor([2, 3]))):
        outer.backward(model.losses(groups, seed), groups, model.shared, [model.table])
    first = outer.state_dict()["first"]
    torch.testing.assert_close(first[:2], model.losses(torch.tensor([1, 2]), 0).detach())
    torch.testing.assert_close(first[2:3], model.losses(torch.tensor([3]), 1).detach())
    assert first[3:].isnan().all()


def test_a_negative_exponent_is_refused() -> None:
    with pytest.raises(InputError, match="alpha from 0"):
        GradNorm(2, alpha=-1.0)
