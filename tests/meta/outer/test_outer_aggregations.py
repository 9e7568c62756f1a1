"""Properties of every outer aggregation, on contexts that disagree."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from few_contexts import CONTEXTS, SIZES, Model, body_gradients, make
from sinusoids import loss, make_tasks, make_weights
from torch import Tensor

from recmeta.errors import InputError
from recmeta.meta.interface import Options, Problem
from recmeta.meta.outer.registry import OUTER, get_outer
from recmeta.meta.outer.sharing import Sharing
from recmeta.meta.registry import get_meta_learner

NAMES = sorted(OUTER)
SHARING = [name for name in NAMES if isinstance(make(name), Sharing)]
ORDER_IS_DRAWN = {"random", "graddrop", "pcgrad", "gradvac"}
LENGTH_IS_ITS_OWN = {"nash_mtl", "fairgrad"}
NEVER_AGAINST_ANYONE = ["upgrad", "dualproj", "mgda", "config", "nash_mtl", "fairgrad"]
GROUPS = torch.tensor([2, 1, 4, 1, 5, 2, 1])


def one_step(name: str, model: Model, groups: Tensor, **options: object) -> list[Tensor]:
    make(name, **options).backward(model.losses(groups), groups, model.shared, [model.table])
    return model.gradients()


def assert_near(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-5) -> None:
    for found, expected in zip(left, right, strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_tasks_changes_nothing(name: str) -> None:
    model, shuffled = Model(torch.float64), GROUPS[torch.randperm(len(GROUPS))]
    assert_near(one_step(name, model, GROUPS), one_step(name, model, shuffled))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ORDER_IS_DRAWN])
def test_the_numbering_of_contexts_changes_nothing(name: str) -> None:
    model, renamed = Model(torch.float64), torch.tensor([0, 4, 3, 5, 1, 2])
    sizes = torch.empty_like(SIZES)
    sizes[renamed[1:] - 1] = SIZES
    before = one_step(name, model, GROUPS)
    losses = model.losses(GROUPS)
    make(name, sizes=sizes).backward(losses, renamed[GROUPS], model.shared, [model.table])
    assert_near(before, model.gradients(), 1e-3 if name == "nash_mtl" else 1e-5)  # its solver is rough


@pytest.mark.parametrize("name", NAMES)
def test_one_context_alone_gets_its_own_gradient(name: str) -> None:
    model, groups = Model(torch.float64), torch.tensor([3, 3])
    model.losses(groups).mean().backward()
    expected = model.gradients()
    assert_near(one_step(name, model, groups), expected, 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_contexts_that_agree_get_the_gradient_on_which_they_agree(name: str) -> None:
    model = Model(torch.float64)
    model.targets[:] = model.targets[0]
    row = torch.arange(4)

    def same() -> Tensor:
        vectors = torch.nn.functional.embedding(row, model.table, sparse=True)
        value = (torch.tanh(vectors @ model.body) @ model.head - model.targets[0, row]).square().mean()
        return value.expand(4)

    same().mean().backward()
    expected = model.gradients()
    sizes = torch.full((CONTEXTS,), 7)
    make(name, sizes=sizes).backward(same(), torch.tensor([1, 2, 3, 5]), model.shared, [model.table])
    found = model.gradients()
    if name in LENGTH_IS_ITS_OWN:
        found[:2] = [part * (expected[0].norm() / found[0].norm()) for part in found[:2]]
    assert_near(found, expected, 1e-3 if name == "fairgrad" else 1e-6)


@pytest.mark.parametrize("name", NEVER_AGAINST_ANYONE)
def test_the_step_is_against_no_context(name: str) -> None:
    conflicts = 0
    for seed in range(8):
        model, groups = Model(torch.float64, seed), torch.arange(1, 5)
        losses = model.losses(groups) * torch.tensor([1.0, 9.0, 1.0, 1.0])  # one is loud
        each = body_gradients(model, list(losses))
        lengths = each.norm(dim=1)
        conflicts += bool((each @ each.mean(dim=0) < 0).any())
        make(name).backward(losses, groups, model.shared)
        body, head, _ = model.gradients()
        step = torch.cat([body.flatten(), head])
        assert ((each @ step) / lengths / step.norm()).min() > -1e-2, seed
    assert conflicts >= 2  # where the plain mean is


@pytest.mark.parametrize("name", SHARING)
def test_tables_get_exactly_the_sparse_gradient_of_the_mean(name: str) -> None:
    model = Model()
    one, two = model.losses(torch.tensor([1])), model.losses(torch.tensor([2, 2]))
    ((one.mean() + two.mean()) / 2).backward()
    expected = model.table.grad
    assert expected is not None
    model.gradients()
    groups = torch.tensor([2, 1, 2])
    make(name).backward(model.losses(groups), groups, model.shared, [model.table])
    found = model.table.grad
    assert found is not None
    assert found.is_sparse
    torch.testing.assert_close(found.coalesce(), expected.coalesce(), atol=1e-7, rtol=1e-6)
    assert (found.to_dense() == 0).all(dim=1).any()  # rows that nobody looked up


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SHARING)))
def test_weights_hold_for_tables_as_for_the_body(name: str) -> None:
    model, groups = Model(torch.float64), torch.tensor([1, 2])
    found = one_step(name, model, groups)
    each = [torch.autograd.grad(value, model.leaves, retain_graph=True) for value in model.losses(groups)]
    dense = [[part.to_dense().flatten() for part in row] for row in each]
    body = torch.stack([torch.cat(row[:2]) for row in dense])
    weights = torch.linalg.lstsq(body.T, torch.cat([found[0].flatten(), found[1]])).solution
    assert weights.min() > 0
    torch.testing.assert_close(found[2].flatten(), weights[0] * dense[0][2] + weights[1] * dense[1][2])


def test_the_mean_is_over_contexts_and_per_task_over_tasks() -> None:
    model, groups = Model(torch.float64), torch.tensor([1, 1, 1, 4])
    losses = model.losses(groups)
    torch.stack([losses[:3].mean(), losses[3]]).mean().backward()
    assert_near(model.gradients(), one_step("mean", model, groups), 1e-12)
    model.losses(groups).mean().backward()
    assert_near(model.gradients(), one_step("per_task", model, groups), 1e-12)


def test_by_size_follows_the_pooled_rows() -> None:
    model, groups = Model(torch.float64), torch.tensor([1, 2, 2])
    losses = model.losses(groups)
    ((10 * losses[0] + 400 * losses[1:].mean()) / 410).backward()
    assert_near(model.gradients(), one_step("by_size", model, groups), 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_penalty_is_added_as_it_is(name: str) -> None:
    model = Model(torch.float64)
    plain = one_step(name, model, GROUPS)
    model.penalty().backward()
    penalty = model.gradients()
    make(name).backward(model.losses(GROUPS), GROUPS, model.shared, [model.table], model.penalty())
    assert_near(model.gradients(), [left + right for left, right in zip(plain, penalty, strict=True)], 1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("groups", [GROUPS, torch.tensor([3, 3])], ids=["many", "one"])
def test_gradients_add_up_and_what_is_not_reached_has_none(name: str, groups: Tensor) -> None:
    model, idle, idle_table = Model(torch.float64), torch.ones(2), torch.ones(3)
    shared = [idle.requires_grad_(), *model.shared]
    others = [model.table, idle_table.requires_grad_()]
    make(name).backward(model.losses(groups), groups, shared, others)
    once = model.gradients()
    for _ in range(2):
        make(name).backward(model.losses(groups), groups, shared, others)
    assert_near(model.gradients(), [2 * part for part in once], 1e-9)
    assert idle.grad is None
    assert idle_table.grad is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_half_single_and_double_precision_run(name: str, dtype: torch.dtype) -> None:
    exact = one_step(name, Model(torch.float64), GROUPS)
    found = one_step(name, Model(dtype), GROUPS)
    for part, expected in zip(found, exact, strict=True):
        assert part.dtype == dtype
        assert part.isfinite().all()
        if dtype == torch.float32 and name != "graddrop":  # which draws other numbers in other precisions
            torch.testing.assert_close(part.double(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", SHARING)
def test_where_no_context_has_a_gradient_nothing_moves(name: str) -> None:
    model, groups = Model(), torch.tensor([1, 2, 3])
    make(name).backward(0.0 * model.losses(groups), groups, model.shared, [model.table])
    assert all((part == 0).all() for part in model.gradients())


@pytest.mark.parametrize("name", NAMES)
def test_the_global_generator_neither_matters_nor_moves(name: str) -> None:
    torch.manual_seed(1)
    one = one_step(name, Model(), GROUPS)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = one_step(name, Model(), GROUPS)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(left, right) for left, right in zip(one, two, strict=True))


@pytest.mark.parametrize("name", ["random", "graddrop"])
def test_what_is_random_differs_by_step_and_by_seed(name: str) -> None:
    model, outer = Model(), make(name)
    drawn = []
    for made in (outer, outer, make(name, seed=1)):
        made.backward(model.losses(GROUPS), GROUPS, model.shared, [model.table])
        drawn.append(model.gradients()[0])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("learner", ["maml", "reptile"])
@pytest.mark.parametrize("name", NAMES)
def test_every_meta_learner_learns_under_it(name: str, learner: str) -> None:
    weights, (support, query) = make_weights(), make_tasks(4, 8, seed=1)
    problem, groups = Problem(loss=loss), torch.tensor([1, 2, 2, 3])
    meta = get_meta_learner(learner, Options(inner_steps=2, inner_rate=0.01))
    meta.prepare(problem, weights)
    outer, leaves = make(name), list(weights.values())
    adam = torch.optim.Adam(leaves, lr=0.01)

    def losses() -> Tensor:
        return meta.meta_losses(problem, weights, support, query)

    before = losses().mean().item()
    for _ in range(10):
        adam.zero_grad()
        outer.backward(losses(), groups, leaves)
        adam.step()
        if outer.looks_back:
            outer.after_step(losses)
    assert losses().mean().item() < 0.95 * before


@pytest.mark.parametrize(
    "groups",
    [torch.tensor([0, 1]), torch.tensor([1, CONTEXTS + 1]), torch.tensor([1]), torch.tensor([[1, 2]])],
)
@pytest.mark.parametrize("name", ["mean", "per_task", "upgrad", "grad_norm"])
def test_contexts_that_do_not_fit_are_refused(name: str, groups: Tensor) -> None:
    model = Model()
    with pytest.raises(InputError, match=f"{name}: expected"):
        make(name).backward(model.losses(torch.tensor([1, 2])), groups, model.shared)


def test_names_and_numbers_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(InputError, match="there are mean, per_task"):
        get_outer("average", contexts=3)
    with pytest.raises(InputError, match="sizes"):
        get_outer("by_size", contexts=3)
    with pytest.raises(InputError, match="each of 3 contexts"):
        get_outer("by_size", contexts=3, sizes=torch.tensor([1, 2]))
    with pytest.raises(InputError, match="contexts from 1"):
        get_outer("mean", contexts=0)
    with pytest.raises(InputError, match="steps from 1"):
        get_outer("dwa", contexts=3, steps_per_epoch=0)


@pytest.mark.parametrize("name", ["cagrad", "nash_mtl", "fairgrad"])
def test_a_missing_solver_is_named_with_what_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda package: None)
    with pytest.raises(InputError, match=rf"{name}: a package is missing.*pip install .torchjd\[{name}\]"):
        make(name)


def test_torchjd_is_imported_only_where_it_is_asked_for() -> None:
    program = (
        "import sys; from recmeta.meta.outer.registry import get_outer; get_outer('grad_norm', contexts=2);"
        "sys.exit('torchjd' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
