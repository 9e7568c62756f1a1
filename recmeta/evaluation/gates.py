"""The gates: which candidate serves a context, whether the night's bundle is promoted, and why, in one line.

A gate is a small pure function that can refuse alone. A candidate is chosen on validation rows, and has
to pass every gate on later test rows; where it fails, the next best in a short fixed order is tried, so
that a context serves the best of what was measured and is never made worse. This module must never
read a file, fit a model or write a bundle.

The order in which candidates are tried: the best on validation, then the shared model, then the trees,
then popularity, then what served until now. The last three come up only where the test rows themselves
showed that something simple is better, so that few comparisons are made on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from recmeta.errors import InputError
from recmeta.evaluation.metrics import as_labels, as_numbers, as_weights, log_loss
from recmeta.evaluation.resampling import HIGHER_IS_BETTER, Difference, Metric, Resampled, resample
from recmeta.settings import GateSettings

Serves = Literal["shared", "adapter", "trees", "blend", "stack", "popularity", "incumbent", "nothing"]

LEARNED: tuple[Serves, ...] = ("shared", "adapter", "trees", "blend", "stack")
"""What validation chooses from; a tie goes to the earlier."""
BASELINES = ("popularity", "bias_only", "trees")
"""What a candidate must not fall below."""
CANDIDATES = frozenset({*LEARNED, *BASELINES, "incumbent"})
_BASE_RATE = "base rate"

Figure = float | int | str | None


@dataclass(frozen=True)
class Scored:
    """Rows of one context in one part of time, with what each candidate says of them.

    ``logits`` are calibrated (on validation rows): [n] each, by candidate. ``user`` are keys of any
    type, ``group`` names ranking lists.
    """

    label: npt.NDArray[np.float32] | npt.NDArray[np.float64]
    weight: npt.NDArray[np.float32] | npt.NDArray[np.float64]
    user: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    logits: Mapping[str, npt.NDArray[np.float32] | npt.NDArray[np.float64]]
    ranking: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    """Where a ranking list is met over time: logits with the user's state at the list's first row, [n]."""


@dataclass(frozen=True)
class GateResult:
    """What one gate said: passed or not, a line that says why, and the figures it looked at."""

    name: str
    passed: bool
    reason: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What one context serves from now on, and why."""

    context: str
    serves: Serves
    promoted: bool
    """Something new serves because it passed every gate; not so for a default without evidence."""
    reason: str
    checks: tuple[GateResult, ...]
    metrics: Mapping[str, Mapping[Metric, dict[str, float | None]]]
    """For each candidate its figures on test rows, with 95 % intervals."""


@dataclass(frozen=True)
class BundleDecision:
    """Whether the night's bundle is promoted, and why (not)."""

    promote: bool
    reason: str
    checks: tuple[GateResult, ...]


def volume(test: Scored, settings: GateSettings) -> GateResult:
    """Refuse to decide on fewer positives, negatives or users than give the bootstrap any power."""
    positives = int(np.count_nonzero(test.label == 1))
    negatives = len(test.label) - positives
    users = len(np.unique(test.user))
    wanted = {
        "positives": settings.min_positives,
        "negatives": settings.min_positives,
        "users": settings.min_users,
    }
    found = {"positives": positives, "negatives": negatives, "users": users}
    short = [
        f"{found[name]} {name} where {wanted[name]} are needed"
        for name in wanted
        if found[name] < wanted[name]
    ]
    reason = f"too few test rows to decide: {', '.join(short)}" if short else "enough test rows to decide"
    return GateResult("volume", not short, reason, found)


def calibrated(candidate: str, resampled: Resampled, settings: GateSettings) -> GateResult:
    """Refuse a candidate whose probabilities are worse than saying the base rate of every row."""
    gap = resampled.difference(_BASE_RATE, candidate, "log_loss")
    worse = _surely_better(gap, settings.confidence)
    reason = (
        f"log-loss {_shown(resampled, candidate, 'log_loss')} is "
        f"{'worse than' if worse else 'not worse than'} the base rate's "
        f"{_shown(resampled, _BASE_RATE, 'log_loss')}"
    )
    return GateResult("calibrated", not worse, reason, gap.as_dict())


def beats(
    name: str, candidate: str, other: str, shown: str, resampled: Resampled, settings: GateSettings
) -> GateResult:
    """Refuse a candidate that is not better than ``other`` in AUC, at the set confidence."""
    gap = resampled.difference(candidate, other, "auc")
    passed = _surely_better(gap, settings.confidence)
    reason = f"{'beats' if passed else 'does not beat'} {shown}: {_difference_text(gap)}"
    return GateResult(name, passed, reason, gap.as_dict())


