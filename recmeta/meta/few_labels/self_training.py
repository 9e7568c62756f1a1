"""Self-training with a teacher: a task's unlabelled rows join its few labelled ones, as far as that pays.

It must never know what a row is, nor which meta-learner adapts: rows have a label and a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from recmeta.errors import InputError, SchemaError
from recmeta.meta.interface import Data, MetaLearner, Problem, Weights, for_each_task, losses_under

Scores = Callable[[Weights, Data], Tensor]
"""The log-odds of label 1 for each row of one task's data, [rows]; called under ``torch.func.vmap``."""

FEATURES = ("confidence", "before", "committee", "spread", "gain", "label", "share", "labelled")
"""What the teacher sees of a row; `SelfTraining.features` says what each means."""


@dataclass(frozen=True, kw_only=True)
class SelfTrainingOptions:
    """How many unlabelled rows are taken, and how much they may count."""

    rounds: int = 1
    """How often the student labels anew. Only the last one's student teaches, for labels are constants."""
    folds: int = 4
    """Parts of the labelled rows; each part is left out once, for the committee and for the check."""
    threshold: float = 0.5
    """Least probability that the adapted model gives its own label. The teacher weighs confidence itself,
    so this only saves rows; raise it where a teacher is not trained."""
    cap: int = 64
    """Most rows of each label, the most confident first: without it the common label is all there is."""
    strength: float = 1.0
    """All unlabelled rows together count at most this many times as much as all labelled ones."""
    checked: bool = True
    """Whether a task keeps its student only where left-out labelled rows say that it is better. So few rows
    also reject much that is good (examples/fraud.py): leave it out where the teacher knows such tasks."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no self-training."""
        expected = (
            ("rounds from 1", self.rounds >= 1, self.rounds),
            ("folds from 2", self.folds >= 2, self.folds),
            ("threshold from 0.5, below 1", 0.5 <= self.threshold < 1, self.threshold),
            ("cap from 1", self.cap >= 1, self.cap),
            ("strength above 0", self.strength > 0, self.strength),
        )
        for text, holds, found in expected:
            if not holds:
                raise InputError(f"self-training: expected {text}, found {found}")


class Judged(NamedTuple):
    """Unlabelled rows that the adapted model labelled, and what the teacher says of them; [tasks, rows]."""

    data: dict[str, Tensor]
    label: Tensor
    """The adapted model's own label, 0 or 1."""
    chosen: Tensor
    """Whether the row passed the threshold and the cap; rows that did not only fill up the shape."""
    accept: Tensor
    """Share of the row's weight with which the student learns the label."""
    penalise: Tensor
    """Share with which it learns the opposite. What is left of 1 is ignored."""


class Teacher(nn.Module):
    """From a row's features to three shares that sum to 1: accept the label, penalise it, ignore the row."""

    def __init__(self, width: int = 16) -> None:
        """Start by ignoring most and accepting some, alike for all rows."""
        super().__init__()
        self.hidden = nn.Linear(len(FEATURES), width)
        self.out = nn.Linear(width, 3)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([0.0, -3.0, 1.0]))

    def forward(self, features: Tensor) -> Tensor:
        """Return the shares, [..., 3], for features [..., 8]."""
        shares: Tensor = self.out(torch.tanh(self.hidden(features))).softmax(-1)
        return shares


