"""What a policy would earn, told from what another one showed: importance weighting with intervals.

One row is one shown item: its reward, the probability with which it was shown (`propensity`), and that
with which the policy in question would have shown it (`target`). A row counts by their ratio. The value
of a policy is the expected sum of rewards of one request. Estimators, with w the weight of a row:

- ips: the mean of w r (Horvitz and Thompson 1952; for bandits Li et al. 2011, Dudík et al. 2014).
- clipped_ips: min(w, clip) r, less variance and a bias downwards for rewards of at least 0 (Ionides 2008).
- snips: the mean of w r over the mean of w, at each position by itself (Swaminathan and Joachims 2015).
  Under uniform logging and a deterministic target it is the replay estimate of Li et al. 2011.
- dr: doubly robust (Dudík et al. 2014, equation 5): a model's idea of the target's reward, plus the
  weighted error of the model on what was shown; unbiased where the propensities are right.
- direct: the model's idea alone, as wrong as the model (slots only).

Lists weigh in one of two ways, which want different propensities:

- slot: w is the ratio at this position. With *marginal* propensities (item a at position k, whatever
  stands above; Open Bandit logs have these) that is the item-position model of Li et al. 2018: unbiased
  where a reward depends on item and position alone. With propensities *given the items above* it answers
  another question: what if only this slot were chosen by the target, below what the log has above?
- slate: w is the product of the ratios at this position and above, of propensities given the items above
  (McInerney et al. 2020, reward interaction): unbiased where a reward depends on nothing that stands
  below. dr is then the cascade's (Kiyohara et al. 2022) with a model of the reward at its position.

Intervals are closed-form: the spread of what each user (or request) moves an estimate, because rows of one
user go together. Numpy only, but for the fitted model; must never know a context, a log's file or a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recmeta.errors import InputError
from recmeta.evaluation.cluster_errors import Z95
from recmeta.evaluation.metrics import FloatArray, IntArray, as_keys, as_numbers

Weighting = Literal["slot", "slate"]

CLIP = 10.0
"""A row that stands for more than ten others is mostly noise in logs of a new surface's size; the
benchmark tells what it costs in bias."""

_CLIPPED_SHARE = 0.05
_FEW_REQUESTS = 100
_FEW_CLUSTERS = 30
_FEW_CARRIERS = 10
_SUPPORT_SLACK = 0.01


@dataclass(frozen=True)
class Value:
    """A policy's estimated value, and how much each cluster moves it: ``shares`` [clusters] sum to zero."""

    value: float
    shares: FloatArray = field(repr=False)

    @property
    def error(self) -> float:
        """Standard error over clusters; infinite where there is but one."""
        clusters = len(self.shares)
        if clusters < 2:
            return float("inf")
        return float(np.sqrt(clusters / (clusters - 1) * np.sum(self.shares**2)))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.value - Z95 * self.error, self.value + Z95 * self.error

    @property
    def carriers(self) -> float:
        """How many clusters the error comes from, (sum s^2)^2 / sum s^4; few say that rare rows decide it."""
        squares = self.shares**2
        return float(squares.sum() ** 2 / max((squares**2).sum(), 1e-300))

    def minus(self, other: Value) -> Value:
        """This value less another one of the same log: paired, so that what both share cancels."""
        return Value(self.value - other.value, self.shares - other.shares)

    def as_json(self) -> dict[str, float | None]:
        """value, low, high and error; None where a number is not finite."""
        numbers = {"value": self.value, "low": self.interval[0], "high": self.interval[1]}
        numbers["error"] = self.error
        return {name: number if np.isfinite(number) else None for name, number in numbers.items()}


