"""The learned optimizer: one rule for all numbers, which learns to descend."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from sinusoids import loss, make_tasks, make_weights
from torch import Tensor, nn

from recmeta.meta.interface import Options, Problem, losses_under
from recmeta.meta.learned_optimizer import HIDDEN, LearnedOptimizer, preprocess

SINUSOIDS = Problem(loss=loss)


def squared(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
    """A random quadratic, ||W x - y||^2."""
    return (data["w"] @ weights["x"] - data["y"]).square().sum()


QUADRATICS = Problem(loss=squared)


def make_quadratics(count: int, draw: torch.Generator) -> dict[str, Tensor]:
    return {
        "w": torch.randn(count, 5, 5, generator=draw),
        "y": torch.randn(count, 5, generator=draw),
    }


def moving(options: Options | None = None, seed: int = 0) -> LearnedOptimizer:
    """A learner whose output is not the zero of a new one."""
    learner = LearnedOptimizer(options)
    with torch.no_grad():
        learner.readout.normal_(generator=torch.Generator().manual_seed(seed))
    return learner


def gradients(value: Tensor, weights: Mapping[str, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(weights.values())))


def test_a_slope_is_read_as_the_papers_two_numbers() -> None:
    slopes = torch.tensor([math.exp(-5), -1.0, math.exp(10), 0.0, 0.25 * math.exp(-10), -0.5 * math.exp(-10)])
    expected = [[-0.5, 1.0], [0.0, -1.0], [1.0, 1.0], [-1.0, 0.0], [-1.0, 0.25], [-1.0, -0.5]]
    torch.testing.assert_close(preprocess(slopes), torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_what_is_remembered_is_what_torchs_lstm_remembers() -> None:
    learner, slopes = moving(Options(inner_rate=0.1)), torch.randn(4, 2, 3)
    reference = nn.LSTM(2, HIDDEN, num_layers=2)
    with torch.no_grad():
        for number, layer in enumerate((learner.first, learner.second)):
            for name, ours in (
                ("weight_ih", layer.read),
                ("weight_hh", layer.recur),
                ("bias_ih", layer.bias),
            ):
                enter, keep, leave, candidate = ours.chunk(4, -1)
                theirs = torch.cat([enter, keep, candidate, leave], -1)  # torch has another order of gates
                getattr(reference, f"{name}_l{number}").copy_(theirs.mT if theirs.dim() == 2 else theirs)
            getattr(reference, f"bias_hh_l{number}").zero_()
        remembered, _ = reference(preprocess(slopes).flatten(1, 2))
        state = None
        for step in range(4):
            moves, state = learner.moves(slopes[step], state)
            expected = 0.1 * (remembered[step] @ learner.readout).reshape(2, 3)
            torch.testing.assert_close(moves, expected, atol=1e-6, rtol=1e-5)


def test_all_numbers_are_treated_alike() -> None:
    learner, slopes = moving(), torch.randn(3, 2, 12)
    order = torch.randperm(12)
    plain = turned = None
    for step in range(3):
        moves, plain = learner.moves(slopes[step], plain)
        others, turned = learner.moves(slopes[step][:, order], turned)
        torch.testing.assert_close(others, moves[:, order])
    assert not torch.allclose(learner.moves(slopes[2])[0], learner.moves(slopes[2], plain)[0], atol=1e-3)


def test_a_number_moves_the_same_in_whichever_weight_it_stands() -> None:
    (support, _), weights = make_tasks(3, 10, seed=1), make_weights()
    plain = moving().adapt(SINUSOIDS, weights, support)
    split = {"first": weights["weight1"][:7], "rest": weights["weight1"][7:]}
    others = {name: value for name, value in weights.items() if name != "weight1"}
    joined = Problem(
        loss=lambda at, data: loss({**at, "weight1": torch.cat([at["first"], at["rest"]])}, data)
    )
    moved = moving().adapt(joined, split | others, support)
    torch.testing.assert_close(torch.cat([moved["first"], moved["rest"]], 1), plain["weight1"])
    torch.testing.assert_close(moved["bias0"], plain["bias0"])


def test_a_new_one_does_not_move_and_learns_from_its_first_step() -> None:
    weights, (support, query) = make_weights(), make_tasks(3, 10, seed=2)
    learner = LearnedOptimizer()
    for name, value in learner.adapt(SINUSOIDS, weights, support).items():
        torch.testing.assert_close(value, weights[name].expand_as(value), atol=0.0, rtol=0.0)
    losses = learner.meta_losses(SINUSOIDS, weights, support, query)
    losses.mean().backward()
    assert learner.readout.grad is not None
    with torch.no_grad():
        learner.readout -= 1e-3 * learner.readout.grad / learner.readout.grad.norm()
        assert learner.meta_losses(SINUSOIDS, weights, support, query).mean() < losses.mean()


@pytest.mark.parametrize("shares", [(), (0.0, 1.0, 3.0)])
def test_the_meta_loss_is_the_mean_of_losses_along_the_way(shares: tuple[float, ...]) -> None:
    weights, (support, query) = make_weights(), make_tasks(2, 10, seed=3)
    learner = moving(Options(inner_steps=3, inner_rate=0.02, step_weights=shares))
    found = learner.meta_losses(SINUSOIDS, weights, support, query)
    state, expected = None, torch.zeros(2)
    at = [dict(weights), dict(weights)]
    for share in shares or (1.0, 1.0, 1.0):
        each = []
        for task in range(2):
            rows = {name: value[task] for name, value in support.items()}
            slopes = gradients(loss(at[task], rows), at[task])
            each.append(torch.cat([slope.flatten() for slope in slopes]))
        moves, state = learner.moves(torch.stack(each), state)
        for task in range(2):
            start = 0
            for name, value in at[task].items():
                piece = moves[task, start : start + value.numel()]
                at[task][name], start = value + piece.reshape(value.shape), start + value.numel()
            rows = {name: value[task] for name, value in query.items()}
            expected[task] += share * loss(at[task], rows).detach() / sum(shares or (1.0, 1.0, 1.0))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_second_order_is_first_order_where_slopes_are_constant_and_not_elsewhere() -> None:
    def flat(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
        return (weights["w"] * data["x"]).sum(-1).mean()

    def both(
        problem: Problem, weights: dict[str, Tensor], tasks: list[dict[str, Tensor]]
    ) -> list[list[Tensor]]:
        found = []
        for second_order in (True, False):
            learner = moving(Options(inner_rate=0.02, second_order=second_order))
            learnt = weights | dict(learner.named_parameters())
            found.append(gradients(learner.meta_losses(problem, weights, *tasks).mean(), learnt))
        return found

    straight = {"w": torch.randn(3, requires_grad=True)}
    second, first = both(Problem(loss=flat), straight, [{"x": torch.randn(4, 6, 3)} for _ in range(2)])
    torch.testing.assert_close(second, first)
    second, first = both(SINUSOIDS, make_weights(), list(make_tasks(4, 6, seed=4)))
    for exact, approximate in zip(second, first, strict=True):
        assert (exact - approximate).norm() > 1e-4 * exact.norm()


def test_the_gradient_by_start_and_rule_equals_finite_differences() -> None:
    draw = torch.Generator().manual_seed(5)
    data = {name: value.double() for name, value in make_quadratics(2, draw).items()}
    learner = moving(Options(inner_steps=2)).double()
    start = torch.randn(5, generator=draw, dtype=torch.float64, requires_grad=True)

    def objective(x: Tensor, readout: Tensor, recur: Tensor) -> Tensor:
        given = {"readout": readout, "first.recur": recur}
        return torch.func.functional_call(
            _Losses(learner), {f"learner.{k}": v for k, v in given.items()}, (x, data)
        )

    assert torch.autograd.gradcheck(objective, (start, learner.readout, learner.first.recur), fast_mode=True)


class _Losses(nn.Module):
    """The mean meta-loss as a module, for `functional_call`."""

    def __init__(self, learner: LearnedOptimizer) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor, data: dict[str, Tensor]) -> Tensor:
        return self.learner.meta_losses(QUADRATICS, {"x": x}, data, data).mean()


def test_what_was_learnt_is_used_for_longer_and_a_walk_goes_on_where_it_stopped() -> None:
    weights, (support, _) = make_weights(), make_tasks(3, 10, seed=6)
    longer = LearnedOptimizer(Options(inner_steps=5, inner_rate=0.02))
    longer.load_state_dict(moving(Options(inner_steps=2, inner_rate=0.02)).state_dict())
    whole = longer.adapt(SINUSOIDS, weights, support)
    start = {name: value.expand(3, *value.shape) for name, value in weights.items()}
    path, state = longer.walk(SINUSOIDS, start, support, steps=2)
    path, _ = longer.walk(SINUSOIDS, path[-1], support, steps=3, state=state)
    for name, value in whole.items():
        torch.testing.assert_close(path[-1][name], value)


def test_the_random_numbers_of_a_new_one_are_always_the_same_and_can_be_drawn_again() -> None:
    torch.manual_seed(1)
    one = LearnedOptimizer()
    torch.manual_seed(2)
    other = LearnedOptimizer()
    assert torch.equal(one.first.read, other.first.read)
    assert not torch.equal(one.first.recur, one.second.recur)
    other.draw(torch.Generator().manual_seed(7))
    assert not torch.equal(one.first.read, other.first.read)


def test_a_trained_one_beats_sgd_on_functions_it_has_never_seen() -> None:
    steps, draw = 10, torch.Generator().manual_seed(8)
    learner = LearnedOptimizer(Options(inner_steps=steps, second_order=False))
    start = {"x": torch.zeros(5)}
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    for _ in range(200):
        data = make_quadratics(32, draw)
        optimizer.zero_grad()
        learner.meta_losses(QUADRATICS, start, data, data).mean().backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
    unseen = make_quadratics(1000, draw)
    with torch.no_grad():
        learnt = losses_under(QUADRATICS, learner.adapt(QUADRATICS, start, unseen), unseen).mean()

    def by_sgd(rate: float) -> Tensor:
        x = torch.zeros(1000, 5, 1)
        for _ in range(steps):
            x = x - rate * 2 * unseen["w"].mT @ (unseen["w"] @ x - unseen["y"][..., None])
        return (unseen["w"] @ x - unseen["y"][..., None]).square().sum((1, 2)).mean()

    best = min(by_sgd(1.3**power) for power in range(-24, -4))  # each rate judged on the very functions
    assert learnt < 0.8 * best
