"""Properties that every meta-learner must have, on tasks that are no recommendation.

Whatever joins the registry is tested here. The sets below name who is excused from a property, and why.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import sinusoids
import torch
from labelled_tasks import HIDDEN, IDS, Case, gradients, losses_of, make_case, make_learner, stirred
from torch import Tensor

from recmeta.errors import InputError
from recmeta.meta.inner_loop import descend
from recmeta.meta.interface import Data, MetaLearner, Options, Problem, Weights, losses_under
from recmeta.meta.registry import META_LEARNERS, get_meta_learner

NAMES = sorted(META_LEARNERS)

TASKS_MEET = {
    "mldg",  # a step on some tasks is judged by the others
    "domain_negotiation",  # one walk leads through all tasks, in order
}
ROWS_IN_ORDER = {
    "reptile",  # each step of the walk reads its own part of the rows
}
WALKERS = {  # the outer gradient is that of points along a path, each taken as moving one to one with θ
    "first_order_maml",
    "reptile",
    "domain_negotiation",
}
SOLVES_TO_AN_ACCURACY = {"implicit_maml"}  # its own tests say how the gradient depends on the solver
NOT_THE_LOSS_AFTER_ADAPTATION = {
    "reptile",  # the sum of losses along the walk
    "domain_negotiation",  # likewise
    "mldg",  # prepares for tasks that are not adapted to
    "learned_optimizer",  # the sum of losses along the trajectory
}
MOVES_BY_ITSELF = {
    "learned_optimizer",  # its rule has a bias and a memory, as in the paper: a slope of zero is read too
}
SOLVED_HEADS = {"ridge_head", "logistic_head", "prototype_head"}  # always the head, whatever is fast
NO_INNER_LOOP = {"joint"} | SOLVED_HEADS  # `fast` is not read
PLAIN_DESCENT = ("maml", "first_order_maml", "anil", "meta_sgd", "reptile")
STEP_WEIGHTS = ("maml", "first_order_maml", "anil", "meta_sgd")
CHOOSES_ITS_ORDER = ("meta_sgd", "mldg", "learned_optimizer")  # `second_order` is read

every_learner = pytest.mark.parametrize("name", NAMES)


def but(*excused: set[str]) -> pytest.MarkDecorator:
    """All learners but those excused."""
    return pytest.mark.parametrize("name", [name for name in NAMES if name not in set().union(*excused)])


def known(*names: str) -> pytest.MarkDecorator:
    """Those of the named learners that are in the registry."""
    return pytest.mark.parametrize("name", [name for name in names if name in META_LEARNERS])


def one(data: Data, task: int) -> dict[str, Tensor]:
    return {name: value[task] for name, value in data.items()}


def alone(case: Case, task: int) -> Case:
    """The case with one of its tasks only."""
    return replace(
        case,
        support={name: value[task : task + 1] for name, value in case.support.items()},
        query={name: value[task : task + 1] for name, value in case.query.items()},
    )


def assert_same(left: Weights, right: Weights, tolerance: float = 1e-5) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=tolerance, rtol=tolerance, msg=name)


# --- what they compute -------------------------------------------------------------------------------


@every_learner
def test_zero_inner_steps_are_joint_training(name: str) -> None:
    case = make_case(tasks=5)
    learner = make_learner(name, case, inner_steps=0)
    found = losses_of(learner, case, seed=3)
    plain = torch.stack([case.loss(case.weights, one(case.query, task)) for task in range(5)])
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=0)
    learnt = {**case.weights, "table": case.table}
    assert_same(gradients(found.mean(), learnt), gradients(plain.mean(), learnt), 1e-6)
    adapted = learner.adapt(case.problem, case.weights, case.support)
    assert_same(adapted, {part: value.expand(5, *value.shape) for part, value in case.weights.items()}, 0.0)


@but(WALKERS, SOLVES_TO_AN_ACCURACY)
def test_the_meta_gradient_equals_finite_differences(name: str) -> None:
    case = make_case(dtype=torch.float64)
    learner = stirred(make_learner(name, case, second_order=True))
    learnt = case.learnt(learner)
    slopes = gradients(losses_of(learner, case).mean(), learnt)
    draw = torch.Generator().manual_seed(7)
    for part, value in learnt.items():
        direction = torch.randn(value.shape, generator=draw, dtype=value.dtype)
        at: dict[int, float] = {}
        for sign in (-1, 1):
            with torch.no_grad():
                value.add_(direction, alpha=sign * 1e-5)
                at[sign] = losses_of(learner, case).mean().item()
                value.add_(direction, alpha=-sign * 1e-5)
        expected = torch.tensor((at[1] - at[-1]) / 2e-5, dtype=torch.float64)
        torch.testing.assert_close((slopes[part] * direction).sum(), expected, atol=1e-8, rtol=1e-6, msg=part)


@but(TASKS_MEET)
def test_many_tasks_at_once_are_one_task_after_the_other(name: str) -> None:
    case = make_case()
    learner = stirred(make_learner(name, case))
    together = losses_of(learner, case)
    apart = torch.cat([losses_of(learner, alone(case, task)) for task in range(4)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    learnt = case.learnt(learner)
    assert_same(gradients(together.mean(), learnt), gradients(apart.mean(), learnt))


@every_learner
def test_many_tasks_adapt_at_once_as_they_do_one_after_the_other(name: str) -> None:
    case = make_case()
    learner = stirred(make_learner(name, case))
    together = learner.adapt(case.problem, case.weights, case.support)
    for task in range(4):
        by_itself = learner.adapt(case.problem, case.weights, alone(case, task).support)
        assert_same(one(together, task), one(by_itself, 0))


@but(NOT_THE_LOSS_AFTER_ADAPTATION)
def test_a_meta_loss_reads_as_the_query_loss_after_adaptation(name: str) -> None:
    case = make_case()
    learner = make_learner(name, case)
    adapted = learner.adapt(case.problem, case.weights, case.support)
    after = losses_under(case.problem, adapted, case.query)
    torch.testing.assert_close(losses_of(learner, case), after, atol=1e-5, rtol=1e-5)


@known(*PLAIN_DESCENT)
def test_descent_is_gradient_steps_written_out(name: str) -> None:
    case = make_case()
    learner = make_learner(name, case)
    moving = ("head_weight", "head_bias") if name == "anil" else tuple(case.weights)
    together = learner.adapt(case.problem, case.weights, case.support)
    for task in range(4):
        fast = dict(case.weights)
        for _ in range(3):
            slopes = gradients(case.loss(fast, one(case.support, task)), fast)
            fast = {part: at - 0.2 * slopes[part] * (part in moving) for part, at in fast.items()}
        assert_same(one(together, task), fast)


def linear_problem(case: Case) -> Problem:
    """A loss without curvature in the weights."""

    def flat(weights: Weights, data: Data) -> Tensor:
        looked_up = case.table[data["id"]] * data["x"]
        moved = (looked_up @ weights["body_weight"].T + weights["body_bias"]).sum(-1)
        head = looked_up.mean(-1) * weights["head_weight"].sum() + weights["head_bias"]
        return ((moved + head) * (data["label"] - 0.5) * data["weight"]).mean()

    return Problem(loss=flat, embed=case.problem.embed)


@every_learner
def test_first_order_is_second_order_where_the_loss_is_linear(name: str) -> None:
    case = make_case()
    problem = linear_problem(case)
    both = []
    for second_order in (True, False):
        learner = stirred(make_learner(name, case, second_order=second_order))
        losses = learner.meta_losses(problem, case.weights, case.support, case.query)
        both.append(gradients(losses.mean(), {**case.weights, **dict(learner.named_parameters())}))
    assert_same(*both, 1e-6)


def test_first_order_maml_is_maml_where_the_loss_is_linear() -> None:
    case = make_case()
    found = [
        gradients(
            make_learner(name, case)
            .meta_losses(linear_problem(case), case.weights, case.support, case.query)
            .mean(),
            case.weights,
        )
        for name in ("maml", "first_order_maml")
    ]
    assert_same(*found, 1e-6)


@known(*CHOOSES_ITS_ORDER)
def test_first_order_differs_from_second_order_where_the_loss_is_curved(name: str) -> None:
    case = make_case()
    first, second = (
        gradients(losses_of(stirred(make_learner(name, case, second_order=order)), case).mean(), case.weights)
        for order in (False, True)
    )
    assert not torch.allclose(first["body_weight"], second["body_weight"], rtol=1e-2, atol=1e-4)


def test_first_order_maml_is_maml_whose_inner_gradients_are_constants() -> None:
    case = make_case()
    learner = make_learner("first_order_maml", case)
    total = torch.zeros(())
    for task in range(4):
        fast = dict(case.weights)
        for _ in range(3):
            slopes = gradients(case.loss(fast, one(case.support, task)), fast)
            fast = {part: at - 0.2 * slopes[part].detach() for part, at in fast.items()}
        total = total + case.loss(fast, one(case.query, task)) / 4
    learnt = case.learnt(learner)
    assert_same(gradients(losses_of(learner, case).mean(), learnt), gradients(total, learnt))
    second = gradients(losses_of(make_learner("maml", case), case).mean(), learnt)
    assert not torch.allclose(second["body_weight"], gradients(total, learnt)["body_weight"], atol=1e-4)


@known("reptile", "domain_negotiation")
def test_a_walk_of_one_step_is_an_sgd_step_of_joint_training(name: str) -> None:
    case = make_case()
    case = case if name == "reptile" else alone(case, 0)  # a walk through one task
    learner = make_learner(name, case, inner_steps=1)
    learnt = case.learnt(learner)
    found = gradients(losses_of(learner, case, seed=1).mean(), learnt)
    joint = gradients(losses_of(make_learner("joint", case), case).mean(), learnt)
    assert_same(found, joint, 0.0)


def test_reptile_moves_towards_where_its_walk_ends() -> None:
    case = make_case()
    found = gradients(losses_of(make_learner("reptile", case), case).mean(), case.weights)
    ends = []
    for task in range(4):
        at = dict(case.weights)
        for part in range(3):  # nine rows: three a step
            rows = {name: value[3 * part : 3 * part + 3] for name, value in one(case.query, task).items()}
            slopes = gradients(case.loss(at, rows), at)
            at = {name: value - 0.2 * slopes[name] for name, value in at.items()}
        ends.append({name: (case.weights[name] - at[name]) / 0.2 for name in at})
    assert_same(found, {name: torch.stack([end[name] for end in ends]).mean(0) for name in case.weights})


# --- what must not matter ----------------------------------------------------------------------------


@but(TASKS_MEET)
def test_the_order_of_tasks_does_not_matter(name: str) -> None:
    case = make_case()
    turned = replace(
        case,
        support={part: value.flip(0) for part, value in case.support.items()},
        query={part: value.flip(0) for part, value in case.query.items()},
    )
    learner = stirred(make_learner(name, case))
    learnt = case.learnt(learner)
    before, after = losses_of(learner, case), losses_of(learner, turned)
    torch.testing.assert_close(after, before.flip(0), atol=1e-5, rtol=1e-5)
    assert_same(gradients(after.mean(), learnt), gradients(before.mean(), learnt))


@but(ROWS_IN_ORDER)
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    case = make_case()
    turned = replace(
        case,
        support={part: value.flip(1) for part, value in case.support.items()},
        query={part: value.roll(2, 1) for part, value in case.query.items()},
    )
    learner = stirred(make_learner(name, case))
    learnt = case.learnt(learner)
    before, after = losses_of(learner, case, seed=2), losses_of(learner, turned, seed=2)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert_same(gradients(after.mean(), learnt), gradients(before.mean(), learnt))


@every_learner
def test_what_is_not_used_may_be_left_out_of_the_support(name: str) -> None:
    case = make_case()
    learner = stirred(make_learner(name, case))
    found = losses_of(learner, case)
    other = losses_of(learner, replace(case, support=make_case(data_seed=9).support))
    assert torch.equal(found, other) != learner.uses_support
    if not learner.uses_support:
        assert torch.equal(losses_of(learner, replace(case, support={})), found)


@every_learner
def test_inputs_are_left_as_they_were(name: str) -> None:
    case = make_case()
    learner = make_learner(name, case)
    before = copy.deepcopy((case.weights, case.table, case.support, case.query, learner.state_dict()))
    losses_of(learner, case, seed=1).mean().backward()
    learner.adapt(case.problem, case.weights, case.support)
    after = (case.weights, case.table, case.support, case.query, learner.state_dict())
    for left, right in zip(before, after, strict=True):
        if isinstance(left, Tensor):
            assert torch.equal(left, right)
        else:
            assert_same(left, right, 0.0)


# --- how they run ------------------------------------------------------------------------------------


@every_learner
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_adaptation_needs_no_graph_around_it(name: str, mode: type[torch.no_grad]) -> None:
    case = make_case()
    learner = stirred(make_learner(name, case))
    expected = learner.adapt(case.problem, case.weights, case.support)
    with mode():
        found = learner.adapt(case.problem, case.weights, case.support)
    assert all(value.grad_fn is None for value in found.values())
    assert_same(found, expected, 1e-6)


def train(
    name: str,
    steps: int,
    *,
    start: tuple[Case, MetaLearner, torch.optim.Optimizer] | None = None,
    first: int = 0,
) -> tuple[Case, MetaLearner, torch.optim.Optimizer]:
    """Make some steps of Adam, each on tasks of its own."""
    case, learner, optimizer = start or fresh(name)
    for step in range(first, first + steps):
        batch = make_case(data_seed=100 + step)
        optimizer.zero_grad()
        losses_of(
            learner, replace(case, support=batch.support, query=batch.query), seed=step
        ).mean().backward()
        optimizer.step()
    return case, learner, optimizer


def fresh(name: str) -> tuple[Case, MetaLearner, torch.optim.Optimizer]:
    case = make_case()
    learner = make_learner(name, case)
    return case, learner, torch.optim.Adam(case.learnt(learner).values(), lr=0.01)


@every_learner
def test_the_same_seed_gives_the_same_weights_bit_by_bit(name: str) -> None:
    (first, learner, _), (second, again, _) = (train(name, 20) for _ in range(2))
    start = fresh(name)
    for part, value in first.learnt(learner).items():
        assert torch.equal(value, second.learnt(again)[part]), part
    assert not torch.equal(first.weights["body_weight"], start[0].weights["body_weight"])


@every_learner
def test_a_run_that_was_stopped_and_taken_up_again_never_stopped(name: str) -> None:
    expected_case, expected_learner, _ = train(name, 8)
    case, learner, optimizer = train(name, 4)
    saved = copy.deepcopy((case.weights, case.table, learner.state_dict(), optimizer.state_dict()))
    other, taken_up, new = fresh(name)
    with torch.no_grad():
        for part, value in saved[0].items():
            other.weights[part].copy_(value)
        other.table.copy_(saved[1])
    taken_up.load_state_dict(saved[2])
    new.load_state_dict(saved[3])
    train(name, 4, start=(other, taken_up, new), first=4)
    for part, value in expected_case.learnt(expected_learner).items():
        assert torch.equal(value, other.learnt(taken_up)[part]), part


@every_learner
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_half_and_double_precision_run(name: str, dtype: torch.dtype) -> None:
    case = make_case(dtype=dtype)
    learner = stirred(make_learner(name, case))
    losses = losses_of(learner, case, seed=1)
    adapted = learner.adapt(case.problem, case.weights, case.support)
    slopes = gradients(losses.mean(), case.learnt(learner))
    for part, value in {"losses": losses, **adapted, **slopes}.items():
        assert value.dtype == dtype, part
        assert value.isfinite().all(), part
    single = losses_of(stirred(make_learner(name, make_case())), make_case(), seed=1)
    torch.testing.assert_close(losses.float(), single, rtol=0.1, atol=0.05)


# --- what learns -------------------------------------------------------------------------------------


@every_learner
def test_what_the_loss_closes_over_learns_too(name: str) -> None:
    case = make_case()
    learner = stirred(make_learner(name, case))
    slope = gradients(losses_of(learner, case).mean(), {"table": case.table})["table"]
    read = torch.zeros(IDS, dtype=torch.bool)
    read[case.query["id"].flatten()] = True
    assert (slope[read].abs().sum(-1) > 0).all()
    if learner.uses_support:
        read[case.support["id"].flatten()] = True
    assert (slope[~read] == 0).all()


@every_learner
def test_a_learners_own_parameters_learn_too(name: str) -> None:
    case = make_case()
    learner = stirred(make_learner(name, case))
    own = dict(learner.named_parameters())
    for part, slope in gradients(losses_of(learner, case).mean(), own).items():
        assert slope.isfinite().all(), part
        assert (slope != 0).any(), part


def with_weights_that_are_not_read() -> Case:
    case = make_case()
    case.weights["unread"] = torch.randn(3, requires_grad=True)
    case.weights["head_unread"] = torch.randn(3, requires_grad=True)
    return case


@but(MOVES_BY_ITSELF)
def test_a_weight_that_received_no_gradient_does_not_move_in_the_inner_loop(name: str) -> None:
    case = with_weights_that_are_not_read()
    learner = stirred(make_learner(name, case))
    adapted = learner.adapt(case.problem, case.weights, case.support)
    for part in ("unread", "head_unread"):
        assert torch.equal(adapted[part], case.weights[part].expand(4, 3))


@every_learner
def test_a_weight_that_received_no_gradient_does_not_move_in_the_outer_loop(name: str) -> None:
    case = with_weights_that_are_not_read()
    learner = stirred(make_learner(name, case))
    before = {part: value.detach().clone() for part, value in case.learnt(learner).items()}
    optimizer = torch.optim.Adam(case.learnt(learner).values(), lr=0.1)
    losses_of(learner, case, seed=1).mean().backward()
    optimizer.step()
    for part, value in case.learnt(learner).items():
        assert torch.equal(value, before[part]) == part.endswith("unread"), part


@but(NO_INNER_LOOP)
def test_only_fast_weights_move_in_the_inner_loop_and_all_learn(name: str) -> None:
    case = make_case()
    learner = stirred(make_learner(name, case, fast=("head", "body_bias")))
    adapted = learner.adapt(case.problem, case.weights, case.support)
    assert torch.equal(adapted["body_weight"], case.weights["body_weight"].expand(4, HIDDEN, -1))
    slopes = gradients(losses_of(learner, case).mean(), case.weights)
    assert all((slope != 0).any() for slope in slopes.values())
    if {"rates"} & {part.split(".")[0] for part, _ in learner.named_parameters()}:
        assert {part.split(".")[1] for part, _ in learner.named_parameters()} == {
            "head_weight",
            "head_bias",
            "body_bias",
        }


@but(NO_INNER_LOOP)
def test_fast_names_that_no_weight_has_are_refused(name: str) -> None:
    case = make_case()
    with pytest.raises(
        InputError, match=f"meta-learner {name}: .* one of \\('tail',\\), .* found \\['body_w"
    ):
        losses_of(make_learner(name, case, fast=("tail",)), case)


def with_rows_of_its_own(users: Tensor, table: Tensor) -> tuple[Problem, Case]:
    """The case, where each task brings a row of ``table`` along, which is added to the features' bias."""
    case = make_case()
    for data in (case.support, case.query):
        data["user"] = table[users]
    case.weights["user"] = table[users]

    def loss(weights: Weights, data: Data) -> Tensor:
        return case.loss({**weights, "body_bias": weights["body_bias"] + weights["user"]}, data)

    def embed(data: Data) -> tuple[Tensor, Tensor]:
        moved = {**case.weights, "body_bias": case.weights["body_bias"] + data["user"]}
        return case.embed(moved, data)

    return Problem(loss=loss, embed=embed, per_task=frozenset({"user"})), case


