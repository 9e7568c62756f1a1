"""The onboarding curve: quality with K positives of a context that was held out, for each way to get there.

Every context is held out in turn with its label family. Which rung ours uses, with which prior, is decided
for each context by the curves of the *other* families; so the curve of a context is what a surface like it
would have got. `policy` is the same choice over all of them: what a surface that is really new gets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recmeta.adaptation import adapt_few
from recmeta.episodes.rows import Rows
from recmeta.evaluation.baselines import Trees
from recmeta.evaluation.cluster_errors import Area, area, interval, mean_area
from recmeta.evaluation.metrics import log_loss
from recmeta.features.schema import ITEM
from recmeta.models.prediction import predict_logits
from recmeta.settings import Settings
from recmeta.transfer.held_out import HeldOut
from recmeta.transfer.ladder import DEFAULT_POLICY, Climbed, Rung, Step, climb
from recmeta.transfer.stack import fit_intercept, fit_weights

Floats = npt.NDArray[np.float64]
Key = tuple[str, int]
"""Context, and how many positives it was given."""

RIVALS = ("joint_fine_tune", "lightgbm", "logistic", "popularity")
FINE_TUNE_ROWS = 3_000
"""Rows that the fine-tuned adapter sees, at the most: steps over more were no better in our study."""


@dataclass(frozen=True)
class Shots:
    """Positions in a pool: ``rows``, and how many rows of the surface each stands for."""

    rows: npt.NDArray[np.int64]
    weight: Floats


def draw_shots(held: HeldOut, positives: int, settings: Settings, draw: int) -> Shots:
    """Draw positives and a few negatives for each; their weights restore the surface's own rate."""
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
    """The curves of all held-out contexts."""

    def __init__(
        self, held: Sequence[HeldOut], families: Mapping[str, Collection[str]], settings: Settings
    ) -> None:
        self.held = {one.context: one for one in held}
        self.family = {name: family for family, names in families.items() for name in names}
        self.settings = settings
        self._grid = [
            (precision, newcomer)
            for newcomer in settings.transfer.newcomer_weights
            for precision in settings.transfer.precisions
        ]
        self._zero: dict[tuple[str, float], Point] = {}
        self._stacks: dict[tuple[str, int, float, float], Point] = {}
        self._boosted: dict[Key, Point] = {}
        self.priors: dict[Key, tuple[float, float]] = {}
        self.points: dict[str, dict[int, dict[str, Point]]] = {name: {} for name in self.held}
        self.rungs: dict[Key, Rung] = {}

    def shots(self, context: str) -> list[int]:
        """The numbers of positives that a context can be given; the last is all that it has."""
        most = self.held[context].positives
        return [count for count in self.settings.transfer.shots if count < most] + ([most] if most else [])

    def all_shots(self) -> list[int]:
        """The numbers of positives at which curves of several contexts can be compared, ascending."""
        return [0, *self.settings.transfer.shots]

    def measure(self, progress: Any = None) -> None:
        """Fit and score every method, on every context, with every number of positives."""
        for number, (name, held) in enumerate(self.held.items()):
            if progress is not None:
                progress("curves", number, 2 * len(self.held))
            for _, newcomer in self._grid:
                if (name, newcomer) not in self._zero:
                    point = _point(held, [self._climbed(held, Step(0, "zero_shot", 1.0, newcomer), 0, 0)])
                    if point is not None:
                        self._zero[name, newcomer] = point
            for count in self.shots(name):
                for precision, newcomer in self._grid:
                    step = Step(count, "stack", precision, newcomer)
                    point = self._over_draws(held, step, count)
                    if point is not None:
                        self._stacks[name, count, precision, newcomer] = point
        for number, (name, held) in enumerate(self.held.items()):
            if progress is not None:
                progress("curves", len(self.held) + number, 2 * len(self.held))
            for count in self.shots(name):
                prior = self.priors[name, count] = self._best_prior(count, without=self.family[name])
                point = self._over_draws(held, Step(count, "boosted", *prior), count)
                if point is not None:
                    self._boosted[name, count] = point
        for name, held in self.held.items():
            self._assemble(name, held)

    def policy(self) -> tuple[Step, ...]:
        """What a surface gets that is none of these; the default where no context could be held out."""
        if not self._zero:
            return DEFAULT_POLICY
        steps = [self._best_step(count, without=None) for count in self.all_shots()]
        return tuple(
            step
            for before, step in zip([None, *steps], steps, strict=False)
            if before is None or _differs(before, step)
        )

    # Choices --------------------------------------------------------------------------------------

    def _others(self, without: str | None) -> list[str]:
        return [name for name in self.held if self.family[name] != without]

    def _best_newcomer(self, without: str | None) -> float:
        """The newcomer's weight with the best zero-shot AUC over the other contexts."""
        weights = self.settings.transfer.newcomer_weights
        names = self._others(without)

        def mean(newcomer: float) -> float:
            found = [
                self._zero[name, newcomer].area.value for name in names if (name, newcomer) in self._zero
            ]
            return float(np.mean(found)) if found else 0.0

        return max(weights, key=mean)

    def _best_prior(self, count: int, without: str | None) -> tuple[float, float]:
        """Precision and newcomer's weight of the best stack that harms no more than is allowed.

        Where every one harms, the strongest prior, which moves least.
        """
        strongest = (max(self.settings.transfer.precisions), self._best_newcomer(without))
        allowed = [
            prior
            for prior in self._grid
            if self._harm(count, prior, without) <= self.settings.transfer.most_harm
        ]
        scored = {prior: self._mean_stack(count, prior, without) for prior in allowed}
        known = {prior: value for prior, value in scored.items() if value is not None}
        return max(known, key=lambda prior: known[prior]) if known else strongest

    def _stacks_at(
        self, count: int, prior: tuple[float, float], without: str | None
    ) -> list[tuple[str, Point]]:
        found = []
        for name in self._others(without):
            point = self._stacks.get((name, count, *prior))
            if point is not None:
                found.append((name, point))
        return found

    def _mean_stack(self, count: int, prior: tuple[float, float], without: str | None) -> float | None:
        found = self._stacks_at(count, prior, without)
        return float(np.mean([point.area.value for _, point in found])) if found else None

    def _harm(self, count: int, prior: tuple[float, float], without: str | None) -> float:
        newcomer = self._best_newcomer(without)
        return self._share_below(self._stacks_at(count, prior, without), newcomer)

    def _share_below(self, found: Sequence[tuple[str, Point]], newcomer: float) -> float:
        """The share of draws that fall below zero-shot by more than noise."""
        tolerance = self.settings.gate.tolerance
        below = [
            value < self._zero[name, newcomer].area.value - tolerance
            for name, point in found
            if (name, newcomer) in self._zero
            for value in point.values
        ]
        return float(np.mean(below)) if below else 0.0

    def _best_step(self, count: int, without: str | None) -> Step:
        """The rung with the best mean over the other contexts, of those that harm no more than allowed."""
        newcomer = self._best_newcomer(without)
        zero = Step(count, "zero_shot", max(self.settings.transfer.precisions), newcomer)
        names = [name for name in self._others(without) if (name, newcomer) in self._zero]
        if count == 0 or not names:
            return zero
        prior = self._best_prior(count, without)
        candidates: dict[Rung, list[tuple[str, Point]]] = {
            "stack": self._stacks_at(count, prior, without),
            "boosted": [
                (name, self._boosted[name, count])
                for name in self._others(without)
                if (name, count) in self._boosted
            ],
        }
        best, best_gain = zero, 0.0
        for rung, found in candidates.items():
            harm = self._share_below(found, newcomer)
            gains = [
                point.area.value - self._zero[name, newcomer].area.value
                for name, point in found
                if name in names
            ]
            if gains and harm <= self.settings.transfer.most_harm and float(np.mean(gains)) > best_gain:
                best, best_gain = Step(count, rung, *prior), float(np.mean(gains))
        return best

    # Measuring ------------------------------------------------------------------------------------

    def _over_draws(self, held: HeldOut, step: Step, count: int) -> Point | None:
        return _point(
            held, [self._climbed(held, step, count, draw) for draw in range(self._draws(held, count))]
        )

    def _draws(self, held: HeldOut, count: int) -> int:
        return self.settings.transfer.draws if 0 < count < held.positives else 1

    def _climbed(self, held: HeldOut, step: Step, count: int, draw: int) -> Floats:
        found = self._fitted(held, step, count, draw)
        return found.logits(held.test_experts, held.test.dense.numpy())

    def _fitted(self, held: HeldOut, step: Step, count: int, draw: int) -> Climbed:
        shots = (
            draw_shots(held, count, self.settings, draw)
            if count
            else Shots(np.empty(0, np.int64), np.empty(0))
        )
        return climb(
            step,
            held.pool_experts[shots.rows],
            held.pool.dense.numpy()[shots.rows],
            held.pool.label.numpy()[shots.rows].astype(np.float64),
            shots.weight,
            held.bank.scales,
            self.settings.transfer,
            rate=held.rate,
            threads=self.settings.training.threads,
            seed=self.settings.training.seed,
        )

    def _assemble(self, name: str, held: HeldOut) -> None:
        """Put the points of one context's curves together."""
        own = self.family[name]
        newcomer = self._best_newcomer(own)
        popular = _popularity(held)
        for count in [0, *self.shots(name)]:
            at: dict[str, Point] = self.points[name].setdefault(count, {})
            step = self._best_step(_nearest(count, self.all_shots()), own)
            self.rungs[name, count] = step.rung
            found: dict[str, Point | None] = {
                "zero_shot": self._over_draws(held, Step(0, "zero_shot", 1.0, newcomer), count)
            }
            if step.rung == "zero_shot":
                found["ours"] = found["zero_shot"]
            elif step.rung == "stack":
                found["ours"] = (
                    self._stacks.get((name, count, step.precision, step.newcomer)) or found["zero_shot"]
                )
            else:
                prior = (step.precision, step.newcomer)
                same = self.priors.get((name, count)) == prior
                found["ours"] = (
                    self._boosted.get((name, count))
                    if same
                    else self._over_draws(held, Step(count, "boosted", *prior), count)
                )
            found["popularity"] = _point(held, [popular])
            if count:
                found |= self._rivals(held, count)
            at |= {method: point for method, point in found.items() if point is not None}

    def _rivals(self, held: HeldOut, count: int) -> dict[str, Point | None]:
        logits: dict[str, list[Floats]] = defaultdict(list)
        for draw in range(self._draws(held, count)):
            shots = draw_shots(held, count, self.settings, draw)
            rows = held.pool.take(torch.from_numpy(shots.rows))
            logits["lightgbm"].append(_scratch_trees(rows, shots.weight, held.test, self.settings))
            logits["logistic"].append(_scratch_logistic(rows, shots.weight, held.test))
            logits["joint_fine_tune"].append(_fine_tuned(held, rows, shots.weight, self.settings))
        return {method: _point(held, found) for method, found in logits.items()}


def _differs(first: Step, second: Step) -> bool:
    return (first.rung, first.precision, first.newcomer) != (second.rung, second.precision, second.newcomer)


def _nearest(count: int, known: Sequence[int]) -> int:
    """The largest of ``known`` numbers of positives that is not above ``count``."""
    return max(number for number in known if number <= count)


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
    seen = rows.take(
        torch.arange(min(len(rows), FINE_TUNE_ROWS)) * len(rows) // min(len(rows), FINE_TUNE_ROWS)
    )
    adapter = adapt_few(network, _as_unknown(seen), settings.training)
    learnt = predict_logits(network, _as_unknown(rows), adapter)
    return predict_logits(network, _as_unknown(held.test), adapter) + fit_intercept(
        learnt, rows.label.numpy().astype(np.float64), weight, 0.0
    )


def _as_unknown(rows: Rows) -> Rows:
    return replace(rows, context=torch.zeros_like(rows.context), weight=torch.ones_like(rows.weight))
