"""Self-training takes from unlabelled rows what a teacher lets through, and is no worse where that is bad."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recmeta.errors import InputError, SchemaError
from recmeta.meta.few_labels.self_training import Judged, SelfTraining, SelfTrainingOptions
from recmeta.meta.interface import Data, Options, Problem, Weights, losses_under
from recmeta.meta.registry import get_meta_learner

COLUMNS = 6


def scores(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
    return data["x"] @ weights["slope"] + weights["level"]


def loss(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
    each = binary_cross_entropy_with_logits(scores(weights, data), data["label"], reduction="none")
    return (each * data["weight"]).sum() / data["weight"].sum()


PROBLEM = Problem(loss=loss)


def make_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    start = {"slope": torch.full((COLUMNS,), 0.3, dtype=dtype), "level": torch.zeros((), dtype=dtype)}
    return {name: value.requires_grad_() for name, value in start.items()}


def make_tasks(
    tasks: int = 6, few: int = 8, many: int = 100, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Labelled, unlabelled and later rows; each task has a direction of its own near a common one."""
    draw = torch.Generator().manual_seed(seed)
    slope = 1 + torch.randn(tasks, COLUMNS, 1, generator=draw, dtype=dtype)

    def rows(count: int) -> dict[str, Tensor]:
        x = torch.randn(tasks, count, COLUMNS, generator=draw, dtype=dtype)
        chance = torch.sigmoid(2 * (x @ slope).squeeze(-1))
        label = (torch.rand(tasks, count, generator=draw, dtype=dtype) < chance).to(dtype)
        return {"x": x, "truth": label, "label": label, "weight": torch.ones_like(label)}

    support, unlabelled, query = rows(few), rows(many), rows(200)
    return support, {"x": unlabelled["x"], "truth": unlabelled["truth"]}, query


def make_trainer(
    kind: type[SelfTraining] = SelfTraining, *, steps: int = 3, **options: float
) -> SelfTraining:
    torch.manual_seed(0)
    learner = get_meta_learner("maml", Options(inner_steps=steps, inner_rate=0.5))
    return kind(learner, scores, SelfTrainingOptions(**options))  # type: ignore[arg-type]


class KnowsTheTruth(SelfTraining):
    """Accepts what is right and penalises what is wrong; the other way round with ``honest = False``."""

    honest = True

    def judge(
        self, problem: Problem, weights: Weights, support: Data, fast: Weights, unlabelled: Data
    ) -> Judged:
        judged = super().judge(problem, weights, support, fast, unlabelled)
        right = (judged.label == judged.data["truth"]).to(judged.label.dtype)
        accept = right if self.honest else 1 - right
        return judged._replace(accept=accept, penalise=1 - accept)


class Liar(KnowsTheTruth):
    honest = False


def test_a_teacher_that_ignores_all_rows_leaves_supervised_adaptation() -> None:
    trainer, weights, (support, unlabelled, query) = make_trainer(), make_weights(), make_tasks()
    with torch.no_grad():
        trainer.teacher.out.bias.copy_(torch.tensor([-200.0, -90.0, 0.0]))
    supervised = trainer.learner.meta_losses(PROBLEM, weights, support, query)
    found = trainer.meta_losses(PROBLEM, weights, support, unlabelled, query)
    torch.testing.assert_close(found, supervised, atol=1e-6, rtol=0)


