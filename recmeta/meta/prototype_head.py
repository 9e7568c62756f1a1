"""Prototypical networks as a linear head: each task's classes are the means of their rows."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from recmeta.errors import InputError
from recmeta.meta.interface import Options, Problem, Weights
from recmeta.meta.solved_head import SolvedHead


class PrototypeHead(SolvedHead):
    """Nearest class mean (Snell et al. 2017; the linear form is their section 2.4).

    A class's logit is ``-τ |f - c_k|²``, with c_k the weighted mean of its support features f. Without
    ``|f|²``, which all classes share, that is linear: ``w_k = 2 τ c_k, b_k = -τ |c_k|²``, and for one
    output, class 1 against class 0, ``w = 2 τ (c_1 - c_0), b = τ (|c_0|² - |c_1|²)``. It is added to the
    head as it is. Where a class has no rows the head stays as it is. The temperature τ > 0 is learnt; it
    starts at 1 / d, for features of about unit size.
    """

    name: ClassVar[str] = "prototype_head"

    def __init__(self, options: Options | None = None) -> None:
        """Have no temperature yet: it is of the head's type."""
        super().__init__(options)
        self.log_temperature: nn.Parameter | None = None

    def prepare(self, problem: Problem, weights: Weights) -> None:
        """Check the head, and make the logarithm of the temperature."""
        super().prepare(problem, weights)
        head = weights["head_weight"].detach()
        self.log_temperature = nn.Parameter(head.new_tensor(-math.log(head.shape[-1])))

    def solve(
        self, features: Tensor, offsets: Tensor, targets: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the addition to the shared head."""
        if self.log_temperature is None:
            raise InputError("prototype_head: expected prepare(problem, weights) to be called first")
        temperature = self.log_temperature.to(features.dtype).exp()
        one = targets.shape[1] == 1
        belongs = torch.cat([1.0 - targets, targets], dim=1) if one else targets
        means, present = class_means(features, belongs * weight[:, None])
        slope, intercept = 2.0 * means, -means.square().sum(-1)
        if one:
            slope, intercept = slope[1:] - slope[:1], intercept[1:] - intercept[:1]
        moves = temperature * present.all()
        return moves * slope, moves * intercept


def class_means(features: Tensor, belongs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean features of each class, [classes, d], and whether it has any row, [classes].

    Args:
        features: [rows, d].
        belongs: [rows, classes], how much a row counts in a class, zero or above.
    """
    total = belongs.sum(0)
    present = total > 0
    return belongs.T @ features / torch.where(present, total, 1.0)[:, None], present
