"""A logistic head for each task, by Newton's method from the shared head, differentiated through."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from recmeta.meta.solved_head import SolvedHead

INTERCEPT_SHARE = 0.1
"""The intercept's precision as a share of that of the weights: weak, because tasks differ in their base
rate first, and above zero, because a task whose rows are all of one class would have no solution."""


class LogisticHead(SolvedHead):
    """The head that is most probable after the task's rows, given that it is near the shared one.

    Minimises ``sum of weight * log-loss + proximal / 2 * (|w - w0|² + 0.1 (b - b0)²)``, logistic
    regression under a normal prior with its mean at the shared head (w0, b0) and precision ``proximal``.
    The loss is a sum, so that few rows move little. ``inner_steps`` damped Newton steps are made and
    differentiated through (the logistic regression head of Bertinetto et al. 2019, section 3.3; there
    the prior is at zero).
    """

    name: ClassVar[str] = "logistic_head"

    def solve(
        self, features: Tensor, offsets: Tensor, targets: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the addition to the shared head."""
        return solve_logistic(
            features,
            offsets,
            targets,
            weight,
            precision=self.options.proximal,
            steps=self.options.inner_steps,
        )


def solve_logistic(
    features: Tensor, offsets: Tensor, targets: Tensor, weight: Tensor, *, precision: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Fit logits ``offsets + features @ w.T + b`` by damped Newton steps from zero.

    Undamped steps diverge where classes are nearly separable. Along a step that changes logits by at
    most D, the third derivative is at most D times the second, so that ``log(1 + D) / D`` of the step
    minimises an upper bound of the objective: it never rises, and near the end steps are whole
    (generalised self-concordance, Bach 2010; this length, Sun & Tran-Dinh 2019). With fewer rows than
    features the steps are made in the space that the rows span, which no step leaves.

    Args:
        features: [rows, d].
        offsets: [rows, outputs], logits that are there already.
        targets: [rows, outputs]; for one output the share of class 1, else one-hot.
        weight: [rows].
        precision: of the prior at zero; `INTERCEPT_SHARE` of it for the intercept.
        steps: how many.

    Returns:
        w [outputs, d] and b [outputs].
    """
    if len(features) < features.shape[1]:
        short, back = _span(features)
        slope, intercept = solve_logistic(short, offsets, targets, weight, precision=precision, steps=steps)
        return slope @ back, intercept
    outputs = targets.shape[1]
    inputs = functional.pad(features, (0, 1), value=1.0)
    prior = torch.full_like(inputs[0], precision)
    prior = torch.cat([prior[:-1], prior[-1:] * INTERCEPT_SHARE])
    at = inputs.new_zeros(outputs, len(prior))
    for _ in range(steps):
        logits = offsets + inputs @ at.T
        expected = torch.sigmoid(logits) if outputs == 1 else torch.softmax(logits, dim=-1)
        slope = (weight[:, None] * (expected - targets)).T @ inputs + prior * at
        # Second derivatives of a row's loss by its logits; for one output p(1 - p), the same expression.
        bend = torch.diag_embed(expected) - expected.unsqueeze(-1) * expected.unsqueeze(-2)
        curvature = torch.einsum("n,nab,ni,nj->aibj", weight, bend, inputs, inputs)
        size = slope.numel()
        system = curvature.reshape(size, size) + torch.diag(prior.repeat(outputs))
        step = torch.linalg.solve(system, slope.reshape(-1)).reshape(slope.shape)
        at = at - _length((weight > 0)[:, None] * (inputs @ step.T)) * step
    return at[:, :-1], at[:, -1]


def _length(change: Tensor) -> Tensor:
    """Share of a step to make, given how it would change the logits [rows, outputs]."""
    change = functional.pad(change, (0, 1)) if change.shape[1] == 1 else change  # against class 0's zero
    most = (change.amax(-1) - change.amin(-1)).amax().clamp(min=1e-6)
    return torch.log1p(most) / most


def _span(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows in coordinates of the space they span, [rows, rows], and its axes, [rows, d].

    ``features = L Q`` with the axes Q orthonormal, from ``features features.T = L L.T`` (Cholesky).
    """
    gram = features @ features.T
    # Rows that are equal or zero span less than a dimension each: without this there would be no L.
    least = 10 * torch.finfo(gram.dtype).eps * gram.diagonal().sum() + torch.finfo(gram.dtype).tiny
    lower = torch.linalg.cholesky(gram + least * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    return lower, torch.linalg.solve_triangular(lower, features, upper=False)
