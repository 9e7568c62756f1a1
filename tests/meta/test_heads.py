"""Heads that are solved in closed form, against scikit-learn, written-out formulas and finite differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor
from torch.nn import functional

from recmeta.errors import InputError
from recmeta.meta import logistic_head
from recmeta.meta.interface import MetaLearner, Options, Problem
from recmeta.meta.logistic_head import INTERCEPT_SHARE
from recmeta.meta.registry import get_meta_learner

NAMES = ("logistic_head", "prototype_head", "ridge_head")
WAYS = 3
FEATURES = 6


class Net:
    """tanh(x @ mixing) as features, another linear map as the scores that are there already."""

    def __init__(self, *, ways: int | None, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        shape = () if ways is None else (ways,)

        def some(*size: int) -> Tensor:
            return torch.randn(*size, generator=draw, dtype=torch.float64).to(dtype)

        self.ways = ways
        self.mixing = (some(4, FEATURES) * 0.7).requires_grad_()
        self.already = some(4, *shape) * 0.5
        self.weights = {
            "layer0_scale": some(FEATURES) * 0.1,
            "head_weight": some(*shape, FEATURES) * 0.3,
            "head_bias": some(*(shape or (1,))) * 0.3,
        }
        self.problem = Problem(loss=self.loss, embed=self.embed)

    def embed(self, data: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.tanh(data["x"] @ self.mixing), data["x"] @ self.already

    def scores(self, weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
        features, already = self.embed(data)
        bias = weights["head_bias"] if self.ways else weights["head_bias"][0]
        return already + torch.einsum("nd,...d->n...", features, weights["head_weight"]) + bias

    def loss(self, weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
        scores = self.scores(weights, data)
        if self.ways:
            losses = functional.cross_entropy(scores, data["label"], reduction="none")
        else:
            losses = functional.softplus(scores) - data["label"] * scores
        return (losses * data["weight"]).sum() / data["weight"].sum()

    def tasks(self, tasks: int, rows: int, seed: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        kind = self.mixing.dtype
        x = torch.randn(tasks, rows, 4, generator=draw, dtype=torch.float64)
        if self.ways:
            label = (x[..., : self.ways] + 0.5 * torch.randn(*x.shape[:2], self.ways, generator=draw)).argmax(
                -1
            )
        else:
            label = (x.sum(-1) + 2 * torch.randn(*x.shape[:2], generator=draw) > 0).to(kind)
        weight = torch.randint(0, 3, label.shape, generator=draw).to(kind)
        return {"x": x.to(kind), "label": label, "weight": weight}


def learner(name: str, net: Net, **options: object) -> MetaLearner:
    made = get_meta_learner(name, Options(**options))
    made.prepare(net.problem, net.weights)
    return made


def first(data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[0] for name, value in data.items()}


def added(net: Net, made: MetaLearner, support: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """What the learner adds to the head in the first task."""
    fast = made.adapt(net.problem, net.weights, support)
    return tuple(
        (fast[name][0] - net.weights[name]).detach().numpy() for name in ("head_weight", "head_bias")
    )


def test_the_ridge_head_is_scikit_learns_ridge_of_what_the_shared_head_leaves() -> None:
    for ways in (None, WAYS):
        for rows in (4, 40):  # fewer rows than features, and more
            net = Net(ways=ways)
            support = net.tasks(2, rows, seed=1)
            support["weight"][:, 0] = 1.0
            made = learner("ridge_head", net, proximal=0.8)
            with torch.no_grad():
                made.learnt["bias"].fill_(0.3)
            data = first(support)
            scores = net.scores(net.weights, data).detach()
            if ways:
                targets = functional.one_hot(data["label"], ways) - torch.softmax(scores, -1)
            else:
                targets = data["label"] - torch.sigmoid(scores)
            weight = data["weight"] / data["weight"][data["weight"] > 0].mean()
            reference = Ridge(alpha=0.8).fit(
                net.embed(data)[0].detach(), 2 * targets, sample_weight=weight.numpy()
            )
            slope, intercept = added(net, made, support)
            np.testing.assert_allclose(slope, 2.0 * reference.coef_, atol=1e-9)
            np.testing.assert_allclose(intercept, 2.0 * reference.intercept_ + 0.3, atol=1e-9)


def test_the_logistic_head_is_scikit_learns_logistic_regression_around_the_shared_head() -> None:
    """scikit-learn has no prior mean but zero and no offset, so here both are zero."""
    for ways, rows in ((None, 50), (WAYS, 50), (None, 5), (WAYS, 5)):  # also fewer rows than features
        net = Net(ways=ways)
        net.already.zero_()
        for name in ("head_weight", "head_bias"):
            net.weights[name].zero_()
        support = net.tasks(2, rows, seed=2)
        support["weight"] += 0.5
        support["label"][:, :WAYS] = torch.arange(ways or 2).repeat(2)[:WAYS]
        data = first(support)
        slope, intercept = added(net, learner("logistic_head", net, inner_steps=25, proximal=0.7), support)
        # A column of this height, with the prior of the others, is an intercept with its own prior.
        high = INTERCEPT_SHARE**-0.5
        features = functional.pad(net.embed(data)[0].detach(), (0, 1), value=high)
        weight = data["weight"] / data["weight"][data["weight"] > 0].mean()
        reference = LogisticRegression(C=1 / 0.7, fit_intercept=False, tol=1e-10, max_iter=5000)
        found = reference.fit(features, data["label"], sample_weight=weight.numpy()).coef_
        np.testing.assert_allclose(slope.reshape(-1, FEATURES), found[:, :-1], atol=1e-5)
        np.testing.assert_allclose(intercept, found[:, -1] * high, atol=1e-5)


@pytest.mark.parametrize("ways", [None, WAYS])
def test_the_logistic_head_is_where_the_objective_around_the_shared_head_is_flat(ways: int | None) -> None:
    net = Net(ways=ways)
    support = net.tasks(2, 30, seed=3)
    made = learner("logistic_head", net, inner_steps=20, proximal=0.5)
    fast = {name: value[0].detach() for name, value in made.adapt(net.problem, net.weights, support).items()}
    head = {name: fast[name].requires_grad_() for name in ("head_weight", "head_bias")}
    data = first(support)
    rows = (data["weight"] > 0).sum()
    distance = [(head[name] - net.weights[name]).square().sum() for name in head]
    objective = rows * net.loss(fast | head, data) + 0.25 * (distance[0] + INTERCEPT_SHARE * distance[1])
    for slope in torch.autograd.grad(objective, list(head.values())):
        assert slope.abs().max() < 1e-8


def test_newton_steps_never_raise_the_objective_where_undamped_ones_diverge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net(ways=None)
    net.already.mul_(40.0)  # scores that are sure and wrong: there the curvature tells nothing
    support = net.tasks(1, 40, seed=4)
    support["label"] = 1.0 - (support["x"] @ net.already > 0).to(torch.float64)

    def objective(steps: int) -> float:
        fast = learner("logistic_head", net, inner_steps=steps, proximal=1e-3).adapt(
            net.problem, net.weights, support
        )
        head = {name: value[0] for name, value in fast.items()}
        moved = [(head[name] - net.weights[name]).square().sum() for name in ("head_weight", "head_bias")]
        rows = (support["weight"] > 0).sum()
        pull = 5e-4 * (moved[0] + INTERCEPT_SHARE * moved[1])
        return (rows * net.loss(head, first(support)) + pull).item()

    found = [objective(steps) for steps in (0, 1, 2, 4, 8, 16, 32)]
    assert all(later <= earlier for earlier, later in pairwise(found))
    assert found[-1] < 0.2 * found[0]
    monkeypatch.setattr(logistic_head, "_length", lambda change: 1.0)
    assert objective(8) > 10 * found[0]


def test_prototypes_classify_by_the_distance_to_weighted_class_means() -> None:
    net = Net(ways=WAYS)
    support, query = net.tasks(1, 12, seed=5), first(net.tasks(1, 9, seed=6))
    made = learner("prototype_head", net)
    fast = {name: value[0] for name, value in made.adapt(net.problem, net.weights, support).items()}
    found = net.scores(fast, query) - net.scores(net.weights, query)
    data = first(support)
    features, rows = net.embed(data)[0], net.embed(query)[0]
    means = []
    for way in range(WAYS):
        share = data["weight"] * (data["label"] == way)
        means.append(share @ features / share.sum())
    distance = torch.cdist(rows, torch.stack(means)).square() / FEATURES
    torch.testing.assert_close(torch.log_softmax(found, -1), torch.log_softmax(-distance, -1))


def test_prototypes_of_two_classes_are_one_logit() -> None:
    net = Net(ways=None)
    support, query = net.tasks(1, 12, seed=7), first(net.tasks(1, 9, seed=8))
    made = learner("prototype_head", net)
    fast = {name: value[0] for name, value in made.adapt(net.problem, net.weights, support).items()}
    found = net.scores(fast, query) - net.scores(net.weights, query)
    data = first(support)
    features, rows = net.embed(data)[0], net.embed(query)[0]
    zero, one = (
        (share := data["weight"] * (data["label"] == way)) @ features / share.sum() for way in (0, 1)
    )
    expected = ((rows - zero).square().sum(-1) - (rows - one).square().sum(-1)) / FEATURES
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("ways", [None, WAYS])
def test_without_rows_of_a_class_prototypes_leave_the_head_as_it_is_and_gradients_finite(
    ways: int | None,
) -> None:
    net = Net(ways=ways)
    support, query = net.tasks(3, 10, seed=9), net.tasks(3, 10, seed=10)
    support["weight"] = support["weight"] + 0.5
    support["weight"][1] *= support["label"][1] != 1  # rows of class 1 that do not count
    made = learner("prototype_head", net)
    fast = made.adapt(net.problem, net.weights, support)
    for name in ("head_weight", "head_bias"):
        torch.testing.assert_close(fast[name][1], net.weights[name])
        assert not torch.allclose(fast[name][0], net.weights[name])
    made.meta_losses(net.problem, net.weights, support, query).sum().backward()
    assert net.mixing.grad is not None
    assert net.mixing.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ways", [None, WAYS])
@pytest.mark.parametrize("rows", [5, 8])
def test_the_gradient_through_the_solution_is_that_of_finite_differences(
    name: str, ways: int | None, rows: int
) -> None:
    net = Net(ways=ways)
    support, query = net.tasks(2, rows, seed=11), net.tasks(2, 8, seed=12)
    support["weight"] = support["weight"] + 0.5
    made = learner(name, net, inner_steps=4)
    weights = {part: value.requires_grad_() for part, value in net.weights.items()}
    inputs = [net.mixing, *(weights[part] for part in ("head_weight", "head_bias")), *made.parameters()]

    def meta_loss(*_: Tensor) -> Tensor:
        return made.meta_losses(net.problem, weights, support, query).sum()

    assert torch.autograd.gradcheck(meta_loss, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ways", [None, WAYS])
def test_many_tasks_at_once_are_one_task_after_the_other(name: str, ways: int | None) -> None:
    net = Net(ways=ways)
    support, query = net.tasks(4, 10, seed=13), net.tasks(4, 10, seed=14)
    made = learner(name, net)
    losses = made.meta_losses(net.problem, net.weights, support, query)
    fast = made.adapt(net.problem, net.weights, support)
    for task in range(4):
        alone = made.adapt(
            net.problem,
            net.weights,
            {part: value[task : task + 1] for part, value in support.items()},
        )
        for part, value in alone.items():
            torch.testing.assert_close(value[0], fast[part][task])
        expected = net.loss(first(alone), {part: value[task] for part, value in query.items()})
        torch.testing.assert_close(losses[task], expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ways", [None, WAYS])
def test_rows_of_weight_zero_are_not_there(name: str, ways: int | None) -> None:
    net = Net(ways=ways)
    support = net.tasks(2, 12, seed=15)
    support["weight"] = torch.ones_like(support["weight"])
    padding = net.tasks(2, 5, seed=16)
    padded = {part: torch.cat([value, padding[part] * 7], dim=1) for part, value in support.items()}
    padded["label"] = torch.cat([support["label"], padding["label"]], dim=1)
    padded["weight"] = torch.cat([3.0 * support["weight"], torch.zeros(2, 5, dtype=torch.float64)], dim=1)
    bare = {part: value for part, value in support.items() if part != "weight"}
    made = learner(name, net)
    results = [made.adapt(net.problem, net.weights, data) for data in (support, padded, bare)]
    for part in ("head_weight", "head_bias"):
        for other in results[1:]:
            torch.testing.assert_close(results[0][part], other[part])


@pytest.mark.parametrize("name", NAMES)
def test_with_no_rows_that_count_or_one_class_heads_stay_finite(name: str) -> None:
    net = Net(ways=None)
    support, query = net.tasks(2, 10, seed=17), net.tasks(2, 10, seed=18)
    support["weight"][0] = 0.0
    support["label"][1] = 0.0
    made = learner(name, net, inner_steps=10)
    fast = made.adapt(net.problem, net.weights, support)
    torch.testing.assert_close(fast["head_weight"][0], net.weights["head_weight"])
    assert all(value.isfinite().all() and value.abs().max() < 20 for value in fast.values())
    losses = made.meta_losses(net.problem, net.weights, support, query)
    losses.sum().backward()
    assert net.mixing.grad is not None
    assert net.mixing.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_solves_in_single_and_answers_in_half(name: str, dtype: torch.dtype) -> None:
    nets = [Net(ways=None, dtype=kind) for kind in (dtype, torch.float64)]
    found, exact = (
        learner(name, net).adapt(net.problem, net.weights, net.tasks(2, 10, seed=19)) for net in nets
    )
    for part in ("head_weight", "head_bias"):
        assert found[part].dtype == dtype
        torch.testing.assert_close(found[part].double(), exact[part], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_the_rest_of_an_adapter_stays_as_it_is_and_each_task_may_bring_its_own(name: str) -> None:
    net = Net(ways=None)
    support, query = net.tasks(2, 10, seed=20), net.tasks(2, 10, seed=21)
    made = learner(name, net)
    rows = torch.randn(2, 5, dtype=torch.float64)
    problem = replace(
        net.problem,
        loss=lambda weights, data: net.loss(weights, data) + weights["rows"].sum(),
        per_task=frozenset({"rows"}),
    )
    fast = made.adapt(problem, net.weights | {"rows": rows}, support)
    torch.testing.assert_close(fast["rows"], rows)
    torch.testing.assert_close(fast["layer0_scale"], net.weights["layer0_scale"].expand(2, -1))
    torch.testing.assert_close(
        made.meta_losses(problem, net.weights | {"rows": rows}, support, query),
        made.meta_losses(net.problem, net.weights, support, query) + rows.sum(-1),
    )


@pytest.mark.parametrize("name", NAMES)
def test_learning_through_the_head_teaches_the_features_what_tasks_share(name: str) -> None:
    """Tasks ask for the sign of one of two hidden directions of 20; few rows suffice once these are known."""
    draw = torch.Generator().manual_seed(24)
    hidden = torch.randn(20, 2, generator=draw)

    def make(tasks: int, rows: int) -> dict[str, Tensor]:
        x = torch.randn(tasks, rows, 20, generator=draw)
        mix = functional.normalize(torch.randn(tasks, 2, 1, generator=draw), dim=1)
        return {"x": x, "label": (x @ hidden @ mix > 0).squeeze(-1).float()}

    mixing = (torch.randn(20, 8, generator=draw) * 0.2).requires_grad_()
    weights = {"head_weight": torch.zeros(8), "head_bias": torch.zeros(1)}

    def embed(data: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return data["x"] @ mixing, data["x"].new_zeros(len(data["x"]))

    def loss(at: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
        logits = data["x"] @ mixing @ at["head_weight"] + at["head_bias"]
        return functional.binary_cross_entropy_with_logits(logits, data["label"])

    problem = Problem(loss=loss, embed=embed)
    made = get_meta_learner(name, Options(inner_steps=3))
    made.prepare(problem, weights)

    def split(data: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return tuple(
            {part: value[:, cut] for part, value in data.items()} for cut in (slice(10), slice(10, 40))
        )

    def error() -> float:
        support, query = split(make(300, 40))
        fast = made.adapt(problem, weights, support)
        logits = torch.einsum("tnd,td->tn", query["x"] @ mixing, fast["head_weight"]) + fast["head_bias"]
        return ((logits > 0) != (query["label"] > 0.5)).float().mean().item()

    before = error()
    optimizer = torch.optim.Adam([mixing, *made.parameters()], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        made.meta_losses(problem, weights, *split(make(16, 40))).mean().backward()
        optimizer.step()
    assert before > 0.3
    assert error() < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_without_features_or_a_head_is_refused(name: str) -> None:
    net = Net(ways=None)
    made = get_meta_learner(name)
    wrong = (
        (Problem(loss=net.loss), net.weights),
        (net.problem, {"layer0_scale": net.weights["layer0_scale"]}),
        (net.problem, net.weights | {"head_bias": torch.zeros(2)}),
        (net.problem, net.weights | {"head_weight": torch.zeros(2, 2, 2)}),
    )
    for problem, weights in wrong:
        with pytest.raises(InputError, match="expected a problem with embed, and head_weight"):
            made.prepare(problem, weights)
    with pytest.raises(InputError, match="expected a problem with embed, found none"):
        made.adapt(wrong[0][0], net.weights, net.tasks(1, 4, seed=25))
    if name != "logistic_head":
        with pytest.raises(InputError, match="to be called first"):
            made.adapt(net.problem, net.weights, net.tasks(1, 4, seed=25))


def test_what_ridge_and_prototypes_learn_is_positive_where_it_must_be() -> None:
    net = Net(ways=None)
    ridge = learner("ridge_head", net, proximal=0.25)
    assert math.isclose(ridge.learnt["log_strength"].exp().item(), 0.25)
    prototypes = learner("prototype_head", net)
    assert math.isclose(prototypes.log_temperature.exp().item(), 1 / FEATURES)