def test_the_student_learns_the_label_as_far_as_accepted_and_the_opposite_as_far_as_penalised() -> None:
    trainer, weights, (support, unlabelled, _) = (
        make_trainer(steps=1, strength=2.0, checked=False),
        make_weights(),
        make_tasks(),
    )
    torch.nn.init.normal_(trainer.teacher.out.weight)
    supervised = trainer.learner.adapt(PROBLEM, weights, support)
    judged = trainer.judge(PROBLEM, weights, support, supervised, unlabelled)
    student = trainer.adapt(PROBLEM, weights, support, unlabelled)
    for task in range(6):
        logits = scores(weights, {"x": support["x"][task]})
        total = binary_cross_entropy_with_logits(logits, support["label"][task], reduction="sum")
        each = 2.0 * 8 / judged.chosen[task].sum()
        logits = scores(weights, {"x": judged.data["x"][task]})
        for label, share in (
            (judged.label, judged.accept),
            (1 - judged.label, judged.penalise),
        ):
            rows = binary_cross_entropy_with_logits(logits, label[task], reduction="none")
            total = total + each * (share[task] * judged.chosen[task] * rows).sum()
        counted = 8 + each * ((judged.accept + judged.penalise) * judged.chosen)[task].sum()
        slope = torch.autograd.grad(total / counted.detach(), weights["slope"], retain_graph=True)[0]
        expected = weights["slope"] - 0.5 * slope
        torch.testing.assert_close(student["slope"][task], expected, atol=1e-5, rtol=1e-5)


def test_the_teachers_gradient_is_the_slope_of_the_students_loss_on_later_rows() -> None:
    trainer = make_trainer().double()
    torch.nn.init.normal_(trainer.teacher.out.weight, std=0.3)
    weights, tasks = make_weights(torch.float64), make_tasks(dtype=torch.float64)
    trainer.meta_losses(PROBLEM, weights, *tasks).mean().backward()
    for name, parameter in trainer.teacher.named_parameters():
        assert parameter.grad is not None, name
        for at in range(min(4, parameter.numel())):
            found = []
            for shift in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[at] += shift
                    found.append(trainer.meta_losses(PROBLEM, weights, *tasks).mean())
                    parameter.view(-1)[at] -= shift
            slope = (found[0] - found[1]) / 2e-5
            torch.testing.assert_close(parameter.grad.view(-1)[at], slope, atol=1e-8, rtol=1e-5)


def test_many_tasks_at_once_are_one_task_after_the_other() -> None:
    trainer, weights, (support, unlabelled, _) = make_trainer(rounds=2), make_weights(), make_tasks()
    torch.nn.init.normal_(trainer.teacher.out.weight)
    together = trainer.adapt(PROBLEM, weights, support, unlabelled)
    for task in range(6):
        one = [
            {name: value[task : task + 1] for name, value in data.items()} for data in (support, unlabelled)
        ]
        alone = trainer.adapt(PROBLEM, weights, one[0], one[1])
        torch.testing.assert_close(alone["slope"][0], together["slope"][task], atol=1e-5, rtol=1e-5)


def test_a_perfect_teacher_helps_and_the_check_keeps_most_of_it() -> None:
    weights, (support, unlabelled, query) = make_weights(), make_tasks(tasks=40)
    trainer = make_trainer(KnowsTheTruth, steps=10, strength=4.0)
    supervised = trainer.learner.meta_losses(PROBLEM, weights, support, query).mean()
    checked = losses_under(PROBLEM, trainer.adapt(PROBLEM, weights, support, unlabelled), query).mean()
    student = trainer.meta_losses(PROBLEM, weights, support, unlabelled, query).mean()
    assert student < supervised - 0.05
    assert checked < supervised - 0.6 * (supervised - student)  # eight labels cannot tell all


def test_an_adversarial_teacher_is_rejected_by_the_labelled_rows() -> None:
    weights, (support, unlabelled, query) = make_weights(), make_tasks(tasks=40)
    trainer = make_trainer(Liar, steps=10, strength=4.0)
    supervised = trainer.learner.meta_losses(PROBLEM, weights, support, query).mean()
    checked = losses_under(PROBLEM, trainer.adapt(PROBLEM, weights, support, unlabelled), query).mean()
    student = trainer.meta_losses(PROBLEM, weights, support, unlabelled, query).mean()
    assert student > supervised + 0.3
    assert checked < supervised + 0.05  # the few tasks where eight labels are fooled
    assert trainer.helps(PROBLEM, weights, support, unlabelled).float().mean() < 0.1


