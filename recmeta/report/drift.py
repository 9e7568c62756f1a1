"""Have the inputs moved since training? The population stability index of every feature and of the label.

PSI compares the shares of equal-count bins of the training rows with those of the last seven days:
sum((q - p) * ln(q / p)). Credit scoring reads below .1 as steady, .1 to .25 as some change, above as much
(Siddiqi 2006, Credit Risk Scorecards). But it is above 0 by chance alone: with independent rows by about
(bins - 1) * (1/n + 1/m) (Yurdakul and Naranjo 2020), and rows of one user are not independent. So users
are drawn with replacement, the PSI that such chance makes is measured, its mean is subtracted, and only
what chance makes in less than one of twenty draws is called a change.

Few rows do not alarm; what grows with the age of the log by its nature (totals, ages) is told apart.
This module must never know a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta import artifacts
from recmeta.contexts import Contexts, SampledNegatives
from recmeta.dataset import TRAIN, Frames
from recmeta.errors import SchemaError
from recmeta.evaluation.resampling import draw_counts
from recmeta.events.ledger import DAY, midnight_before
from recmeta.report.bins import Floats, bin_of, equal_count_edges

SOME, MUCH = 0.1, 0.25
"""From which PSI on a feature has moved somewhat, and a lot (Siddiqi 2006)."""

WINDOW = timedelta(days=7)
"""What is recent: whole weeks, because weekdays differ."""

BINS = 10
"""Ten, as the thresholds above were made for."""

LEAST_ROWS, LEAST_USERS = 100, 10
"""Below either a share of a tenth is a matter of single rows: nothing is said."""

MOST_ROWS = 20_000
"""Rows of a part that are looked at: shares of a tenth are then known to two parts in a thousand."""

DRAWS = 200
"""Bootstrap draws; the 95th percentile then rests on ten of them."""

_SEED = 0
_GROWING = ("positives", "negatives", "hours_since_first")
_LOGARITHMS = ("positives", "negatives", "hours", "age")


def write_drift(
    folder: Path, frames: Frames, contexts: Contexts, names: Sequence[str], until: datetime
) -> dict[str, Any]:
    """Write what `drift` says to ``folder``/drift.json, unless it was written before, and return it."""
    file = folder / "drift.json"
    if not file.exists():
        artifacts.write_json(file, drift(frames, contexts, names, until))
    return dict(artifacts.read_json(file))


def drift(frames: Frames, contexts: Contexts, names: Sequence[str], until: datetime) -> dict[str, Any]:
    """Compare the training rows of every context with its last seven days of rows.

    A context's last seven days end at the midnight (UTC) after its latest row whose label is known, not
    after ``until``: labels with an outcome window come late. Training rows of those days are left out.

    Args:
        frames: labelled rows; ``dense`` [n, F].
        contexts: declared ones; each has its entry, in order.
        names: of the F columns.
        until: the night's end; later rows are not looked at.

    Returns:
        ``thresholds`` (some, much), and ``contexts``: for each ``from`` and ``to`` of the last days,
        ``training`` and ``recent`` (rows and users of each part), ``label`` (psi and so on, ``rate_before``,
        ``rate_now``, ``sampled``: whether negatives are drawn a fixed number a positive, so that the rate
        is ours), ``looked_at`` (number of features that vary), ``features``: for each, the worst first,
        ``name``, ``psi`` (as it is), ``excess`` (less what chance makes), ``chance`` (what it makes in one of
        twenty draws), ``verdict`` (steady, some, much), ``grows`` (by nature), ``before`` and ``now``
        (means; counts, hours and shares, not their logarithms). Where there are too few rows ``reason``
        says so, and there are no features.

    Raises:
        SchemaError: ``names`` are not as many as the columns.
    """
    if len(names) != frames.dense.shape[1]:
        raise SchemaError(f"drift: expected {frames.dense.shape[1]} names of columns, found {len(names)}")
    instants = frames.table["event_timestamp"].dt.epoch("us").to_numpy()
    of_context = frames.table["context"].to_numpy()
    limit = _microseconds(until)
    found = {}
    for number, name in enumerate(contexts.names):
        rows = np.flatnonzero((of_context == name) & (instants < limit))
        found[name] = _of_context(frames, rows, instants, contexts, name, names, _SEED + number)
    return {"thresholds": {"some": SOME, "much": MUCH}, "days": WINDOW // DAY, "contexts": found}


@dataclass(frozen=True)
class _Side:
    """One of the two parts that are compared: rows, weights (of mean 1), users as 0..U-1."""

    rows: npt.NDArray[np.int64]
    weights: Floats
    users: npt.NDArray[np.int64]
    count: int
    drawn: Floats
    """How often each user came in each draw, [DRAWS, U]."""


def _of_context(
    frames: Frames,
    rows: npt.NDArray[np.int64],
    instants: npt.NDArray[np.int64],
    contexts: Contexts,
    name: str,
    names: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    if not len(rows):
        return {"reason": "no labelled rows"}
    latest = frames.table["event_timestamp"][int(rows[np.argmax(instants[rows])])]
    end = midnight_before(latest) + DAY
    start = end - WINDOW
    since = _microseconds(start)
    recent = rows[instants[rows] >= since]
    training = rows[(frames.part[rows] == TRAIN) & (instants[rows] < since)]
    report: dict[str, Any] = {
        "from": start.isoformat(),
        "to": end.isoformat(),
        "training": _size(frames, training),
        "recent": _size(frames, recent),
    }
    for part, size in (
        ("training", report["training"]),
        (f"the last {WINDOW // DAY} days", report["recent"]),
    ):
        if size["rows"] < LEAST_ROWS or size["users"] < LEAST_USERS:
            report["reason"] = (
                f"{part}: {size['rows']:,} rows of {size['users']:,} users, where {LEAST_ROWS} rows of "
                f"{LEAST_USERS} users are needed"
            )
            return report
    generator = np.random.default_rng(seed)
    before, now = (_side(frames, side, generator) for side in (training, recent))
    labels = frames.table["label"].to_numpy().astype(np.float64)
    report["label"] = {
        **_compared(labels[before.rows], labels[now.rows], before, now),
        "rate_before": _mean(labels[training], _weights(frames, training)),
        "rate_now": _mean(labels[recent], _weights(frames, recent)),
        "sampled": isinstance(contexts[name].negatives.source, SampledNegatives),
    }
    features = []
    for column in _columns(names, name):
        first = frames.dense[before.rows, column].astype(np.float64)
        second = frames.dense[now.rows, column].astype(np.float64)
        if first.min() == first.max() == second.min() == second.max():
            continue
        features.append(
            {
                "name": names[column],
                **_compared(first, second, before, now),
                "grows": grows(names[column]),
                "before": _mean(_plain(names[column], first), before.weights),
                "now": _mean(_plain(names[column], second), now.weights),
            }
        )
    report["looked_at"] = len(features)
    report["features"] = sorted(features, key=lambda each: (-each["excess"], -each["psi"], each["name"]))
    return report


def _columns(names: Sequence[str], context: str) -> list[int]:
    """Columns that say something of their own in rows of ``context``.

    Where the context has named columns its target columns repeat them, and the roles of the others sum
    up what their own columns say.
    """
    own = any(name.startswith(f"{context}:") for name in names)
    repeated = ("target:", "mean:", "peak:") if own else ()
    return [number for number, name in enumerate(names) if not name.startswith(repeated)]


def grows(name: str) -> bool:
    """Whether a feature grows with the age of the log by its nature: totals, and ages since the first."""
    return name.startswith("age:") or name.rpartition(":")[2] in _GROWING


def is_logarithm(name: str) -> bool:
    """Whether a feature holds ln(1 + a count or hours)."""
    return name.startswith("age:") or (name.count(":") == 2 and _last(name).startswith(_LOGARITHMS))


def _last(name: str) -> str:
    return "" if name.startswith("rate:") else name.rpartition(":")[2]


def _plain(name: str, values: Floats) -> Floats:
    return np.expm1(values) if is_logarithm(name) else values


def _compared(first: Floats, second: Floats, before: _Side, now: _Side) -> dict[str, Any]:
    """PSI of two sets of values, less what the draw of users makes by chance."""
    edges = equal_count_edges(first, before.weights, BINS)
    if not len(edges):  # one value in training: below, at and above it
        edges = np.array([np.nextafter(first[0], -np.inf), first[0]])
    bins = len(edges) + 1
    p, chance_p = _shares(bin_of(first, edges), before, bins)
    q, chance_q = _shares(bin_of(second, edges), now, bins)
    psi = float(np.sum((q - p) * np.log(q / p)))
    # (q - p) ln(q / p) is (q - p)^2 over something between p and q.
    moved = np.sum(((chance_q - q) - (chance_p - p)) ** 2 / ((p + q) / 2.0), axis=1)
    chance = float(np.quantile(moved, 0.95))
    excess = max(0.0, psi - float(moved.mean()))
    verdict = "steady"
    if psi > chance and excess >= SOME:
        verdict = "much" if excess >= MUCH else "some"
    return {
        "psi": _rounded(psi),
        "excess": _rounded(excess),
        "chance": _rounded(chance),
        "verdict": verdict,
    }


def _shares(place: npt.NDArray[np.int64], side: _Side, bins: int) -> tuple[Floats, Floats]:
    """Each bin's share, [bins], and the same in every draw of users, [DRAWS, bins]; half a row is added."""
    cells = np.bincount(side.users * bins + place, weights=side.weights, minlength=side.count * bins)
    by_user = cells.reshape(side.count, bins)
    counts = np.vstack([by_user.sum(axis=0), side.drawn @ by_user]) + 0.5
    shares = counts / counts.sum(axis=1, keepdims=True)
    return shares[0], shares[1:]


def _side(frames: Frames, rows: npt.NDArray[np.int64], generator: np.random.Generator) -> _Side:
    if len(rows) > MOST_ROWS:
        rows = np.sort(generator.choice(rows, MOST_ROWS, replace=False))
    weights = _weights(frames, rows)
    keys = frames.table["user_id"][rows].rank("dense").to_numpy().astype(np.int64) - 1
    count = int(keys.max()) + 1
    return _Side(rows, weights / weights.mean(), keys, count, draw_counts(generator, DRAWS, count))


def _weights(frames: Frames, rows: npt.NDArray[np.int64]) -> Floats:
    return frames.table["weight"][rows].cast(pl.Float64).to_numpy()


def _size(frames: Frames, rows: npt.NDArray[np.int64]) -> dict[str, int]:
    return {"rows": len(rows), "users": int(frames.table["user_id"][rows].n_unique())}


def _mean(values: Floats, weights: Floats) -> float:
    return _rounded(float(weights @ values / weights.sum()))


def _rounded(value: float) -> float:
    """To six digits: what a sum's last bits are, depends on the machine."""
    return float(f"{value:.6g}")


def _microseconds(instant: datetime) -> int:
    return round(instant.timestamp() * 1_000_000)