class SelfTraining(nn.Module):
    """Adapt to few labelled and many unlabelled rows of a task; the teacher is learnt over other tasks.

    Labels are 0 or 1. A round:

    1. The adapted model labels the unlabelled rows, and keeps those that it is sure of.
    2. The teacher gives row i the shares ``a_i`` (accept), ``b_i`` (penalise), by its features.
    3. The student is adapted from the same start, by any meta-learner, on the labelled rows and on each
       chosen row with label y_i at weight ``c a_i`` and label ``1 - y_i`` at weight ``c b_i``, where
       ``c = strength * (weight of labelled rows) / (chosen rows)``.

    Where the teacher ignores all rows this is the supervised adaptation, exactly. In training tasks the
    student's loss on later labelled rows is the teacher's signal: its gradient goes through the student's
    adaptation into ``a`` and ``b`` (learning to reweight, Ren et al. 2018, equation 5; the student's
    feedback to the teacher, Pham et al. 2021, Meta Pseudo Labels, equation 2). In a new task the teacher
    is applied as learnt. Labels and features count as constants.

    With ``checked``, a task keeps its student only where the same procedure, run without one part of the
    labelled rows, has the lower loss on that part than supervised adaptation has, summed over parts.
    """

    def __init__(
        self, learner: MetaLearner, scores: Scores, options: SelfTrainingOptions | None = None
    ) -> None:
        """Take what adapts, and the log-odds that its weights give to rows."""
        super().__init__()
        self.learner = learner
        self.scores = scores
        self.options = SelfTrainingOptions() if options is None else options
        self.teacher = Teacher()

    def meta_losses(
        self, problem: Problem, weights: Weights, support: Data, unlabelled: Data, query: Data
    ) -> Tensor:
        """Return each task's query loss under its student, [tasks]; it teaches teacher and weights alike.

        Args:
            problem: a loss that is a mean over rows weighted by ``weight``, and takes labels between 0 and 1.
            weights: where every task starts.
            support: the few labelled rows, [tasks, rows, ...], with ``label`` and ``weight``; at least
                `folds` of them count, and come before those that do not.
            unlabelled: rows with the same columns but ``label`` and ``weight``, [tasks, rows, ...].
            query: later labelled rows.

        Raises:
            SchemaError: columns do not fit.
        """
        return losses_under(problem, self._student(problem, weights, support, unlabelled), query)

    def adapt(self, problem: Problem, weights: Weights, support: Data, unlabelled: Data) -> dict[str, Tensor]:
        """Return each task's weights, [tasks, ...]: the student's, or the supervised ones where it failed.

        Raises:
            SchemaError: columns do not fit.
        """
        student = self._student(problem, weights, support, unlabelled)
        if not self.options.checked:
            return student
        supervised = self.learner.adapt(problem, weights, support)
        kept = self.helps(problem, weights, support, unlabelled)
        return {
            name: torch.where(kept.view(-1, *[1] * (value.dim() - 1)), value, supervised[name])
            for name, value in student.items()
        }

    @torch.no_grad()
    def helps(self, problem: Problem, weights: Weights, support: Data, unlabelled: Data) -> Tensor:
        """Return for each task whether self-training lowers the loss of left-out labelled rows, [tasks]."""
        gains = []
        for rest, left_out in self._folds(support):
            student = self._student(problem, weights, rest, unlabelled)
            supervised = self.learner.adapt(problem, weights, rest)
            before, after = (losses_under(problem, fast, left_out) for fast in (supervised, student))
            gains.append((before - after) * left_out["weight"].sum(1))
        return torch.stack(gains).sum(0) > 0

    @torch.no_grad()
    def features(
        self,
        problem: Problem,
        weights: Weights,
        support: Data,
        fast: Weights,
        rows: Data,
        label: Tensor,
        chosen: Tensor,
    ) -> Tensor:
        """Return what the teacher sees of rows that ``fast`` labelled, [tasks, rows, 8].

        A margin is the log-odds of the row's own label, shrunk by ``asinh``.

        - confidence, before, committee: margin under ``fast``, under ``weights``, and the mean over the
          models adapted without one part of the labelled rows;
        - spread: standard deviation over that committee;
        - gain: how far a step on the part that a member has not seen would raise its margin here, over
          the task's root mean square. To first order that is ``<gradient of the labelled loss, gradient
          of this row's loss>``: what learning this label would do for labelled rows (Ren et al. 2018);
        - label, its share among these rows less its share among the labelled ones, and the logarithm of
          the number of labelled rows.
        """
        side = 2 * label - 1
        score = vmap(self.scores)
        everywhere = for_each_task(problem, weights, label.shape[0])
        committee, moves = [], []
        for rest, left_out in self._folds(support):
            member = self.learner.adapt(problem, weights, rest)
            slopes = vmap(grad(problem.loss))(dict(member), dict(left_out))
            rate = self.learner.options.inner_rate
            stepped = {name: value - rate * slopes[name] for name, value in member.items()}
            committee.append(side * score(member, dict(rows)))
            moves.append(side * score(stepped, dict(rows)) - committee[-1])
        margins, gain = torch.stack(committee), torch.stack(moves).mean(0)
        labelled = support["weight"].sum(1, keepdim=True)
        ones = (support["label"] * support["weight"]).sum(1, keepdim=True) / labelled
        ones_here = (label * chosen).sum(1, keepdim=True) / chosen.sum(1, keepdim=True).clamp_min(1)
        return torch.stack(
            (
                torch.asinh(side * score(dict(fast), dict(rows))),
                torch.asinh(side * score(everywhere, dict(rows))),
                torch.asinh(margins.mean(0)),
                torch.asinh(margins.std(0)),
                gain / (gain.square().mean(1, keepdim=True).sqrt() + 1e-8),
                side,
                side * (ones_here - ones),
                labelled.log().expand_as(label) / 4,  # of the order of 1 for 10 to 100 rows
            ),
            -1,
        )

    def judge(
        self, problem: Problem, weights: Weights, support: Data, fast: Weights, unlabelled: Data
    ) -> Judged:
        """Label unlabelled rows by each task's weights ``fast``, and ask the teacher about them."""
        with torch.no_grad():
            logits = vmap(self.scores)(dict(fast), dict(unlabelled))
            chosen, at = self._surest(logits)
            rows = {name: _rows_at(value, at) for name, value in unlabelled.items()}
            label = (logits.gather(1, at) > 0).to(logits.dtype)
        shares = self.teacher(self.features(problem, weights, support, fast, rows, label, chosen))
        return Judged(rows, label, chosen, shares[..., 0], shares[..., 1])

    def _student(
        self, problem: Problem, weights: Weights, support: Data, unlabelled: Data
    ) -> dict[str, Tensor]:
        _check_columns(support, unlabelled)
        with torch.no_grad():
            student = self.learner.adapt(problem, weights, support)
        for _ in range(self.options.rounds):
            judged = self.judge(problem, weights, support, student, unlabelled)
            student = self.learner.adapt(problem, weights, self._joined(support, judged))
        return student

    def _surest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether each chosen row passes the threshold, and where it is: the surest of each label."""
        cap = min(self.options.cap, logits.shape[1])
        at = torch.cat([side.topk(cap, dim=1).indices for side in (logits, -logits)], 1)
        own = torch.cat([logits.new_ones(cap), -logits.new_ones(cap)])
        probability = torch.sigmoid(logits.gather(1, at) * own)
        return (probability > self.options.threshold).to(logits.dtype), at

    def _joined(self, support: Data, judged: Judged) -> dict[str, Tensor]:
        """Return the labelled rows followed by the judged ones, as rows with a label and a weight."""
        total = support["weight"].sum(1, keepdim=True)
        each = self.options.strength * total / judged.chosen.sum(1, keepdim=True).clamp_min(1)
        share = judged.accept + judged.penalise
        ones = judged.accept * judged.label + judged.penalise * (1 - judged.label)
        added = judged.data | {"label": ones / share, "weight": each * judged.chosen * share}
        return {name: torch.cat([value, added[name].to(value.dtype)], 1) for name, value in support.items()}

    def _folds(self, support: Data) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Split labelled rows: every n-th row is left out, the others remain."""
        count = next(iter(support.values())).shape[1]
        folds = self.options.folds
        if count < folds:
            raise InputError(f"self-training: expected at least {folds} labelled rows a task, found {count}")
        part = torch.arange(count, device=next(iter(support.values())).device) % folds
        return [
            (
                {name: value[:, part != fold] for name, value in support.items()},
                {name: value[:, part == fold] for name, value in support.items()},
            )
            for fold in range(folds)
        ]


def _rows_at(value: Tensor, at: Tensor) -> Tensor:
    """Return ``value[task, at[task]]``: [tasks, chosen rows, ...]."""
    return value[torch.arange(at.shape[0], device=at.device).unsqueeze(1), at]


def _check_columns(support: Data, unlabelled: Data) -> None:
    if not {"label", "weight"} <= support.keys() or unlabelled.keys() != support.keys() - {"label", "weight"}:
        raise SchemaError(
            "self-training: expected labelled rows with label and weight, and unlabelled rows with the other "
            f"columns, found {sorted(support)} and {sorted(unlabelled)}"
        )
