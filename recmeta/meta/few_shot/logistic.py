"""Logistic regression on features as a few-shot classifier."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import vmap

from recmeta.meta.few_shot.interface import FewShotClassifier, one_hot
from recmeta.meta.logistic_head import solve_logistic


class LogisticClassifier(FewShotClassifier):
    """The logistic sibling of R2-D2 (LR-D2, Bertinetto et al. 2019, section 3.3), for any number of ways.

    Softmax regression of the labels on the support rows' features, with a prior of the given
    precision, by damped Newton steps that are differentiated through. Answers are its logits times a
    learnt α > 0: what is right for few rows is too cautious or too bold for the query.
    """

    def __init__(
        self, embedding: Callable[[Tensor], Tensor], *, precision: float = 1.0, steps: int = 3
    ) -> None:
        """Take the embedding, the prior's precision and the number of Newton steps."""
        super().__init__(embedding)
        self.precision = precision
        self.steps = steps
        self.log_scale = nn.Parameter(torch.zeros(()))

    def answers(self, known: Tensor, label: Tensor, asked: Tensor, ways: int) -> Tensor:
        """Solve each task's regression and score its query rows."""
        targets = one_hot(label, ways, known)
        solve = partial(solve_logistic, precision=self.precision, steps=self.steps)
        ones = known.new_ones(label.shape)
        slope, intercept = vmap(solve)(known, torch.zeros_like(targets), targets, ones)
        return (self.log_scale.exp() * (asked @ slope.mT + intercept.unsqueeze(1))).log_softmax(-1)
