"""Have the inputs moved since training? The population stability index of every feature and of the label.

PSI compares the shares of equal-count bins of the training rows with those of the last seven days:
sum((q - p) * ln(q / p)). Credit scoring reads below .1 as steady, .1 to .25 as some change, above as much
(Siddiqi 2006, Credit Risk Scorecards). But it is above 0 by chance alone: with independent rows by about
(bins - 1) * (1/n + 1/m) (Yurdakul and Naranjo 2020), and rows of one user are not independent. So it is
measured what chance makes: as many users' weeks as came in the last days are drawn from training, again
and again, and compared in the same way. The mean of that is subtracted, and only what chance makes in less
than one of twenty draws is called a change. And weeks differ: people come for what is new, so that items
of one week are not those of another. Every week of training is compared with the whole, too, and what one
week of ten reaches is no change.

Few rows do not alarm; what grows with the age of the log by its nature (totals, ages, counts that
still fill up) is told apart.
This module must never know a model.
"""

from __future__ import annotations

import math
import re
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
"""Rows of a part that are looked at: independent ones would give a tenth to two parts in a thousand."""

LEAST_WEEKS = 8
"""Weeks of training from which on it can be said what one of ten reaches; with fewer chance alone decides."""

DRAWS = 200
"""Bootstrap draws; the 95th percentile then rests on ten of them."""

FULL = 6.6
"""Half-lives in the middle of which a count that fades by half has filled up to nine tenths of its level."""