@every_learner
def test_weights_that_each_task_brings_along_adapt_and_send_their_gradient_back(name: str) -> None:
    table = torch.randn(10, HIDDEN, requires_grad=True)
    users = torch.tensor([7, 2, 5, 2])
    problem, case = with_rows_of_its_own(users, table)
    learner = get_meta_learner(name, Options(inner_steps=2, inner_rate=0.2, fast=("user", "head")))
    learner.prepare(problem, case.weights)
    losses = learner.meta_losses(problem, case.weights, case.support, case.query)
    slope = torch.autograd.grad(losses.mean(), table, retain_graph=True)[0]
    assert {row for row in range(10) if (slope[row] != 0).any()} == {2, 5, 7}
    adapted = learner.adapt(problem, case.weights, case.support)
    assert adapted["user"].shape == (4, HIDDEN)
    if name not in TASKS_MEET:
        for task in range(4):
            weights = case.weights | {"user": table[users[task : task + 1]]}
            by_itself = alone(case, task)
            loss = learner.meta_losses(problem, weights, by_itself.support, by_itself.query)
            torch.testing.assert_close(loss[0], losses[task], atol=1e-5, rtol=1e-5)


@but(NO_INNER_LOOP, {"anil"})
def test_weights_that_each_task_brings_along_must_be_fast(name: str) -> None:
    problem, case = with_rows_of_its_own(torch.tensor([0, 1, 2, 3]), torch.randn(4, HIDDEN))
    learner = get_meta_learner(name, Options(fast=("head",)))
    with pytest.raises(InputError, match=r"own \['user'\]"):
        learner.prepare(problem, case.weights)
        learner.meta_losses(problem, case.weights, case.support, case.query)


