"""R2-D2: a ridge regression head for each task, in closed form, differentiated through."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from recmeta.errors import InputError
from recmeta.meta.interface import Options, Problem, Weights
from recmeta.meta.solved_head import SolvedHead

FIRST_SCALE = 2.0
"""Where the learnt scale starts: around a logit of 0, twice the expected target (-1 or 1) is the logit."""


class RidgeHead(SolvedHead):
    """Ridge regression as the inner loop (R2-D2, Bertinetto et al. 2019, equations 4 and 6).

    Adds ``α (features @ w + b) + β`` to the logits, where ``w, b`` minimise
    ``sum of weight * (features @ w + b - y)² + λ |w|²``. The targets are ``y = 2 (label - p)``, with p
    the probability under the head as it is: the ±1 of the paper where p is a half, and elsewhere what
    that head leaves to explain. The scale α, the bias β and λ > 0 are learnt; λ starts at ``proximal``.
    With several outputs ``label`` is one-hot, and β, the same for each class, changes nothing.
    """

    name: ClassVar[str] = "ridge_head"

    def __init__(self, options: Options | None = None) -> None:
        """Have no numbers of its own yet: they are of the head's type."""
        super().__init__(options)
        self.learnt = nn.ParameterDict()

    def prepare(self, problem: Problem, weights: Weights) -> None:
        """Check the head, and make α, β and the logarithm of λ."""
        super().prepare(problem, weights)
        start = {"scale": FIRST_SCALE, "bias": 0.0, "log_strength": math.log(self.options.proximal)}
        for name, value in start.items():
            self.learnt[name] = nn.Parameter(weights["head_bias"].detach().new_tensor(value))

    def solve(
        self, features: Tensor, offsets: Tensor, targets: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the addition to the shared head."""
        if not self.learnt:
            raise InputError("ridge_head: expected prepare(problem, weights) to be called first")
        learnt = {name: value.to(features.dtype) for name, value in self.learnt.items()}
        expected = torch.sigmoid(offsets) if offsets.shape[1] == 1 else torch.softmax(offsets, dim=-1)
        slope, intercept = solve_ridge(
            features, 2.0 * (targets - expected), weight, strength=learnt["log_strength"].exp()
        )
        return learnt["scale"] * slope, learnt["scale"] * intercept + learnt["bias"]


def solve_ridge(
    features: Tensor, targets: Tensor, weight: Tensor, *, strength: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimise ``sum of weight * (features @ w.T + b - targets)² + strength * |w|²``.

    The intercept is free, so features and targets are centred first. With fewer rows than features the
    system has a row and a column for each row instead, by the identity of Woodbury.

    Args:
        features: [rows, d].
        targets: [rows, outputs].
        weight: [rows].
        strength: above zero, a scalar.

    Returns:
        w [outputs, d] and b [outputs].
    """
    rows, size = features.shape
    share = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    middle, level = share @ features, share @ targets
    root = weight.clamp(min=torch.finfo(weight.dtype).tiny).sqrt()[:, None]  # the root of 0 has no slope
    left, right = root * (features - middle), root * (targets - level)
    if rows < size:
        system = left @ left.T + strength * torch.eye(rows, dtype=left.dtype, device=left.device)
        slope = (left.T @ torch.linalg.solve(system, right)).T
    else:
        system = left.T @ left + strength * torch.eye(size, dtype=left.dtype, device=left.device)
        slope = torch.linalg.solve(system, left.T @ right).T
    return slope, level - slope @ middle
