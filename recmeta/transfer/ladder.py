"""The ladder: which rung serves a surface with K positives, and what is fitted on it.

    zero_shot   the stack with its prior weights; the interactions move the intercept only
    stack       the interactions move the weights too (MAP)
    boosted     trees over the row's own features start from the stack

A policy says from how many positives on which rung serves, and how strong its prior is. It comes from
evidence on other contexts, never from the surface's own later data. This module must never choose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from recmeta.contexts import Context, SampledNegatives
from recmeta.episodes.rows import evenly
from recmeta.evaluation.baselines import Trees
from recmeta.evaluation.metrics import row_log_losses
from recmeta.settings import TransferSettings
from recmeta.transfer.stack import Stack, fit_intercept, fit_residual, fit_stack, prior_weights

Floats = npt.NDArray[np.float64]
Rung = Literal["zero_shot", "stack", "boosted"]
RUNGS: tuple[Rung, ...] = ("zero_shot", "stack", "boosted")

Kind = Literal["met", "sampled"]
"""Where negatives come from: what was met and not engaged with, or items drawn from those alive."""
KINDS: tuple[Kind, ...] = ("met", "sampled")


def kind_of(declared: Context) -> Kind:
    """The kind of a context's negatives: telling apart what was met is another task than what was drawn."""
    return "sampled" if isinstance(declared.negatives.source, SampledNegatives) else "met"


@dataclass(frozen=True)
class Step:
    """From ``from_positives`` positives on, this rung serves with this prior."""

    from_positives: int
    rung: Rung
    precision: float
    newcomer: float
    """What the newcomer's expert weighs before any data; the sources share the rest evenly."""


DEFAULT_POLICY = (
    Step(0, "zero_shot", 30.0, 0.2),
    Step(10, "stack", 30.0, 0.2),
    Step(100, "boosted", 30.0, 0.2),
)
"""Where no night has any evidence, because it knows too few contexts to hold one out."""


@dataclass(frozen=True)
class Labelled:
    """Rows of a surface as the ladder reads them."""

    scaled: Floats
    """Experts, [n, M]."""
    dense: npt.NDArray[np.float32]
    """Features, [n, F]."""
    label: Floats
    """0 or 1, [n]."""
    weight: Floats
    """How many rows of the surface each stands for, [n]."""

    def take(self, rows: npt.NDArray[np.bool_]) -> Labelled:
        """The rows under a mask, [n]."""
        return Labelled(self.scaled[rows], self.dense[rows], self.label[rows], self.weight[rows])


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


@dataclass(frozen=True)
class Terms:
    """What every step of a surface's ladder is fitted with."""

    scales: Floats
    """Of the experts, [M]."""
    rate: float
    """Share of positives that is expected of a surface nobody knows."""
    settings: TransferSettings
    """Of the residual."""
    threads: int = 1
    """Of LightGBM; the seed likewise."""
    seed: int = 0


def climb(step: Step, shots: Labelled, terms: Terms) -> Climbed:
    """Fit what serves on a step of the ladder to a surface's labelled rows; there may be none."""
    scaled, dense, label, weight = shots.scaled, shots.dense, shots.label, shots.weight
    rate, prior = terms.rate, prior_weights(terms.scales, step.newcomer)
    if step.rung == "zero_shot" or not len(label):
        expected = float(np.log(rate / (1.0 - rate)))
        stack = Stack(prior, fit_intercept(scaled @ prior, label, weight, expected))
        return Climbed("zero_shot", stack, None)
    stack = fit_stack(scaled, label, weight, prior, step.precision, rate=rate)
    if step.rung == "stack":
        return Climbed("stack", stack, None)
    linear = scaled @ stack.weights
    start = linear + fit_intercept(linear, label, np.ones(len(label)), 0.0)
    residual = fit_residual(dense, label, start, terms.settings, threads=terms.threads, seed=terms.seed)
    if residual is None:
        return Climbed("stack", stack, None)
    whole = linear + residual.logits(dense)
    intercept = fit_intercept(whole, label, weight, stack.intercept)
    return Climbed("boosted", Stack(stack.weights, intercept), residual)


FOLDS = 3
LEAST_TO_SETTLE = 10
"""Positives below which a surface's own rows cannot tell one rung from another."""
MOST_TO_SETTLE = 20_000
"""Rows that are left out in turn, evenly over those there are: more would not change which rung is better."""
SURE = 1.645
"""Standard errors by which another rung's loss must be lower (one-sided 95 %): what other contexts proved
goes before."""


def settle(step: Step, shots: Labelled, terms: Terms) -> Step:
    """Return the step that serves: the policy's, unless the surface's own rows surely like another better.

    A surface may be unlike all that is known. Rungs are compared by the log-loss of rows that were left out
    in turn, every row counted once.
    """
    if len(shots.label) > MOST_TO_SETTLE:
        kept = np.zeros(len(shots.label), dtype=np.bool_)
        kept[evenly(len(shots.label), MOST_TO_SETTLE).numpy()] = True
        shots = shots.take(kept)
    positives = int(shots.label.sum())
    if positives < LEAST_TO_SETTLE or positives == len(shots.label):
        return step
    fold = _folds(shots.label, terms.seed)
    losses: dict[Rung, Floats] = {}
    for rung in RUNGS:
        losses[rung] = np.empty(len(shots.label))
        for number in range(FOLDS):
            out = fold == number
            learnt, left = shots.take(~out), shots.take(out)
            learnt = replace(learnt, weight=np.ones(len(learnt.label)))
            climbed = climb(replace(step, rung=rung), learnt, terms)
            losses[rung][out] = row_log_losses(left.label, climbed.logits(left.scaled, left.dense))
    best = step.rung
    for rung in RUNGS:
        gain = losses[best] - losses[rung]
        error = float(gain.std()) / np.sqrt(len(gain))
        if rung != best and float(gain.mean()) > SURE * error and error > 0:
            best = rung
    return replace(step, rung=best)


def _folds(label: Floats, seed: int) -> npt.NDArray[np.int64]:
    """A fold for each row, alike in positives and in size."""
    generator = np.random.default_rng([seed, len(label)])
    fold = np.empty(len(label), dtype=np.int64)
    for value in (0.0, 1.0):
        rows = generator.permutation(np.flatnonzero(label == value))
        fold[rows] = np.arange(len(rows)) % FOLDS
    return fold
