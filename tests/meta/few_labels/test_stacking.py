"""The stack is the most probable one under the teacher's prior; it finds the useful model from few labels."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recmeta.errors import InputError
from recmeta.meta.few_labels.stacking import Stacking, meta_features
from recmeta.meta.interface import Options, Problem
from recmeta.meta.registry import get_meta_learner

MODELS = 8


def logits(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
    return data["scores"] @ weights["head_weight"] + weights["head_bias"]


def loss(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
    each = binary_cross_entropy_with_logits(logits(weights, data), data["label"], reduction="none")
    return (each * data["weight"]).sum() / data["weight"].sum()


PROBLEM = Problem(
    loss=loss, embed=lambda data: (data["scores"], data["scores"].new_zeros(len(data["scores"])))
)


def make_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    start = {"head_weight": torch.zeros(MODELS, dtype=dtype), "head_bias": torch.zeros(1, dtype=dtype)}
    return {name: value.requires_grad_() for name, value in start.items()}


def make_tasks(
    tasks: int, shots: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """In each task one model, another each time, is right; the others are as sure and know nothing."""
    draw = torch.Generator().manual_seed(seed)
    useful = torch.randint(MODELS, (tasks,), generator=draw)

    def rows(each: int) -> dict[str, Tensor]:
        label = torch.tensor([0.0, 1.0], dtype=dtype).repeat(tasks, each)
        scores = 2 * torch.randn(tasks, 2 * each, MODELS, generator=draw, dtype=dtype)
        knows = (4 * label - 2) + torch.randn(tasks, 2 * each, generator=draw, dtype=dtype)
        scores[torch.arange(tasks), :, useful] = knows
        return {"scores": scores, "label": label, "weight": torch.ones_like(label)}

    return rows(shots), rows(40)


def make_stack(dtype: torch.dtype = torch.float32, *, drawn: bool = False, **options: float) -> Stacking:
    torch.manual_seed(0)
    stack = Stacking(Options(**{"inner_steps": 4, **options}))  # type: ignore[arg-type]
    stack.prepare(PROBLEM, make_weights(dtype))
    if drawn:
        torch.nn.init.normal_(stack.teacher[2].weight, std=0.5)
    return stack


def accuracy(weights: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> float:
    found = torch.vmap(logits)(dict(weights), dict(query)) > 0
    return float((found == (query["label"] > 0)).float().mean())


def test_it_starts_as_a_logistic_head_around_the_average_of_the_models() -> None:
    support, query = make_tasks(5, 3, seed=1)
    average = {"head_weight": torch.full((MODELS,), 1 / MODELS), "head_bias": torch.zeros(1)}
    expected = get_meta_learner("logistic_head", Options(inner_steps=4)).meta_losses(
        PROBLEM, average, support, query
    )
    found = make_stack().meta_losses(PROBLEM, make_weights(), support, query)
    torch.testing.assert_close(found, expected)


def test_the_student_is_the_most_probable_head_under_the_teachers_prior() -> None:
    stack = make_stack(torch.float64, drawn=True, inner_steps=40, proximal=0.7)
    weights, (support, _) = make_weights(torch.float64), make_tasks(5, 4, seed=2, dtype=torch.float64)
    found = stack.adapt(PROBLEM, weights, support)
    for task in range(5):
        data = {name: value[task] for name, value in support.items()}
        value, precision = stack.teacher(meta_features(*data.values())).detach().unbind(-1)
        prior = stack.scale.detach() * value.softmax(0)
        at = {name: tensor[task].detach().requires_grad_() for name, tensor in found.items()}
        misfit = precision.exp() @ (at["head_weight"] - prior).square() + 0.1 * at["head_bias"].square().sum()
        slopes = torch.autograd.grad(8 * loss(at, data) + 0.7 / 2 * misfit, list(at.values()))
        for slope in slopes:
            torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-8, rtol=0)


def test_the_teachers_gradient_is_the_slope_of_the_students_loss_on_later_rows() -> None:
    stack, weights = make_stack(torch.float64, drawn=True), make_weights(torch.float64)
    tasks = make_tasks(5, 2, seed=3, dtype=torch.float64)
    stack.meta_losses(PROBLEM, weights, *tasks).mean().backward()
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None, name
        found = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.view(-1)[0] += shift
                found.append(stack.meta_losses(PROBLEM, weights, *tasks).mean())
                parameter.view(-1)[0] -= shift
        slope = (found[0] - found[1]) / 2e-5
        torch.testing.assert_close(parameter.grad.view(-1)[0], slope, atol=1e-8, rtol=1e-5)


def test_meta_features_of_models_that_are_right_wrong_and_constant() -> None:
    label, weight = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0])
    right = torch.tensor([2.0, -2.0, 0.5])
    found = meta_features(torch.stack([right, -right / 2, torch.zeros(3)], 1), label, weight)
    losses = torch.tensor([-2.0, 1.0, 0.0]).exp().log1p()
    torch.testing.assert_close(found[:, 0], losses - losses.mean())
    torch.testing.assert_close(found[:, 1], torch.tensor([2.0, -1.0, 0.0]).tanh())
    torch.testing.assert_close(found[:, 2], torch.tensor([1.0, -1.0, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0, 4], (2 * torch.tensor(1.0).tanh() + torch.tensor(0.25).tanh()) / 3)
    torch.testing.assert_close(found[:, 6], torch.full((3,), 2.0).log() / 4)


def test_labels_of_rows_of_weight_zero_are_not_read_but_their_scores_are() -> None:
    stack, weights, (support, _) = make_stack(drawn=True), make_weights(), make_tasks(4, 6, seed=4)
    support["weight"][:, 4:] = 0
    before = stack.adapt(PROBLEM, weights, support)["head_weight"]
    turned = torch.where(support["weight"] > 0, support["label"], 1 - support["label"])
    torch.testing.assert_close(
        stack.adapt(PROBLEM, weights, support | {"label": turned})["head_weight"], before
    )
    louder = torch.where(support["weight"].unsqueeze(-1) > 0, support["scores"], 3 * support["scores"])
    assert not torch.allclose(
        stack.adapt(PROBLEM, weights, support | {"scores": louder})["head_weight"], before, atol=1e-3
    )


def test_the_order_of_models_means_nothing_to_the_teacher() -> None:
    stack, weights, (support, _) = make_stack(drawn=True), make_weights(), make_tasks(4, 3, seed=5)
    before = stack.adapt(PROBLEM, weights, support)["head_weight"]
    turned = stack.adapt(PROBLEM, weights, support | {"scores": support["scores"].flip(-1)})["head_weight"]
    torch.testing.assert_close(turned.flip(-1), before)


def test_zero_inner_steps_are_joint_training() -> None:
    stack, weights, (support, query) = (
        make_stack(drawn=True, inner_steps=0),
        make_weights(),
        make_tasks(4, 3, 6),
    )
    expected = get_meta_learner("joint").meta_losses(PROBLEM, weights, support, query)
    torch.testing.assert_close(stack.meta_losses(PROBLEM, weights, support, query), expected)


def test_it_finds_the_one_useful_model_from_two_labels_a_class() -> None:
    stack, weights = make_stack(), make_weights()
    optimizer = torch.optim.Adam([*weights.values(), *stack.parameters()], lr=0.02)
    for step in range(120):
        optimizer.zero_grad()
        stack.meta_losses(PROBLEM, weights, *make_tasks(32, 2, seed=100 + step)).mean().backward()
        optimizer.step()
    support, query = make_tasks(200, 2, seed=7)
    found = accuracy(stack.adapt(PROBLEM, weights, support), query)
    average = {"head_weight": torch.full((MODELS,), 1 / MODELS), "head_bias": torch.zeros(1)}
    head = get_meta_learner("logistic_head", Options(inner_steps=8))
    without_teacher = accuracy(head.adapt(PROBLEM, average, support), query)
    assert without_teacher > accuracy({name: value.expand(200, -1) for name, value in average.items()}, query)
    assert found > without_teacher + 0.04
    assert found > 0.85


def test_a_head_of_another_form_is_refused() -> None:
    head = {"head_weight": torch.zeros(3, MODELS), "head_bias": torch.zeros(3)}
    with pytest.raises(InputError, match=r"expected head_weight \[models\]"):
        Stacking().prepare(PROBLEM, head)
