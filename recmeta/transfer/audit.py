"""Which contexts help each other and which are in each other's way, and what is gained by parting them.

The effect of a source on a target is the AUC of the target's own expert in a bank of all contexts, less that
in the bank which was fitted as if the source's label family did not exist: without its rows and without its
columns. With few contexts this is not a share that adds up: two sources that know the same hide each other's
worth, and a family is one source. It says what a site would lose if that surface were gone, no more.

Everything here measures; it must never decide what serves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta.artifacts import digest_of
from recmeta.dataset import TEST, TRAIN, VALIDATION, Frames, Part
from recmeta.evaluation.cluster_errors import Z95, Area, area, difference, interval
from recmeta.transfer.bank import Bank, Learnt, fit_bank

SHARED_PAIRS = 50
"""(user, item) pairs in two contexts, below which a correlation of their labels says nothing."""

OF_EACH_LABEL = 10
"""Positives, and negatives, that each of the two contexts needs among those pairs."""

RELATED = 0.3
"""The least correlation that is told."""

SAME_FAMILY = 0.5
"""From here on two contexts should be declared one label family: each all but tells the other's label."""

SUSPECT = -0.002
"""The validation effect below which a source is left out on trial: less is not worth a fit. A verdict wants
the whole interval beyond half of it: another seed of a network moves an expert's AUC by as much."""

Z80 = 0.841621
"""One-sided 80 %: a suspicion, which test rows then judge at 95 %, may be weaker than a verdict."""

MOST_FITS = 3
"""Further banks that remedies may fit in a night; each takes as long as one family of the evidence."""


class Related(TypedDict):
    """Two contexts whose labels go together, ``rows`` of them on the same (user, item)."""

    a: str
    b: str
    correlation: float
    rows: int


class Cell(TypedDict):
    """An effect on AUC with its 95 % interval; above 0 the source helps, if it is more than a trifle."""

    value: float
    low: float
    high: float
    verdict: Literal["helps", "hurts", "neutral"]
    together: NotRequired[list[str]]
    """The family that was left out as one, where it has several members: all have this one effect."""


Matrix = dict[str, dict[str, Cell]]
"""By source, by target."""


class Remedy(TypedDict):
    """A target's AUC on test rows before and after sources were left out; the 95 % interval of the gain."""

    left_out: list[str]
    auc_before: float
    auc_after: float
    low: float
    high: float
    helped: bool
    """The whole interval lies above 0."""


def related_pairs(frames: Frames) -> list[Related]:
    """Correlate the labels of every two contexts over the (user, item) pairs of which both have rows.

    The correlation is phi, Pearson's of two labels. A pair with several rows counts as positive if one of
    them is. Test rows are not looked at.

    Returns:
        Those of at least `RELATED`, the closest first; from `SAME_FAMILY` on they should be declared a
        family. Two contexts with too few pairs (`SHARED_PAIRS`), or too few of one label
        (`OF_EACH_LABEL`), are absent.
    """
    labels = (
        frames.table.filter(pl.Series(np.isin(frames.part, (TRAIN, VALIDATION))))
        .group_by("context", "user_id", "item_id")
        .agg(pl.col("label").max())
    )
    by_context = {str(name): of.drop("context") for (name,), of in labels.group_by("context")}
    found: list[Related] = []
    for a, b in combinations(sorted(by_context), 2):
        both = by_context[a].join(by_context[b], on=("user_id", "item_id"), suffix="_b")
        phi = _phi(both["label"].to_numpy() == 1, both["label_b"].to_numpy() == 1)
        if phi is not None and phi >= RELATED:
            found.append({"a": a, "b": b, "correlation": phi, "rows": len(both)})
    return sorted(found, key=lambda pair: (-pair["correlation"], pair["a"], pair["b"]))