@known(*STEP_WEIGHTS)
def test_step_weights_share_the_meta_loss_out_over_the_steps(name: str) -> None:
    case = make_case()

    def found(**options: object) -> Tensor:
        return losses_of(make_learner(name, case, **options), case)

    torch.testing.assert_close(found(step_weights=(0.0, 0.0, 2.0)), found())
    torch.testing.assert_close(found(step_weights=(1.0, 0.0, 0.0)), found(inner_steps=1))
    shared = found(step_weights=(1.0, 0.0, 3.0))
    torch.testing.assert_close(shared, 0.25 * found(inner_steps=1) + 0.75 * found())


def test_meta_training_learns_to_adapt_to_a_new_sinusoid() -> None:
    problem = Problem(loss=sinusoids.loss)
    support, query = sinusoids.make_tasks(50, 10, seed=10_000)

    def after_training(name: str, steps: int) -> float:
        weights = sinusoids.make_weights(seed=8)
        optimizer = torch.optim.Adam(weights.values(), lr=5e-3)
        learner = get_meta_learner(name, Options(inner_steps=3, inner_rate=0.05))
        for step in range(steps):
            optimizer.zero_grad()
            batch = sinusoids.make_tasks(16, 10, seed=step)
            learner.meta_losses(problem, weights, *batch).mean().backward()
            optimizer.step()
        path = descend(problem, weights, support, steps=10, rate=0.05, second_order=False)
        return losses_under(problem, path[-1], query).mean().item()

    untrained, joint, meta = (
        after_training(name, steps) for name, steps in (("joint", 0), ("joint", 200), ("maml", 200))
    )
    assert meta < 0.8 * joint
    assert meta < 0.5 * untrained