@dataclass(frozen=True)
class PolicyValue:
    """What a log tells of a policy, and how much of the log tells it."""

    estimates: Mapping[str, Value]
    """By estimator; ``logged`` is the value of the policy that made the log."""
    rows: int
    requests: int
    clusters: int
    effective_requests: float
    """Kish's effective sample size, (sum w)^2 / sum w^2, at the position where it is least."""
    mean_weight: float
    """1 in expectation where the log could show all that the target would show; less where it could not."""
    largest_weight: float
    clipped_share: float
    """Of rows, those whose weight is above the clip."""
    warnings: tuple[str, ...]

    def gain(self, name: str) -> Value:
        """How much more than the logged policy, by one estimator; paired."""
        return self.estimates[name].minus(self.estimates["logged"])

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {
            "estimates": {name: value.as_json() for name, value in self.estimates.items()},
            "gains": {name: self.gain(name).as_json() for name in self.estimates if name != "logged"},
            "rows": self.rows,
            "requests": self.requests,
            "clusters": self.clusters,
            "effective_requests": self.effective_requests,
            "mean_weight": self.mean_weight,
            "largest_weight": self.largest_weight,
            "clipped_share": self.clipped_share,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class _Log:
    """Checked rows; keys are consecutive numbers from 0."""

    reward: FloatArray
    request: IntArray
    level: IntArray  # of the position
    cluster: IntArray
    requests: FloatArray  # [clusters], how many each has

    def mean(self, contribution: FloatArray) -> Value:
        """The sum of rows' contributions, by request."""
        sums = np.bincount(self.cluster, weights=contribution, minlength=len(self.requests))
        total = self.requests.sum()
        value = float(sums.sum() / total)
        return Value(value, (sums - value * self.requests) / total)

    def by_level(self, contribution: FloatArray) -> FloatArray:
        """Sums by cluster and position, [clusters, positions]."""
        width = int(self.level.max()) + 1
        place = self.cluster * width + self.level
        size = len(self.requests) * width
        sums: FloatArray = np.bincount(place, weights=contribution, minlength=size).astype(np.float64)
        return sums.reshape(-1, width)


def evaluate(
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    request: npt.ArrayLike | None = None,
    position: npt.ArrayLike | None = None,
    user: npt.ArrayLike | None = None,
    weighting: Weighting = "slot",
    clip: float = CLIP,
    predicted: npt.ArrayLike | None = None,
    baseline: npt.ArrayLike | None = None,
    unsupported: npt.ArrayLike | None = None,
) -> PolicyValue:
    """Estimate the target's value on n logged rows.

    Args:
        reward: [n], finite.
        propensity: [n] in (0, 1], of the shown item at its position.
        target: [n] in [0, 1], of the same item at the same position, by the policy in question.
        request: [n] keys; rows of one request are one list. None: each row is a request.
        position: [n] numbers that order a list; wanted by ``slate``, and told apart by snips.
        user: [n] keys of what hangs together in the interval; None: the request.
        weighting: ``slot`` or ``slate``, see above.
        clip: above 0, for clipped_ips.
        predicted: [n], a model's reward of what was shown; with ``baseline`` it gives dr.
        baseline: [n], the model's mean reward of what the target would show in this place.
        unsupported: [n] in [0, 1], where known: the target's mass on what could not be shown here.

    Raises:
        InputError: no rows, shapes that differ, NaN or infinity, a probability out of its range, two rows
            of a request at one position (``slate``), a request of two users, or a model given by halves.
    """
    rewards, log = _checked(reward, request, position, user, weighting)
    rows = len(rewards)
    shown = as_numbers("propensity", propensity, rows)
    _within("propensity", shown, (shown > 0) & (shown <= 1), "(0, 1]")
    wanted = _probabilities("target", target, rows)
    if not (np.isfinite(clip) and clip > 0):
        raise InputError(f"clip: expected a number above 0, found {clip}")
    if (predicted is None) != (baseline is None):
        raise InputError("a model: expected predicted and baseline, found one of them")
    ratio = wanted / shown
    before, weight = _slate_weights(log, position, ratio) if weighting == "slate" else (np.ones(rows), ratio)
    estimates = {
        "logged": log.mean(rewards),
        "ips": log.mean(weight * rewards),
        "clipped_ips": log.mean(np.minimum(weight, clip) * rewards),
        "snips": _snips(log, weight),
    }
    if predicted is not None and baseline is not None:
        guess = as_numbers("predicted", predicted, rows)
        expected = as_numbers("baseline", baseline, rows)
        estimates["dr"] = log.mean(before * expected + weight * (rewards - guess))
        if weighting == "slot":
            estimates["direct"] = log.mean(expected)
    masses = log.by_level(weight).sum(axis=0)
    squares = log.by_level(weight**2).sum(axis=0)
    effective = np.divide(masses**2, squares, out=np.zeros(len(masses)), where=squares > 0)
    found = PolicyValue(
        estimates=estimates,
        rows=rows,
        requests=int(log.requests.sum()),
        clusters=len(log.requests),
        effective_requests=float(effective.min()),
        mean_weight=float(weight.mean()),
        largest_weight=float(weight.max()),
        clipped_share=float(np.mean(weight > clip)),
        warnings=(),
    )
    missing = None if unsupported is None else _probabilities("unsupported", unsupported, rows)
    return PolicyValue(**{**vars(found), "warnings": tuple(_warnings(found, log, weight, missing, clip))})


def _checked(
    reward: npt.ArrayLike,
    request: npt.ArrayLike | None,
    position: npt.ArrayLike | None,
    user: npt.ArrayLike | None,
    weighting: Weighting,
) -> tuple[FloatArray, _Log]:
    shape = np.shape(reward)
    if len(shape) != 1 or not shape[0]:
        raise InputError(f"reward: expected shape [n] with at least one row, found {list(shape)}")
    if weighting not in ("slot", "slate"):
        raise InputError(f"weighting: expected slot or slate, found {weighting!r}")
    if weighting == "slate" and (request is None or position is None):
        raise InputError("weighting slate: expected request and position, by which lists are put together")
    rows = shape[0]
    rewards = as_numbers("reward", reward, rows)
    requests = as_keys("request", np.arange(rows) if request is None else request, rows)
    levels = np.zeros(rows, dtype=np.int64) if position is None else as_keys("position", position, rows)
    clusters = requests if user is None else as_keys("user", user, rows)
    _, first = np.unique(requests, return_index=True)
    if np.any(clusters != clusters[first][requests]):
        raise InputError("user: expected one user a request, found a request with two")
    if request is not None and position is not None:
        pairs = np.unique(requests * (int(levels.max()) + 1) + levels)
        if len(pairs) != rows:
            raise InputError(
                f"position: expected one row a position of a request, found {rows - len(pairs)} more"
            )
    counts = np.bincount(clusters[first]).astype(np.float64)
    return rewards, _Log(rewards, requests, levels, clusters, counts)


def _within(name: str, values: FloatArray, good: npt.NDArray[np.bool_], expected: str) -> None:
    if not good.all():
        first = int(np.flatnonzero(~good)[0])
        raise InputError(
            f"{name}: expected numbers in {expected}, found {values[first]} in row {first} "
            f"({int((~good).sum())} such rows)"
        )


def _probabilities(name: str, values: npt.ArrayLike, rows: int) -> FloatArray:
    found = as_numbers(name, values, rows)
    _within(name, found, (found >= 0) & (found <= 1), "[0, 1]")
    return found


def _slate_weights(
    log: _Log, position: npt.ArrayLike | None, ratio: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Products of the ratios above each row, and with its own: both [n]."""
    order = np.lexsort((np.asarray(position), log.request))
    listed = log.request[order]
    starts = np.flatnonzero(np.r_[True, listed[1:] != listed[:-1]])
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    # A column more in front: what stands above the first is nothing.
    table = np.ones((len(starts), int(rank.max()) + 2))
    table[listed, rank + 1] = ratio[order]
    np.cumprod(table, axis=1, out=table)
    before, weight = np.empty(len(order)), np.empty(len(order))
    before[order], weight[order] = table[listed, rank], table[listed, rank + 1]
    return before, weight


def _snips(log: _Log, weight: FloatArray) -> Value:
    """Self-normalised at each position; not a number where a position has no weight at all."""
    gains, masses = log.by_level(weight * log.reward), log.by_level(weight)
    rows = log.by_level(np.ones(len(weight)))
    total = log.requests.sum()
    mass, share = masses.sum(axis=0), rows.sum(axis=0) / total
    level = np.divide(gains.sum(axis=0), mass, out=np.full(len(mass), np.nan), where=mass > 0)
    # The share of a position varies with the users that are drawn, as its ratio does.
    present = (rows - share * log.requests[:, None]) / total * level
    moved = share * (gains - level * masses) / np.where(mass > 0, mass, 1.0)
    return Value(float((share * level).sum()), (present + moved).sum(axis=1))


def _warnings(
    found: PolicyValue, log: _Log, weight: FloatArray, missing: FloatArray | None, clip: float
) -> list[str]:
    told = []
    if missing is not None and missing.mean() > _SUPPORT_SLACK:
        told.append(
            f"support is missing: {missing.mean():.1%} of what the policy would show had propensity zero; "
            "ips and dr count it as if it earned nothing beyond the model's idea"
        )
    centred = log.mean(weight)
    rows_a_request = found.rows / found.requests
    short = 1.0 - found.mean_weight
    if missing is None and short > _SUPPORT_SLACK + 3 * centred.error / rows_a_request:
        told.append(
            f"support is missing: weights average {found.mean_weight:.2f} and not 1, so that about "
            f"{short:.0%} of what the policy would show was never shown in its place"
        )
    if found.clipped_share > _CLIPPED_SHARE:
        told.append(f"{found.clipped_share:.1%} of the rows weigh more than {clip:g}: clipped_ips is biased")
    if found.effective_requests < _FEW_REQUESTS:
        told.append(
            f"the estimates rest on about {found.effective_requests:.0f} of {found.requests:,} requests: "
            "do not decide by them"
        )
    if found.clusters < _FEW_CLUSTERS:
        told.append(f"only {found.clusters} users: intervals are too narrow")
    elif found.estimates["ips"].error > 0 and (carriers := found.estimates["ips"].carriers) < _FEW_CARRIERS:
        told.append(f"about {carriers:.0f} users' rare rows decide the estimate: intervals are too narrow")
    return told


def fit_direct_model(
    features: npt.ArrayLike,
    reward: npt.ArrayLike,
    candidates: npt.ArrayLike,
    chance: npt.ArrayLike,
    *,
    user: npt.ArrayLike | None = None,
    folds: int = 5,
    rounds: int = 100,
    seed: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """Fit boosted trees (LightGBM) to rewards: ``predicted`` and ``baseline`` for `evaluate`, [n] each.

    A row is judged by trees that saw nothing of its user (cross-fitting), without which dr would be biased.

    Args:
        features: [n, F] finite, of the shown item in its place.
        reward: [n]; log-loss where all are 0 or 1, else squares.
        candidates: [n, C, F], of what the target might show in this place.
        chance: [n, C] in [0, 1], with which probability.
        user: [n] keys; None: each row by itself.
        folds: at least 2.
        rounds: of boosting.
        seed: of the folds.

    Raises:
        InputError: shapes that differ, NaN or infinity, or fewer users than folds.
    """
    shown, others = np.asarray(features, dtype=np.float64), np.asarray(candidates, dtype=np.float64)
    rows = len(shown)
    rewards = as_numbers("reward", reward, rows)
    if shown.ndim != 2 or others.ndim != 3 or others.shape[::2] != shown.shape:
        raise InputError(
            f"features and candidates: expected [n, F] and [n, C, F], found {list(shown.shape)} and "
            f"{list(others.shape)}"
        )
    chances = np.asarray(chance, dtype=np.float64)
    if chances.shape != others.shape[:2]:
        raise InputError(f"chance: expected shape {list(others.shape[:2])}, found {list(chances.shape)}")
    for name, values in (("features", shown), ("candidates", others), ("chance", chances)):
        if not np.isfinite(values).all():
            raise InputError(f"{name}: expected finite numbers, found NaN or infinity")
    users = as_keys("user", np.arange(rows) if user is None else user, rows)
    count = int(users.max(initial=-1)) + 1
    if not 2 <= folds <= count:
        raise InputError(f"folds: expected 2 to the number of users ({count}), found {folds}")
    fold = np.random.default_rng(seed).permutation(np.arange(count) % folds)[users]
    predicted, baseline = np.empty(rows), np.empty(rows)
    for number in range(folds):
        out = np.flatnonzero(fold == number)
        model = _fit_rewards(shown[fold != number], rewards[fold != number], rounds)
        predicted[out] = model(shown[out])
        told = model(others[out].reshape(-1, shown.shape[1])).reshape(len(out), -1)
        baseline[out] = (told * chances[out]).sum(axis=1)
    return predicted, baseline


def _fit_rewards(features: FloatArray, reward: FloatArray, rounds: int) -> Any:
    import lightgbm

    if reward.min() == reward.max():  # nothing to learn, and a log-loss has no start there
        return lambda asked: np.full(len(asked), reward[0])
    binary = bool(np.isin(reward, (0.0, 1.0)).all())
    parameters = {
        "objective": "binary" if binary else "regression",
        "learning_rate": 0.05,
        "num_leaves": 15,
        "min_data_in_leaf": 30,
        "num_threads": 1,
        "deterministic": True,
        "verbosity": -1,
    }
    booster = lightgbm.train(parameters, lightgbm.Dataset(features, reward), num_boost_round=rounds)
    return lambda asked: np.asarray(booster.predict(asked), dtype=np.float64)