def _phi(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float | None:
    rows, p, q = len(first), int(first.sum()), int(second.sum())
    if rows < SHARED_PAIRS or min(p, rows - p, q, rows - q) < OF_EACH_LABEL:
        return None
    both = int((first & second).sum())
    return float((rows * both - p * q) / np.sqrt(float(p) * (rows - p) * q * (rows - q)))


def transfer_matrix(
    full: Bank,
    without: Mapping[str, Bank],
    families: Mapping[str, Collection[str]],
    parts: Mapping[int, Part],
    *,
    part: int,
    between: float = 0.0,
) -> Matrix:
    """Measure what every source does to every target: full bank less the bank without the source's family.

    Both score the same rows, so that the error is a paired one, by user (`cluster_errors`). Trees and network
    of both were stopped on validation rows: an effect there is a little optimistic on either side, and is
    meant for choosing; effects to report come from test rows.

    Args:
        full: of all contexts.
        without: by family, the bank that was fitted as if its members did not exist.
        families: names by family.
        parts: rows.
        part: whose rows are scored, VALIDATION or TEST.
        between: variance of a difference of two AUCs that is due to the training alone; see
            `noise_of_training`.

    Returns:
        Targets are contexts with an expert of their own in both banks, and with both labels among the rows.
        The members of a family have one effect, and it is not measured on one another.
    """
    known = {name: _own_area(full, parts, part, name) for name in full.sources}
    matrix: Matrix = {}
    for family, bank in without.items():
        members = sorted(families[family])
        cells: dict[str, Cell] = {}
        for target in bank.sources:
            before, after = known.get(target), _own_area(bank, parts, part, target)
            if before is None or after is None:
                continue
            cells[target] = _cell(difference(before, after), between, members)
        for source in members if cells else []:
            matrix[source] = {target: cell.copy() for target, cell in cells.items()}
    return dict(sorted(matrix.items()))


def _own_area(bank: Bank, parts: Mapping[int, Part], part: int, target: str) -> Area | None:
    """The AUC of a target's own expert on its rows of a part; None where one label is missing."""
    rows = parts[part].of_context(bank.space.contexts.names.index(target) + 1)
    if not len(rows.rows):
        return None
    # Of the sources, only the target is asked: the others' opinions would take most of the time.
    logits = replace(bank, sources=(target,)).experts(rows.rows, target)[:, 0]
    return area(rows.rows.label.numpy(), logits, rows.clusters, rows.rows.weight.numpy())


def _cell(effect: Area, between: float, members: Sequence[str]) -> Cell:
    low, high = interval(effect, between=between)
    cell: Cell = {
        "value": effect.value,
        "low": low,
        "high": high,
        "verdict": "helps" if low > -SUSPECT / 2 else "hurts" if high < SUSPECT / 2 else "neutral",
    }
    return {**cell, "together": list(members)} if len(members) > 1 else cell


def noise_of_training(first: Bank, second: Bank, parts: Mapping[int, Part], *, part: int) -> float:
    """Return the variance of a difference of two AUCs that the network's seed alone makes.

    The mean over contexts of the squared difference of two banks of the same contexts that differ in the
    seed (`fit_bank`). An interval by user does not know of it: it takes both models as given.
    """
    squares = []
    for name in first.sources:
        one, other = (_own_area(bank, parts, part, name) for bank in (first, second))
        if one is not None and other is not None:
            squares.append((one.value - other.value) ** 2)
    return float(np.mean(squares)) if squares else 0.0


def suspects(matrix: Matrix) -> dict[str, dict[str, float]]:
    """By target, the sources that are worth leaving out on trial, with their effects; worst target first.

    An effect below `SUSPECT` that is below 0 at one-sided 80 %. How bad it is for a target is the sum of
    those effects, a family counted once.
    """
    found: dict[str, dict[str, float]] = {}
    weights: dict[str, float] = {}
    for source, row in matrix.items():
        for target, cell in row.items():
            error = (cell["high"] - cell["low"]) / (2.0 * Z95)
            if cell["value"] < SUSPECT and cell["value"] + Z80 * error < 0:
                found.setdefault(target, {})[source] = cell["value"]
                members = len(cell.get("together", [source]))
                weights[target] = weights.get(target, 0.0) + cell["value"] / members
    return {target: found[target] for target in sorted(found, key=lambda name: (weights[name], name))}


def remedies(
    learnt: Learnt,
    full: Bank,
    without: Mapping[str, Bank],
    families: Mapping[str, Collection[str]],
    folder: Path,
    *,
    validation: Matrix,
    between: float = 0.0,
) -> dict[str, Remedy]:
    """Leave out together all `suspects` of a target, and say on test rows what that was worth.

    Where they are one family its bank is there already. Other banks are fitted into ``folder``, `MOST_FITS`
    of them at the most, for the worst targets; what was not tried is absent here and told by `untried`.

    Args:
        learnt: what the banks were fitted from.
        full: of all contexts.
        without: by family.
        families: names by family.
        folder: for further banks, one folder each; a network that is there already is read.
        validation: `transfer_matrix` of validation rows, which chooses; test rows only judge.
        between: as in `transfer_matrix`.
    """
    family_of = {name: family for family, names in families.items() for name in names}
    fitted = {frozenset([family]): bank for family, bank in without.items()}
    found: dict[str, Remedy] = {}
    fits = 0
    for target, sources in suspects(validation).items():
        left = frozenset(family_of[source] for source in sources)
        hidden = sorted(name for family in left for name in families[family])
        before = _own_area(full, learnt.parts, TEST, target)
        if before is None:
            continue
        if left not in fitted:
            if fits == MOST_FITS:
                continue
            fits += 1
            named = folder / f"without-{digest_of(hidden)[:12]}"
            fitted[left] = fit_bank(learnt, named, hidden=hidden)
        after = _own_area(fitted[left], learnt.parts, TEST, target)
        if after is not None:
            low, high = interval(difference(after, before), between=between)
            found[target] = {
                "left_out": hidden,
                "auc_before": before.value,
                "auc_after": after.value,
                "low": low,
                "high": high,
                "helped": low > 0,
            }
    return found


def negative_cells(matrix: Matrix) -> list[str]:
    """Say in a sentence each which target is surely worse because of which source; the worst first."""
    found: dict[tuple[str, str], Cell] = {}
    for source, row in matrix.items():
        for target, cell in row.items():
            if cell["verdict"] == "hurts":
                found[target, " and ".join(cell.get("together", [source]))] = cell
    return [
        f"{target} is worse by {_short(-cell['value'])} "
        f"({_short(-cell['high'])} to {_short(-cell['low'])}) because of {sources}"
        for (target, sources), cell in sorted(found.items(), key=lambda item: (item[1]["value"], item[0]))
    ]


def untried(validation: Matrix, found: Mapping[str, Remedy]) -> list[str]:
    """Say in a sentence each which targets have suspects that `remedies` did not leave out."""
    return [
        f"{target} without {' and '.join(sorted(sources))} was not tried: a night fits {MOST_FITS} more "
        "banks at the most, for the worst targets, and judges them where test rows have both labels"
        for target, sources in suspects(validation).items()
        if target not in found
    ]


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)