# --- what is refused ---------------------------------------------------------------------------------


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="unknown meta-learner 'reptiles'; there are joint, maml, "):
        get_meta_learner("reptiles")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"inner_steps": -1}, "inner_steps from 0, found -1"),
        ({"inner_rate": 0.0}, r"inner_rate above 0, found 0\.0"),
        ({"inner_rate": float("nan")}, "inner_rate above 0, found nan"),
        ({"proximal": 0.0}, r"proximal above 0, found 0\.0"),
        ({"conjugate_steps": 0}, "conjugate_steps from 1, found 0"),
        ({"step_weights": (1.0,)}, r"one from 0 for each inner step .* found \(1\.0,\) with inner_steps=3"),
        ({"step_weights": (1.0, -1.0, 1.0)}, "step_weights none, or one from 0"),
        ({"step_weights": (0.0, 0.0, 0.0)}, "and not all 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=f"meta-learner: expected .*{text}"):
        Options(**options)  # type: ignore[arg-type]


def test_meta_sgd_that_was_not_prepared_says_so() -> None:
    case = make_case()
    with pytest.raises(InputError, match=r"meta_sgd: expected prepare\(problem, weights\)"):
        losses_of(get_meta_learner("meta_sgd"), case)


def test_reptile_needs_a_row_for_each_step() -> None:
    case = make_case(rows=2)
    with pytest.raises(InputError, match=r"reptile: expected at least 3 rows a task, .* found 2"):
        losses_of(make_learner("reptile", case), case)
