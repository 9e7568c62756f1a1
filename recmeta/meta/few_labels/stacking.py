"""Stacking with a teacher: combine models made for other tasks, from one to a few labels of a new task.

It must never know what the bottom-level models are: it reads their scores as a row's features.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from recmeta.errors import InputError
from recmeta.meta.interface import Problem, Weights
from recmeta.meta.logistic_head import LogisticHead, solve_logistic
from recmeta.meta.solved_head import WEIGHT

META_FEATURES = ("loss", "separation", "agreement", "spread", "decided", "lean", "labelled")
"""What the teacher sees of a bottom-level model on a task; `meta_features` says what each means."""


class Stacking(LogisticHead):
    """A logistic stack (Wolpert 1992) whose prior for a new task is what a teacher thinks of each model.

    The problem's ``embed`` gives the scores s of M bottom-level models as a row's features. The student is
    the head, a logit ``w · s + b``. The teacher is a small net, the same for each model, that reads how
    model m fares on the task's few labelled rows (`meta_features`; weights as functions of meta-features:
    feature-weighted stacking, Sill et al. 2009) and answers with a value v_m and a log-precision r_m.
    The student is then the most probable head under the prior which those make:

        w0 = head_weight + scale * softmax(v)
        w, b = argmin of  sum of weight * log-loss
                          + proximal / 2 * (sum over m of exp(r_m) (w_m - w0_m)² + 0.1 (b - head_bias)²)

    So the student is rewarded for weight on models of high value and penalised for weight on others, until
    labels say otherwise; with few labels the teacher decides, with many the labels do. Teacher, scale and
    shared head are learnt over training tasks from the student's query loss, through the solution
    (``inner_steps`` Newton steps, as in the logistic head). Every model is read alike, so the order of
    models means nothing to the teacher. Start: the plain average of the models. Labels are 0 or 1.
    """

    name: ClassVar[str] = "stacking"

    def prepare(self, problem: Problem, weights: Weights) -> None:
        """Make the teacher.

        Raises:
            InputError: no ``embed``, or a head that is not [models] with [1].
        """
        super().prepare(problem, weights)
        if weights[WEIGHT].dim() != 1:
            raise InputError(
                f"meta-learner {self.name}: expected {WEIGHT} [models], found {tuple(weights[WEIGHT].shape)}"
            )
        self.scale = nn.Parameter(weights[WEIGHT].new_ones(()))
        answer = nn.Linear(16, 2)
        nn.init.zeros_(answer.weight)
        nn.init.zeros_(answer.bias)
        self.teacher = nn.Sequential(nn.Linear(len(META_FEATURES), 16), nn.Tanh(), answer).to(self.scale)

    def solve(
        self, features: Tensor, offsets: Tensor, targets: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the addition to the shared head: the teacher's prior, and what labels make of it."""
        value, precision = self.teacher(meta_features(features, targets[:, 0], weight)).unbind(-1)
        prior = self.scale * value.softmax(-1)
        # A weight of precision e^r on a feature is a weight of precision 1 on that feature times e^(-r/2).
        shrink = torch.exp(-precision / 2)
        moved, intercept = solve_logistic(
            features * shrink,
            offsets + (features @ prior).unsqueeze(-1),
            targets,
            weight,
            precision=self.options.proximal,
            steps=self.options.inner_steps,
        )
        return prior + shrink * moved, intercept


def meta_features(scores: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Return how each bottom-level model fares on one task, [models, 7].

    On labelled rows, those whose weight is above zero:

    - loss: weighted mean log-loss of its logits, less the mean of that over models;
    - separation: mean of ``tanh((s_i - s_j) / 2)`` over pairs of a row i of label 1 and a row j of label 0,
      which no offset of the scores changes; 0 without such a pair.

    On all rows, whose labels are not read:

    - agreement: correlation with the mean score of all models;
    - spread: logarithm of one plus the standard deviation of its scores;
    - decided, lean: means of ``tanh(|s| / 2)`` and of ``tanh(s / 2)``: how sure it is, and of what.

    Of the task: labelled, a quarter of the logarithm of the number of labelled rows.

    Args:
        scores: logits, [rows, models].
        label: 0 or 1, [rows].
        weight: [rows].
    """
    share = weight / weight.sum()
    each = binary_cross_entropy_with_logits(scores, label.unsqueeze(-1).expand_as(scores), reduction="none")
    loss = share @ each
    pairs = (share * label)[:, None] * (share * (1 - label))[None, :]
    gaps = torch.tanh((scores[:, None, :] - scores[None, :, :]) / 2)
    separation = torch.einsum("ij,ijm->m", pairs, gaps) / pairs.sum().clamp_min(1e-12)
    centred = scores - scores.mean(0)
    crowd = centred.mean(1)
    variance = centred.square().mean(0) + 1e-6  # a constant model: correlation 0, and a finite derivative
    agreement = (crowd @ centred) / len(scores) / (variance * (crowd.square().mean() + 1e-6)).sqrt()
    decided = torch.tanh(scores / 2)
    return torch.stack(
        (
            loss - loss.mean(),
            separation,
            agreement,
            variance.sqrt().log1p(),
            decided.abs().mean(0),
            decided.mean(0),
            (weight > 0).sum().to(scores.dtype).log().expand_as(loss) / 4,
        ),
        -1,
    )