def teach(trainer: SelfTraining, weights: Weights, *, noise: bool, steps: int = 40) -> None:
    optimizer = torch.optim.Adam(trainer.teacher.parameters(), lr=0.05)
    for step in range(steps):
        support, unlabelled, query = make_tasks(tasks=8, seed=1000 + step)
        optimizer.zero_grad()
        rows = scramble(unlabelled) if noise else unlabelled
        trainer.meta_losses(PROBLEM, weights, support, rows, query).mean().backward()
        optimizer.step()


def scramble(unlabelled: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of no task: far away, in directions that mean nothing."""
    draw = torch.Generator().manual_seed(0)
    return unlabelled | {"x": 10 * torch.randn(unlabelled["x"].shape, generator=draw)}


def test_unlabelled_rows_that_are_noise_do_not_hurt_once_the_teacher_has_seen_such() -> None:
    weights, (support, unlabelled, query) = make_weights(), make_tasks(tasks=40, seed=5)
    trainer = make_trainer(strength=4.0)
    supervised = trainer.learner.meta_losses(PROBLEM, weights, support, query).mean()
    untaught = trainer.meta_losses(PROBLEM, weights, support, scramble(unlabelled), query).mean()
    teach(trainer, weights, noise=True)
    taught = trainer.meta_losses(PROBLEM, weights, support, scramble(unlabelled), query).mean()
    assert untaught > supervised + 0.01
    assert taught < supervised + 0.005


def test_a_teacher_learnt_over_tasks_helps_on_new_tasks() -> None:
    weights, (support, unlabelled, query) = make_weights(), make_tasks(tasks=60, seed=6)
    trainer = make_trainer(strength=2.0)
    teach(trainer, weights, noise=False)
    supervised = trainer.learner.meta_losses(PROBLEM, weights, support, query)
    gains = (supervised - trainer.meta_losses(PROBLEM, weights, support, unlabelled, query)).detach()
    assert gains.mean() > 2 * gains.std() / len(gains) ** 0.5  # two standard errors over tasks


def test_only_the_surest_rows_of_each_label_above_the_threshold_are_taken() -> None:
    trainer, weights, (support, unlabelled, _) = (
        make_trainer(cap=7, threshold=0.6),
        make_weights(),
        make_tasks(),
    )
    fast = {name: value.detach() for name, value in trainer.learner.adapt(PROBLEM, weights, support).items()}
    judged = trainer.judge(PROBLEM, weights, support, fast, unlabelled)
    assert judged.chosen.shape == (6, 14)
    for task in range(6):
        one = {name: value[task] for name, value in fast.items()}
        own = torch.sigmoid(scores(one, {"x": unlabelled["x"][task]}))
        for label, sure in ((1, own), (0, 1 - own)):
            taken = (judged.chosen[task] > 0) & (judged.label[task] == label)
            expected = sure[sure > 0.6].sort(descending=True).values[:7]
            found = torch.sigmoid(scores(one, {"x": judged.data["x"][task]}))[taken]
            torch.testing.assert_close(found if label else 1 - found, expected)


def test_columns_and_options_that_do_not_fit_are_refused() -> None:
    trainer, weights, (support, unlabelled, query) = make_trainer(), make_weights(), make_tasks()
    with pytest.raises(SchemaError, match="label and weight"):
        trainer.adapt(PROBLEM, weights, support, {"x": unlabelled["x"]})
    few = {name: value[:, :3] for name, value in support.items()}
    with pytest.raises(InputError, match="at least 4 labelled rows a task, found 3"):
        trainer.meta_losses(PROBLEM, weights, few, unlabelled, query)
    for wrong in ({"rounds": 0}, {"folds": 1}, {"threshold": 0.4}, {"cap": 0}, {"strength": 0.0}):
        with pytest.raises(InputError, match=f"expected {next(iter(wrong))}"):
            SelfTrainingOptions(**wrong)  # type: ignore[arg-type]