_SEED = 0
_FADING = re.compile(r"^(?:positives|negatives)_(\d+)([smhd])$")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
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
        twenty draws), ``ordinary`` (what one week of training in ten reaches; None where they are few),
        ``verdict`` (steady, some, much), ``grows`` (by nature), ``before`` and ``now``
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
    """One of the two parts that are compared: rows, weights (of mean 1), and each row's cluster as 0..C-1.

    A cluster is what one user did in one week: its rows are alike, for the user's counters hardly move.
    """

    rows: npt.NDArray[np.int64]
    weights: Floats
    clusters: npt.NDArray[np.int64]
    count: int
    weeks: npt.NDArray[np.int64]
    """Of those weeks that have rows enough, each row's as 0..W-1; -1 in others."""


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
    weeks = (since - instants) // round(WINDOW.total_seconds() * 1_000_000)
    before, now = (_side(frames, side, weeks, generator) for side in (training, recent))
    drawn = _draws(before, now, generator)
    labels = frames.table["label"].to_numpy().astype(np.float64)
    report["label"] = {
        **_compared(labels[before.rows], labels[now.rows], before, now, drawn),
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
                **_compared(first, second, before, now, drawn),
                "grows": grows(names[column], start - frames.split.start),
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


def grows(name: str, span: timedelta) -> bool:
    """Whether a feature grows with the age of the log by its nature, whatever people do.

    Totals and ages do; and counts that fade by half over a time of which the training rows' ``span`` holds
    fewer than `FULL`: they were still filling up when the rows were made.
    """
    counter = name.rpartition(":")[2]
    if name.startswith("age:") or counter in _GROWING:
        return True
    fading = _FADING.search(counter)
    return fading is not None and span < FULL * timedelta(**{_UNITS[fading[2]]: int(fading[1])})


def is_logarithm(name: str) -> bool:
    """Whether a feature holds ln(1 + a count or hours)."""
    return name.startswith("age:") or (name.count(":") == 2 and _last(name).startswith(_LOGARITHMS))


def _last(name: str) -> str:
    return "" if name.startswith("rate:") else name.rpartition(":")[2]


def _plain(name: str, values: Floats) -> Floats:
    return np.expm1(values) if is_logarithm(name) else values


def _compared(first: Floats, second: Floats, before: _Side, now: _Side, drawn: Floats) -> dict[str, Any]:
    """PSI of two sets of values, less what the draw of users makes by chance; ``drawn`` as by `_draws`."""
    edges = equal_count_edges(first, before.weights, BINS)
    if not len(edges):  # one value in training: below, at and above it
        edges = np.array([np.nextafter(first[0], -np.inf), first[0]])
    bins = len(edges) + 1
    taught, came = bin_of(first, edges), bin_of(second, edges)
    p = _shares(np.bincount(taught, weights=before.weights, minlength=bins), len(first))
    q = _shares(np.bincount(came, weights=now.weights, minlength=bins), len(second))
    cells = np.bincount(
        before.clusters * bins + taught, weights=before.weights, minlength=before.count * bins
    )
    by_chance = _psi(p, _shares(drawn @ cells.reshape(before.count, bins), len(second)))
    psi, chance = float(_psi(p, q)), float(np.quantile(by_chance, 0.95))
    ordinary = _ordinary(p, taught, before, bins, len(second))
    excess = max(0.0, psi - float(by_chance.mean()))
    verdict = "steady"
    if psi > max(chance, ordinary or 0.0) and excess >= SOME:
        verdict = "much" if excess >= MUCH else "some"
    return {
        "psi": _rounded(psi),
        "excess": _rounded(excess),
        "chance": _rounded(chance),
        "ordinary": None if ordinary is None else _rounded(ordinary),
        "verdict": verdict,
    }


def _ordinary(p: Floats, place: npt.NDArray[np.int64], side: _Side, bins: int, rows: int) -> float | None:
    """The PSI that one week of training in ten reaches, as if it had ``rows`` rows; None with few weeks."""
    count = int(side.weeks.max()) + 1
    if count < LEAST_WEEKS:
        return None
    inside = side.weeks >= 0
    cells = np.bincount(
        side.weeks[inside] * bins + place[inside], weights=side.weights[inside], minlength=count * bins
    )
    return float(np.quantile(_psi(p, _shares(cells.reshape(count, bins), rows)), 0.9))


def _psi(p: Floats, q: Floats) -> Floats:
    """The population stability index of shares [bins] and [..., bins], none of which is 0."""
    return np.asarray(np.sum((q - p) * np.log(q / p), axis=-1), dtype=np.float64)


def _shares(counts: npt.NDArray[Any], rows: int) -> Floats:
    """Shares of ``counts`` [..., bins] as if they were of ``rows`` rows, with half a row more in each bin."""
    scaled = counts * (rows / counts.sum(axis=-1, keepdims=True)) + 0.5
    return np.asarray(scaled / scaled.sum(axis=-1, keepdims=True), dtype=np.float64)


def _draws(before: _Side, now: _Side, generator: np.random.Generator) -> Floats:
    """How often each cluster of training comes in each draw, [DRAWS, C].

    As many are drawn as there are now, or fewer where they have more rows each: so few say less.
    """
    alike = math.ceil(len(now.rows) * before.count / len(before.rows))
    size = min(now.count, alike)
    chosen = generator.integers(0, before.count, size=(DRAWS, size))
    chosen += np.arange(DRAWS)[:, None] * before.count
    counts = np.bincount(chosen.ravel(), minlength=DRAWS * before.count)
    return counts.reshape(DRAWS, before.count).astype(np.float64)


def _side(
    frames: Frames,
    rows: npt.NDArray[np.int64],
    weeks: npt.NDArray[np.int64],
    generator: np.random.Generator,
) -> _Side:
    """Take rows, by whole clusters at most about `MOST_ROWS` of them."""
    keys = pl.DataFrame({"user": frames.table["user_id"][rows], "week": weeks[rows]})
    clusters = keys.select(pl.struct("user", "week").rank("dense")).to_series().to_numpy().astype(np.int64)
    if len(rows) > MOST_ROWS:
        sizes = np.bincount(clusters)
        order = generator.permutation(len(sizes))
        taken = order[: int(np.searchsorted(np.cumsum(sizes[order]), MOST_ROWS)) + 1]
        kept = np.isin(clusters, taken)
        rows, clusters = rows[kept], clusters[kept]
    clusters = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
    weights = _weights(frames, rows)
    _, week, sizes = np.unique(weeks[rows], return_inverse=True, return_counts=True)
    full = sizes >= LEAST_ROWS
    numbers = np.where(full, np.cumsum(full) - 1, -1).astype(np.int64)
    return _Side(rows, weights / weights.mean(), clusters, int(clusters.max()) + 1, numbers[week])


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
