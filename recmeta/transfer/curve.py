"""The onboarding curve: quality with K positives of a context that was held out, for each way to get there.

Every context is held out in turn with its label family. Which rung ours uses, with which prior, is decided
for each context by the curves of the *other* families; so the curve of a context is what a surface like it
would have got. `Curves.policies` are the same choices over all of them: what a surface that is really new
gets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recmeta.adaptation import adapt_few
from recmeta.episodes.rows import Rows, evenly
from recmeta.evaluation.baselines import Trees
from recmeta.evaluation.cluster_errors import Area, area, interval, mean_area
from recmeta.evaluation.metrics import log_loss
from recmeta.features.schema import ITEM
from recmeta.models.prediction import predict_logits
from recmeta.settings import Settings
from recmeta.transfer.held_out import HeldOut
from recmeta.transfer.ladder import (
    DEFAULT_POLICY,
    KINDS,
    Climbed,
    Kind,
    Labelled,
    Step,
    Terms,
    climb,
    kind_of,
    settle,
    step_for,
)
from recmeta.transfer.stack import fit_intercept, fit_weights, prior_weights

Floats = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]
Key = tuple[str, int]
"""Context, and how many positives it was given."""

FINE_TUNE_ROWS = 3_000
"""Rows that the fine-tuned adapter sees, at the most: steps over more were no better in our study."""


@dataclass(frozen=True)
class Asking:
    """Who asks for a ladder: a context of this family (None: of none), with this kind of negatives."""

    family: str | None
    kind: Kind


def _kind_of(held: HeldOut) -> Kind:
    return kind_of(held.bank.space.contexts[held.context])


@dataclass(frozen=True)
class Shots:
    """Positions in a pool: ``rows``, and how many rows of the surface each stands for."""

    rows: npt.NDArray[np.int64]
    weight: Floats


def draw_shots(held: HeldOut, positives: int, settings: Settings, draw: int) -> Shots:
    """Draw positives and a few negatives for each; their weights restore the surface's own rate."""
    if positives == 0:
        return Shots(np.empty(0, np.int64), np.empty(0))
    label = held.pool.label.numpy()
    yes, no = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    if positives >= len(yes):
        return Shots(np.arange(len(label)), held.pool.weight.numpy().astype(np.float64))
    generator = np.random.default_rng([settings.training.seed, draw, positives])
    wanted = min(len(no), positives * settings.transfer.negatives_per_positive)
    chosen = np.sort(
        np.concatenate(
            [generator.choice(yes, positives, replace=False), generator.choice(no, wanted, replace=False)]
        )
    )
    weight = np.where(label[chosen] == 1, 1.0, len(no) * positives / (len(yes) * max(wanted, 1)))
    return Shots(chosen, weight)


@dataclass(frozen=True)
class Point:
    """One method on one context with K positives: the mean over draws."""

    area: Area
    between: float
    """Variance of the mean over draws."""
    log_loss: float
    values: tuple[float, ...]
    """AUC of each draw."""

    def as_json(self, reference: float | None, tolerance: float) -> dict[str, Any]:
        """AUC with its 95 % interval, log-loss, and the share of draws below ``reference``."""
        low, high = interval(self.area, between=self.between)
        harm = None if reference is None else float(np.mean([v < reference - tolerance for v in self.values]))
        return {"auc": self.area.value, "low": low, "high": high, "log_loss": self.log_loss, "harm": harm}


def _point(held: HeldOut, logits: Sequence[Floats]) -> Point | None:
    label, weight = held.test.label.numpy(), held.test.weight.numpy()
    areas = [area(label, one, held.users, weight) for one in logits]
    known = [one for one in areas if one is not None]
    if not known:
        return None
    values = tuple(one.value for one in known)
    losses = [log_loss(label, one, weight) for one in logits]
    between = float(np.var(values, ddof=1) / len(values)) if len(values) > 1 else 0.0
    return Point(
        mean_area(known), between, float(np.mean([loss for loss in losses if loss is not None])), values
    )


