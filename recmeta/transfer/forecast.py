"""Numbers read off onboarding curves: what a handful of interactions is worth, and how many more it takes.

This module reads curves as JSON; it must never fit a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ENOUGH = 0.95
"""Share of what a surface can give (its AUC above chance with all its interactions) that counts as there."""

FROM_SCRATCH = ("lightgbm", "logistic")


def positives_to_match(curve: Mapping[str, Mapping[str, Any]], wanted: float) -> float | None:
    """How many positives the better of the models from scratch needs for the AUC ``wanted``; None: never.

    Between points of the curve the AUC is taken to be linear in the logarithm of positives.
    """
    best: dict[int, float] = {}
    for method in FROM_SCRATCH:
        for count, area in _areas(curve.get(method, {})):
            best[count] = max(best.get(count, 0.0), area)
    return _first_reach(sorted(best.items()), wanted)


def break_even(curve: Mapping[str, Mapping[str, Any]]) -> int | None:
    """The least number of positives from which a model from scratch is at least as good; None: never."""
    ours = dict(_areas(curve.get("ours", {})))
    scratch: dict[int, float] = {}
    for method in FROM_SCRATCH:
        for count, area in _areas(curve.get(method, {})):
            scratch[count] = max(scratch.get(count, 0.0), area)
    counts = sorted(count for count in scratch if count in ours and count > 0)
    for place, count in enumerate(counts):
        if all(scratch[later] >= ours[later] for later in counts[place:]):
            return count
    return None


def forecast(evidence: Mapping[str, Any], positives: int) -> dict[str, Any]:
    """How many more positives a new surface with ``positives`` will need to be nearly as good as it can be.

    Every context that was held out says how many it needed for `ENOUGH` of its own AUC above chance; the
    answer is their median, and the interval spans the middle 80 % of them. A surface unlike all of them may
    need more: with few contexts the interval is wide, and it is no promise.

    Returns:
        ``needed``, ``low``, ``high`` in all; ``more``, beside those that there are; ``contexts``, on how many
        it rests; and ``auc``, what such surfaces had with as many positives. None where nothing is known.
    """
    needed, expected = [], []
    for context in evidence.get("contexts", {}).values():
        points = _areas(context.get("curve", {}).get("ours", {}))
        if len(points) < 2:
            continue
        ceiling = max(area for _, area in points)
        reach = _first_reach(points, 0.5 + ENOUGH * (ceiling - 0.5))
        if reach is not None:
            needed.append(reach)
        expected.append(_between(points, positives))
    if not needed:
        return {"needed": None, "low": None, "high": None, "more": None, "contexts": 0, "auc": None}
    low, middle, high = (float(np.quantile(needed, share)) for share in (0.1, 0.5, 0.9))
    return {
        "needed": round(middle),
        "low": round(low),
        "high": round(high),
        "more": max(0, round(middle) - positives),
        "contexts": len(needed),
        "auc": float(np.mean(expected)),
    }


def _areas(points: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(positives, AUC) of a method's points, ascending; 'all' stands at its own ``positives``."""
    found = []
    for count, point in points.items():
        number = point.get("positives") if count == "all" else int(count)
        if number is not None and point.get("auc") is not None:
            found.append((int(number), float(point["auc"])))
    return sorted(found)


def _scale(count: float) -> float:
    return float(np.log1p(count))


def _first_reach(points: Sequence[tuple[int, float]], wanted: float) -> float | None:
    before: tuple[int, float] | None = None
    for count, area in points:
        if area >= wanted:
            if before is None or area == before[1]:
                return float(count)
            share = (wanted - before[1]) / (area - before[1])
            return float(np.expm1(_scale(before[0]) + share * (_scale(count) - _scale(before[0]))))
        before = (count, area)
    return None


def _between(points: Sequence[tuple[int, float]], count: int) -> float:
    places, areas = zip(*((_scale(number), area) for number, area in points), strict=True)
    return float(np.interp(_scale(count), places, areas))