def beats_shared(candidate: str, resampled: Resampled, settings: GateSettings) -> GateResult:
    """Refuse what is not better than the shared model without any adapter."""
    return beats("beats_shared", candidate, "shared", "the shared model", resampled, settings)


def beats_incumbent(candidate: str, resampled: Resampled, settings: GateSettings) -> GateResult:
    """Refuse what is not better than what serves now."""
    return beats("beats_incumbent", candidate, "incumbent", "what serves now", resampled, settings)


def not_below(candidate: str, baseline: str, resampled: Resampled, settings: GateSettings) -> GateResult:
    """Refuse a candidate that a baseline beats in AUC, at the set confidence and by more than noise."""
    gap = resampled.difference(baseline, candidate, "auc")
    below = _surely_better(gap, settings.confidence) and (gap.value or 0.0) > settings.tolerance
    back = resampled.difference(candidate, baseline, "auc")
    reason = f"{'below' if below else 'not below'} {baseline}: {_difference_text(back)}"
    return GateResult(f"not_below_{baseline}", not below, reason, back.as_dict())


def parity(name: str, difference: float, settings: GateSettings) -> GateResult:
    """Refuse an exported graph whose logits are not those of the model it came from.

    ``difference`` is the largest absolute one that was seen; NaN is refused.
    """
    passed = difference <= settings.parity
    reason = f"{name}: logits differ by at most {difference:.2g}, allowed are {settings.parity:.2g}"
    return GateResult(
        "parity", passed, reason, {"largest_difference": difference if np.isfinite(difference) else None}
    )


def decide(context: str, validation: Scored, test: Scored, settings: GateSettings, *, seed: int) -> Decision:
    """Say what ``context`` serves.

    ``shared`` and ``popularity`` are expected among the candidates; ``adapter``, ``trees``, ``blend``,
    ``stack``, ``bias_only`` and ``incumbent`` may be left out. Without enough test rows the incumbent
    stays, and without an incumbent the shared model serves by default (on real logs it is worth some
    hundred interactions to a new surface), which is no promotion.

    Raises:
        InputError: an unknown or a missing candidate, candidates that differ between the parts, or
            arrays that do not fit together.
    """
    _check_candidates(context, validation, test)
    incumbent = "incumbent" in test.logits
    base = _base_rate_logits(validation, test)
    resampled = resample(
        test.label,
        {**test.logits, _BASE_RATE: base},
        test.user,
        weight=test.weight,
        group=test.group,
        ranking=test.ranking,
        resamples=settings.resamples,
        seed=seed,
    )
    metrics = _metrics(resampled, test)
    enough = volume(test, settings)
    checks = [enough]
    if not enough.passed:
        serves: Serves = "incumbent" if incumbent else "shared"
        kept = "what serves now stays" if incumbent else "the shared model serves until there are more"
        return Decision(context, serves, False, f"{enough.reason}; {kept}", (enough,), metrics)

    refusals: list[str] = []
    for candidate in _order(validation):
        results = list(_gates_of(candidate, resampled, settings))
        checks += [_named(candidate, result) for result in results]
        refused = next((result for result in results if not result.passed), None)
        if refused is None:
            reason = _passed_text(candidate, results, resampled, refusals)
            return Decision(context, candidate, True, reason, tuple(checks), metrics)
        refusals.append(f"{candidate} {refused.reason}")
    why = refusals[0]  # of what validation chose; the others' are among the checks
    if incumbent:
        return Decision(context, "incumbent", False, f"what serves now stays: {why}", tuple(checks), metrics)
    return Decision(context, "nothing", False, f"nothing serves: {why}", tuple(checks), metrics)


def decide_bundle(
    decisions: Mapping[str, Decision],
    parities: Mapping[str, float],
    settings: GateSettings,
    *,
    parent_contexts: frozenset[str] | None,
    outdated: str | None = None,
) -> BundleDecision:
    """Say whether the bundle that these decisions make is promoted.

    Args:
        decisions: of every context.
        parities: largest logit difference of each exported graph from its model, by the graph's name.
        settings: of the gates.
        parent_contexts: the contexts that serve now; None where nothing does.
        outdated: why what serves now has to make room even for the same in a new bundle.
    """
    checks = [parity(name, difference, settings) for name, difference in sorted(parities.items())]
    checks.append(_something_new(decisions, parent_contexts, outdated))
    refused = next((check for check in checks if not check.passed), None)
    reason = refused.reason if refused is not None else checks[-1].reason
    return BundleDecision(refused is None, reason, tuple(checks))