class Curves:
    """The curves of all held-out contexts, measured when made."""

    def __init__(
        self,
        held: Sequence[HeldOut],
        families: Mapping[str, Collection[str]],
        settings: Settings,
        progress: Progress | None = None,
    ) -> None:
        self.held = {one.context: one for one in held}
        self.settings = settings
        self.family = {name: family for family, names in families.items() for name in names}
        self.points: dict[str, dict[int, dict[str, Point]]] = {name: {} for name in self.held}
        """By context, by positives that it was given, by method."""
        self.rungs: dict[Key, dict[str, int]] = {}
        """How often each rung served, over draws."""
        self._quick: dict[tuple[str, float], float] = {}
        self._zero = {name: self._point(name, self._start(self._asking(name)), 0) for name in self.held}
        self._stacks: dict[tuple[str, int, float], Point] = {}
        self._boosted: dict[Key, Point] = {}
        self._measure(progress or (lambda what, done, total: None))

    def given(self, context: str) -> list[int]:
        """The numbers of positives that a context was given; the last is all that it has."""
        most = self.held[context].positives
        return [0, *(count for count in self.settings.transfer.shots if count < most), most]

    def policies(self) -> dict[Kind, tuple[Step, ...]]:
        """What a surface gets that is none of these, by where its negatives come from."""
        return {kind: self._ladder(Asking(None, kind)) for kind in KINDS}

    def others(self, context: str) -> list[str]:
        """The contexts whose curves decide for a context that is held out."""
        return self._others(self._asking(context))

    def first_logits(self, context: str, count: int) -> Floats:
        """Logits of ours on the test rows of a context, with the first draw of so many positives."""
        step = step_for(self._ladder(self._asking(context)), count)
        return self._logits(context, self._climbed(context, step, count, 0, settled=count > 0))

    # Choices, each by what other contexts' curves say -----------------------------------------------

    def _asking(self, name: str) -> Asking:
        return Asking(self.family[name], _kind_of(self.held[name]))

    def _others(self, asking: Asking) -> list[str]:
        """Contexts of other families; of the same kind, if there are two or more: they are more alike."""
        others = [name for name in self.held if self.family[name] != asking.family]
        alike = [name for name in others if _kind_of(self.held[name]) == asking.kind]
        return alike if len(alike) > 1 else others

    def _start(self, asking: Asking) -> Step:
        """Zero-shot with the newcomer's weight that gains most over none, by the median over contexts."""
        weights = self.settings.transfer.newcomer_weights

        def gain(newcomer: float) -> float:
            found = [
                self._quick_area(name, newcomer) - self._quick_area(name, weights[0])
                for name in self._others(asking)
            ]
            return float(np.median(found)) if found else 0.0

        return Step(0, "zero_shot", max(self.settings.transfer.precisions), max(weights, key=gain))

    def _quick_area(self, name: str, newcomer: float) -> float:
        if (name, newcomer) not in self._quick:
            held = self.held[name]
            logits = held.test_experts @ prior_weights(held.bank.scales, newcomer)
            found = area(held.test.label.numpy(), logits, held.users, held.test.weight.numpy())
            self._quick[name, newcomer] = 0.5 if found is None else found.value
        return self._quick[name, newcomer]

    def _precision(self, asking: Asking) -> float:
        """The strength of prior that is of most use over all numbers of positives."""
        precisions = self.settings.transfer.precisions
        return max(precisions, key=lambda precision: sum(self._worth_of("stack", precision, asking).values()))

    def _ladder(self, asking: Asking) -> tuple[Step, ...]:
        """One ladder for all numbers of positives: where the stack begins, and where trees go on top.

        Both borders and the prior are the ones of most use, summed over the numbers that were tried. So a
        ladder has three choices, each resting on all points of all curves: a choice for each number alone
        would follow noise.
        """
        start = self._start(asking)
        if not self._others(asking):
            return DEFAULT_POLICY
        precision = self._precision(asking)
        worth = {rung: self._worth_of(rung, precision, asking) for rung in ("stack", "boosted")}
        shots = self.settings.transfer.shots
        most, chosen = 0.0, (len(shots), len(shots))
        for first in range(len(shots) + 1):
            for second in range(first, len(shots) + 1):
                use = sum(worth["stack"].get(count, 0.0) for count in shots[first:second])
                use += sum(worth["boosted"].get(count, 0.0) for count in shots[second:])
                if use > most:
                    most, chosen = use, (first, second)
        steps = [start]
        first, second = chosen
        if first < second:
            steps.append(replace(start, from_positives=shots[first], rung="stack", precision=precision))
        if second < len(shots):
            steps.append(replace(start, from_positives=shots[second], rung="boosted", precision=precision))
        return tuple(steps)

    def _worth_of(self, rung: str, precision: float, asking: Asking) -> dict[int, float]:
        """What a rung is worth at each number of positives at which other contexts tried it."""
        found = {}
        for count in self.settings.transfer.shots:
            points = {
                name: self._stacks.get((name, count, precision))
                if rung == "stack"
                else self._boosted.get((name, count))
                for name in self._others(asking)
            }
            if any(point is not None for point in points.values()):
                found[count] = self._worth(points)
        return found

    def _worth(self, found: Mapping[str, Point | None]) -> float:
        """Median gain in AUC over zero-shot, over contexts; harm beyond what is allowed counts against it.

        The median, because a surface that is unlike all others (its own rows will tell, see `settle`) must
        not decide for the rest. Each hundredth of draws that are harmed in excess costs half a thousandth of
        AUC: with some twenty draws a hard limit would be decided by one of them.
        """
        gains, below = [], []
        for name, point in found.items():
            zero = self._zero[name]
            if point is not None and zero is not None:
                gains.append(point.area.value - zero.area.value)
                below += [value < zero.area.value - self.settings.gate.tolerance for value in point.values]
        if not gains:
            return -1.0
        excess = max(0.0, float(np.mean(below)) - self.settings.transfer.most_harm)
        return float(np.median(gains)) - excess / 20.0

    # Measuring ------------------------------------------------------------------------------------

    def _measure(self, progress: Progress) -> None:
        shots, work = self.settings.transfer.shots, 3 * len(self.held)
        for number, name in enumerate(self.held):
            progress("transfer", number, work)
            start = self._start(self._asking(name))
            for count in self.given(name)[1:]:
                for precision in self.settings.transfer.precisions if count in shots else ():
                    step = replace(start, rung="stack", precision=precision)
                    point = self._point(name, step, count)
                    if point is not None:
                        self._stacks[name, count, precision] = point
        for number, name in enumerate(self.held):
            progress("transfer", len(self.held) + number, work)
            asking = self._asking(name)
            step = replace(self._start(asking), rung="boosted", precision=self._precision(asking))
            for count in self.given(name)[1:]:
                point = self._point(name, step, count)
                if point is not None:
                    self._boosted[name, count] = point
        for number, (name, held) in enumerate(self.held.items()):
            progress("transfer", 2 * len(self.held) + number, work)
            asking = self._asking(name)
            start, ladder = self._start(asking), self._ladder(asking)
            popularity = _point(held, [_popularity(held)])
            for count in self.given(name):
                found: dict[str, Point | None] = {
                    "zero_shot": self._point(name, start, count),
                    "ours": self._ours(name, step_for(ladder, count), count),
                    "popularity": popularity,
                    **(self._rivals(held, count) if count else {}),
                }
                self.points[name][count] = {method: point for method, point in found.items() if point}
        progress("transfer", work, work)

    def _ours(self, name: str, step: Step, count: int) -> Point | None:
        """What the other families' evidence, and then the surface's own rows, let serve."""
        self.rungs[name, count] = defaultdict(int)
        logits = []
        for draw in range(self._draws(name, count)):
            climbed = self._climbed(name, step, count, draw, settled=count > 0)
            self.rungs[name, count][climbed.rung] += 1
            logits.append(self._logits(name, climbed))
        return _point(self.held[name], logits)

    def _point(self, name: str, step: Step, count: int) -> Point | None:
        draws = range(self._draws(name, count))
        return _point(
            self.held[name], [self._logits(name, self._climbed(name, step, count, draw)) for draw in draws]
        )

    def _draws(self, name: str, count: int) -> int:
        return self.settings.transfer.draws if 0 < count < self.held[name].positives else 1

    def _logits(self, name: str, climbed: Climbed) -> Floats:
        return climbed.logits(self.held[name].test_experts, self.held[name].test.dense.numpy())

    def _climbed(self, name: str, step: Step, count: int, draw: int, *, settled: bool = False) -> Climbed:
        held = self.held[name]
        shots = draw_shots(held, count, self.settings, draw)
        labelled = Labelled(
            held.pool_experts[shots.rows],
            held.pool.dense.numpy()[shots.rows],
            held.pool.label.numpy()[shots.rows].astype(np.float64),
            shots.weight,
        )
        training = self.settings.training
        terms = Terms(held.bank.scales, held.rate, self.settings.transfer, training.threads, training.seed)
        return climb(settle(step, labelled, terms) if settled else step, labelled, terms)

    def _rivals(self, held: HeldOut, count: int) -> dict[str, Point | None]:
        logits: dict[str, list[Floats]] = defaultdict(list)
        for draw in range(self._draws(held.context, count)):
            shots = draw_shots(held, count, self.settings, draw)
            rows = held.pool.take(torch.from_numpy(shots.rows))
            logits["lightgbm"].append(_scratch_trees(rows, shots.weight, held.test, self.settings))
            logits["logistic"].append(_scratch_logistic(rows, shots.weight, held.test))
            if draw < self.settings.transfer.fine_tune_draws:
                logits["joint_fine_tune"].append(_fine_tuned(held, rows, shots.weight, self.settings))
        return {method: _point(held, found) for method, found in logits.items()}


