"""What a night knows about surfaces to come, as JSON: curves, the ladder's policy, and what else was found.

This module lays out; it must never fit or choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from recmeta.evaluation.cluster_errors import area, interval
from recmeta.settings import Settings
from recmeta.transfer.curve import Curves
from recmeta.transfer.forecast import break_even, positives_to_match
from recmeta.transfer.held_out import HeldOut
from recmeta.transfer.ladder import Kind, Step, kind_of
from recmeta.transfer.stack import prior_weights

LIVE_WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the newcomer's expert, among which other contexts choose for each share of a context's own log."""


def evidence(curves: Curves, families: Mapping[str, Sequence[str]], settings: Settings) -> dict[str, Any]:
    """Lay out curves and policy; see docs/playbook.md for how to read them."""
    live = _live(curves)
    contexts = {name: _of_context(curves, name, live[name]) for name in curves.held}
    policies = {kind: [asdict(step) for step in steps] for kind, steps in curves.policies().items()}
    rates = [held.rate for held in curves.held.values()]
    return {
        "settings": {
            "shots": [0, *settings.transfer.shots],
            "draws": settings.transfer.draws,
            "negatives_per_positive": settings.transfer.negatives_per_positive,
            "seed": settings.training.seed,
        },
        "families": {family: list(names) for family, names in families.items()},
        "contexts": contexts,
        "mean": _means(contexts, settings.transfer.shots),
        "policies": policies,
        "policy": policies["met"],
        "rate": float(np.mean(rates)) if rates else None,
    }


def policy_of(found: Mapping[str, Any], kind: Kind = "met") -> tuple[Step, ...]:
    """Read the policy that `evidence` wrote for surfaces whose negatives are of this kind."""
    return tuple(Step(**step) for step in found.get("policies", {}).get(kind) or found["policy"])


def _of_context(curves: Curves, name: str, live: Mapping[str, Any]) -> dict[str, Any]:
    held = curves.held[name]
    given = curves.given(name)
    methods = {method for points in curves.points[name].values() for method in points}
    zero = curves.points[name].get(0, {}).get("zero_shot")
    reference = None if zero is None else zero.area.value
    curve: dict[str, dict[str, Any]] = {method: {} for method in sorted(methods)}
    for count in given:
        label = "all" if count == given[-1] else str(count)
        for method, point in curves.points[name][count].items():
            shown = point.as_json(reference if count else None, curves.settings.gate.tolerance)
            curve[method][label] = {**shown, "positives": count}
    ours = curve.get("ours", {})
    return {
        "kind": kind_of(held.bank.space.contexts[name]),
        "rows": len(held.pool),
        "positives": held.positives,
        "test_rows": len(held.test),
        "test_positives": int(held.test.label.sum()),
        "curve": curve,
        "rungs": {
            "all" if count == given[-1] else str(count): max(used, key=lambda rung: used[rung])
            for count in given
            if (used := curves.rungs[name, count])
        },
        "break_even": break_even(curve),
        "worth": {
            count: _rounded(positives_to_match(curve, point["auc"]))
            for count, point in ours.items()
            if count != "all"
        },
        "live": dict(live),
    }


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def _means(contexts: Mapping[str, Any], shots: Sequence[int]) -> dict[str, dict[str, float]]:
    """Each method's AUC, a plain mean over the contexts that were given so many positives."""
    means: dict[str, dict[str, float]] = {}
    for count in ("0", *(str(number) for number in shots), "all"):
        for method in sorted({method for context in contexts.values() for method in context["curve"]}):
            found = [
                context["curve"][method][count]["auc"]
                for context in contexts.values()
                if count in context["curve"].get(method, {})
            ]
            if found:
                means.setdefault(method, {})[count] = float(np.mean(found))
    return means


def _live(curves: Curves) -> dict[str, dict[str, Any]]:
    """Zero-shot AUC of each context when a share of its own log flows into its counters."""
    found: dict[str, dict[str, Any]] = {name: {} for name in curves.held}
    shares = sorted({share for held in curves.held.values() for share in held.live})
    for share in shares:
        scored = {
            (name, weight): _live_area(held, share, weight)
            for name, held in curves.held.items()
            for weight in LIVE_WEIGHTS
        }
        for name, held in curves.held.items():
            others = curves.others(name)

            def worth(weight: float, others: Sequence[str] = others, scored: Any = scored) -> float:
                return float(np.mean([scored[other, weight] or 0.5 for other in others])) if others else 0.0

            weight = max(LIVE_WEIGHTS, key=worth)
            logits = held.live[share] @ prior_weights(held.bank.scales, weight)
            one = area(held.test.label.numpy(), logits, held.users, held.test.weight.numpy())
            if one is not None:
                low, high = interval(one)
                found[name][f"{share:g}"] = {"auc": one.value, "low": low, "high": high, "newcomer": weight}
    return found


def _live_area(held: HeldOut, share: float, weight: float) -> float | None:
    logits = held.live[share] @ prior_weights(held.bank.scales, weight)
    one = area(held.test.label.numpy(), logits, held.users, held.test.weight.numpy())
    return None if one is None else one.value
