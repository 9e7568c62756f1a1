"""The ladder: which rung serves a surface with K positives, and what is fitted on it.

    zero_shot   the stack with its prior weights; the interactions move the intercept only
    stack       the interactions move the weights too (MAP)
    boosted     trees over the row's own features start from the stack
    fine_tuned  the network's adapter, pulled to the shared model; it is compared on every night

A policy says from how many positives on which rung serves, and how strong its prior is. It comes from
evidence on other contexts, never from the surface's own later data. This module must never choose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from recmeta.evaluation.baselines import Trees
from recmeta.settings import TransferSettings
from recmeta.transfer.stack import Stack, fit_intercept, fit_residual, fit_stack, prior_weights

Floats = npt.NDArray[np.float64]
Rung = Literal["zero_shot", "stack", "boosted"]


@dataclass(frozen=True)
class Step:
    """From ``from_positives`` positives on, this rung serves with this prior."""

    from_positives: int
    rung: Rung
    precision: float
    newcomer: float
    """What the newcomer's expert weighs before any data; the sources share the rest."""


DEFAULT_POLICY = (
    Step(0, "zero_shot", 30.0, 0.2),
    Step(10, "stack", 30.0, 0.2),
    Step(100, "boosted", 30.0, 0.2),
)
"""Where no night has any evidence, because it knows too few contexts to hold one out."""


@dataclass(frozen=True)
class Climbed:
    """What serves a surface: a stack and, on the boosted rung, trees whose logit is added to it."""

    rung: Rung
    stack: Stack
    residual: Trees | None

    def logits(self, scaled: Floats, dense: npt.NDArray[np.float32]) -> Floats:
        """Return logits, float64 [n], of scaled experts [n, M] and dense features [n, F]."""
        found = self.stack.logits(scaled)
        return found if self.residual is None else found + self.residual.logits(dense)


def step_for(policy: Sequence[Step], positives: int) -> Step:
    """The step that serves a surface with so many positives."""
    reached = [step for step in policy if step.from_positives <= positives]
    return max(reached, key=lambda step: step.from_positives) if reached else policy[0]


def climb(
    step: Step,
    scaled: Floats,
    dense: npt.NDArray[np.float32],
    label: Floats,
    weight: Floats,
    scales: Floats,
    settings: TransferSettings,
    *,
    rate: float,
    threads: int = 1,
    seed: int = 0,
) -> Climbed:
    """Fit what serves on a step of the ladder.

    Args:
        step: rung and prior.
        scaled: experts of the surface's rows, [n, M]; n may be 0.
        dense: the same rows' features, [n, F].
        label: 0 or 1, [n].
        weight: how many rows of the surface each stands for, [n].
        scales: of the experts, [M].
        settings: of the residual.
        rate: share of positives that is expected of a surface nobody knows.
        threads: of LightGBM.
        seed: of LightGBM.
    """
    prior = prior_weights(scales, step.newcomer)
    if step.rung == "zero_shot" or not len(label):
        expected = float(np.log(rate / (1.0 - rate)))
        stack = Stack(prior, fit_intercept(scaled @ prior, label, weight, expected))
        return Climbed("zero_shot", stack, None)
    stack = fit_stack(scaled, label, weight, prior, step.precision, rate=rate)
    if step.rung == "stack":
        return Climbed("stack", stack, None)
    linear = scaled @ stack.weights
    start = linear + fit_intercept(linear, label, np.ones(len(label)), 0.0)
    residual = fit_residual(dense, label, start, settings, threads=threads, seed=seed)
    if residual is None:
        return Climbed("stack", stack, None)
    whole = linear + residual.logits(dense)
    intercept = fit_intercept(whole, label, weight, stack.intercept)
    return Climbed("boosted", Stack(stack.weights, intercept), residual)