def _popularity(held: HeldOut) -> Floats:
    """The item's recent positives in other contexts: a held-out context has none of its own."""
    space = held.bank.space
    own = space.popularity_column().removeprefix(f"target:{ITEM}:")
    return held.test.dense[:, space.index(f"mean:{ITEM}:{own}")].numpy().astype(np.float64)


# From scratch -----------------------------------------------------------------------------------------


def _scratch_trees(rows: Rows, weight: Floats, test: Rows, settings: Settings) -> Floats:
    """Boosted trees on the shots alone: smaller leaves and fewer rounds where there are few."""
    import lightgbm

    label = rows.label.numpy().astype(np.float64)
    few = len(label) < 3_000
    parameters = {
        "objective": "binary",
        "num_leaves": 7 if few else settings.trees.leaves,
        "learning_rate": settings.trees.rate,
        "min_data_in_leaf": max(3, min(settings.trees.min_rows, len(label) // 20)),
        "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 1.0,
        "num_threads": settings.training.threads,
        "seed": settings.training.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }
    booster = lightgbm.train(parameters, lightgbm.Dataset(rows.dense.numpy(), label), 100 if few else 150)
    trees = Trees(booster, booster.current_iteration())
    learnt = trees.logits(rows.dense.numpy())
    return trees.logits(test.dense.numpy()) + fit_intercept(learnt, label, weight, 0.0)


def _scratch_logistic(rows: Rows, weight: Floats, test: Rows) -> Floats:
    """Logistic regression on the shots alone, standardised features, ridge of one."""
    dense = rows.dense.numpy().astype(np.float64)
    mean, deviation = dense.mean(axis=0), dense.std(axis=0)
    varies = deviation > 1e-6
    seen, unseen = (
        np.clip((part[:, varies] - mean[varies]) / deviation[varies], -5.0, 5.0)
        for part in (dense, test.dense.numpy().astype(np.float64))
    )
    label = rows.label.numpy().astype(np.float64)
    weights = fit_weights(seen, label, np.zeros(seen.shape[1]), 1.0)
    found: Floats = unseen @ weights + fit_intercept(seen @ weights, label, weight, 0.0)
    return found


def _fine_tuned(held: HeldOut, rows: Rows, weight: Floats, settings: Settings) -> Floats:
    """The network as it reads newcomers, with an adapter fitted to the shots."""
    network = held.bank.network
    seen = rows.take(evenly(len(rows), FINE_TUNE_ROWS))
    adapter = adapt_few(network, _as_unknown(seen), settings.training)
    learnt = predict_logits(network, _as_unknown(rows), adapter)
    return predict_logits(network, _as_unknown(held.test), adapter) + fit_intercept(
        learnt, rows.label.numpy().astype(np.float64), weight, 0.0
    )


def _as_unknown(rows: Rows) -> Rows:
    return replace(rows, context=torch.zeros_like(rows.context), weight=torch.ones_like(rows.weight))
