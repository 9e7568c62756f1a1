"""Meta-SGD: MAML that learns, for every number it moves, how far and which way to move it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from recmeta.errors import InputError
from recmeta.meta.inner_loop import Rates
from recmeta.meta.interface import Options, Problem, Weights
from recmeta.meta.maml import Maml


class MetaSgd(Maml):
    """Meta-SGD (Li et al. 2017, equation 2): ``fast = θ - α * gradient``, with α of the shape of θ.

    α is learnt together with θ, from ``inner_rate`` on; where it becomes negative the step goes uphill.
    A weight that each task brings along has one α for all its numbers. Without ``second_order`` the
    gradients count as constants and α is still learnt.
    """

    name: ClassVar[str] = "meta_sgd"

    def __init__(self, options: Options | None = None) -> None:
        """Have no rates yet: they need the shapes of weights."""
        super().__init__(options)
        self.second_order = self.options.second_order
        self.rates = nn.ParameterDict()

    def prepare(self, problem: Problem, weights: Weights) -> None:
        """Make the rates, all ``inner_rate``."""
        for name, value in self.narrowed(problem, weights)[1].items():
            like = value.new_empty(()) if name in problem.per_task else value.detach()
            self.rates[name] = nn.Parameter(torch.full_like(like, self.options.inner_rate))

    def _rates(self) -> Rates:
        if not self.rates:
            raise InputError("meta_sgd: expected prepare(problem, weights) to be called first")
        return dict(self.rates.items())