def _something_new(
    decisions: Mapping[str, Decision], parent_contexts: frozenset[str] | None, outdated: str | None
) -> GateResult:
    new = sorted(name for name, decision in decisions.items() if decision.promoted)
    if new:
        return GateResult("something_new", True, f"something better serves {', '.join(new)}")
    if parent_contexts is None:
        return GateResult("something_new", False, "no context has anything that passed its gates")
    if set(decisions) != parent_contexts:
        changed = sorted(set(decisions) ^ parent_contexts)
        return GateResult("something_new", True, f"contexts came or went: {', '.join(changed)}")
    if outdated is not None:
        return GateResult("something_new", True, outdated)
    return GateResult("something_new", False, "nothing changed: every context keeps what serves now")


def _gates_of(candidate: Serves, resampled: Resampled, settings: GateSettings) -> Iterator[GateResult]:
    yield calibrated(candidate, resampled, settings)
    if candidate != "shared":
        yield beats_shared(candidate, resampled, settings)
    if "incumbent" in resampled.draws:
        yield beats_incumbent(candidate, resampled, settings)
    for baseline in BASELINES:
        if baseline in resampled.draws and baseline != candidate:
            yield not_below(candidate, baseline, resampled, settings)


def _order(validation: Scored) -> list[Serves]:
    def loss(name: Serves) -> float:
        found = log_loss(validation.label, validation.logits[name], validation.weight)
        return np.inf if found is None else found

    # `min` keeps the first of equals, and LEARNED starts with the simplest.
    chosen = min((name for name in LEARNED if name in validation.logits), key=loss)
    present: tuple[Serves, ...] = ("shared", "trees", "popularity")
    rest = [name for name in present if name in validation.logits and name != chosen]
    return [chosen, *rest]


def _metrics(resampled: Resampled, test: Scored) -> dict[str, dict[Metric, dict[str, float | None]]]:
    return {
        name: {metric: resampled.estimate(name, metric).as_dict() for metric in HIGHER_IS_BETTER}
        for name in sorted(test.logits)
    }


def _base_rate_logits(validation: Scored, test: Scored) -> npt.NDArray[np.float64]:
    """The validation rows' base rate as a logit for every test row; half a positive and a negative added."""
    label, weight = as_labels(validation.label), as_weights(validation.weight, len(validation.label))
    positives = float(weight[label == 1].sum()) + 0.5
    negatives = float(weight[label == 0].sum()) + 0.5
    return np.full(len(test.label), np.log(positives / negatives))


def _check_candidates(context: str, validation: Scored, test: Scored) -> None:
    where = f"candidates of context {context!r}"
    if set(validation.logits) != set(test.logits):
        raise InputError(
            f"{where}: expected the same ones on validation and test rows, found "
            f"{sorted(validation.logits)} and {sorted(test.logits)}"
        )
    unknown = set(test.logits) - CANDIDATES
    missing = {"shared", "popularity"} - set(test.logits)
    if unknown or missing:
        raise InputError(f"{where}: unknown {sorted(unknown)}, missing {sorted(missing)}")
    for name, logit in validation.logits.items():
        as_numbers(f"validation logits of {name}", logit, len(validation.label))


def _surely_better(gap: Difference, confidence: float) -> bool:
    return gap.value is not None and gap.value > 0 and (gap.probability_better or 0.0) >= confidence


def _named(candidate: str, result: GateResult) -> GateResult:
    return GateResult(f"{candidate}.{result.name}", result.passed, result.reason, result.figures)


def _difference_text(gap: Difference) -> str:
    if gap.value is None or gap.low is None or gap.high is None or gap.probability_better is None:
        return "AUC is not defined on these rows"
    interval = f"[{gap.low:+.4f}, {gap.high:+.4f}]"
    return f"AUC {gap.value:+.4f} {interval}, better in {gap.probability_better:.0%} of resamples"


def _shown(resampled: Resampled, candidate: str, metric: Metric) -> str:
    value = resampled.estimate(candidate, metric).value
    return "undefined" if value is None else f"{value:.4f}"


def _passed_text(
    candidate: Serves, results: list[GateResult], resampled: Resampled, refusals: list[str]
) -> str:
    won = [result.reason for result in results if result.name.startswith("beats_")]
    won = won or [f"AUC {_shown(resampled, candidate, 'auc')}, not below any baseline"]
    instead = f" (tried before: {'; '.join(refusals)})" if refusals else ""
    return f"{candidate} {' and '.join(won)}{instead}"
