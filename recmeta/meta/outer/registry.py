"""Outer aggregations by the names that settings use.

torchjd is imported when one of its methods is asked for, not before: with its solvers that takes longer
than torch itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recmeta.errors import InputError
from recmeta.meta.outer.grad_norm import GradNorm
from recmeta.meta.outer.interface import OuterAggregation
from recmeta.meta.outer.scalarized import Scalarized
from recmeta.meta.outer.sharing import Stateless
from recmeta.meta.outer.weighting import BySize, Mean, PerTask


@dataclass(frozen=True, kw_only=True)
class Given:
    """What an outer aggregation may be told of the contexts and of the run."""

    name: str
    contexts: int
    sizes: Tensor | None
    steps_per_epoch: int
    seed: int


Maker = Callable[[Given], OuterAggregation]


def _once(present: int) -> float:
    return 1.0


def _sum(present: int) -> float:
    return float(present)


def _scalarized(scalarizer: str, *, length: Callable[[int], float] = _once, **options: Any) -> Maker:
    def make(given: Given) -> OuterAggregation:
        from torchjd import scalarization

        made = getattr(scalarization, scalarizer)(**options)
        return Scalarized(given.name, given.contexts, made, length=length, seed=given.seed)

    return make


def _learnt(scalarizer: str, *, length: Callable[[int], float]) -> Maker:
    """A scalarizer with a parameter a context."""

    def make(given: Given) -> OuterAggregation:
        return _scalarized(scalarizer, length=length, shape=given.contexts)(given)

    return make


def _aggregated(aggregator: str, *, length: Callable[[int], float] = _once, **options: Any) -> Maker:
    def make(given: Given) -> OuterAggregation:
        from torchjd import aggregation

        made = getattr(aggregation, aggregator)(**options)
        return Stateless(given.name, given.contexts, made, length=length, seed=given.seed)

    return make


def _by_size(given: Given) -> OuterAggregation:
    if given.sizes is None:
        raise InputError("outer aggregation by_size: expected the contexts' sizes, found none")
    return BySize(given.contexts, given.sizes)


def _dwa(given: Given) -> OuterAggregation:
    from recmeta.meta.outer.dwa import Dwa

    return Dwa(given.contexts, steps_per_epoch=given.steps_per_epoch)


def _famo(given: Given) -> OuterAggregation:
    from recmeta.meta.outer.famo import Famo

    return Famo(given.contexts)


def _gradvac(given: Given) -> OuterAggregation:
    from recmeta.meta.outer.gradvac import GradVac

    return GradVac(given.contexts, seed=given.seed)


def _nash_mtl(given: Given) -> OuterAggregation:
    from recmeta.meta.outer.nash_mtl import NashMtl

    return NashMtl(given.contexts)


OUTER: dict[str, Maker] = {
    # Weights of losses.
    "mean": lambda given: Mean(given.contexts),
    "per_task": lambda given: PerTask(given.contexts),
    "by_size": _by_size,
    "random": _scalarized("Random"),  # Lin et al. 2022
    "geometric_mean": _scalarized("GeometricMean"),  # Chennupati et al. 2019
    # Lin et al. 2024; 0.1 is one of the values that they try. Its weights sum to 1 / contexts.
    "stch": _scalarized("STCH", length=lambda present: 1 / present, mu=0.1),
    "uncertainty": _learnt("UW", length=lambda present: present / 2),  # Kendall et al. 2018, who halve
    "imtl_l": _learnt("IMTLL", length=_sum),  # Liu et al. 2021
    "dwa": _dwa,
    "famo": _famo,
    "grad_norm": lambda given: GradNorm(given.contexts),
    # Combinations of gradients.
    "pcgrad": _aggregated("PCGrad", length=_sum),  # Yu et al. 2020
    "gradvac": _gradvac,
    "graddrop": _aggregated("GradDrop", length=_sum),  # Chen et al. 2020
    # Liu et al. 2021; with c below 1 it still ends where the mean does. It adds c to a length of 1.
    "cagrad": _aggregated("CAGrad", length=lambda present: 1.5, c=0.5),
    "mgda": _aggregated("MGDA"),  # Sener & Koltun 2018
    "imtl_g": _aggregated("IMTLG"),  # Liu et al. 2021
    "aligned_mtl": _aggregated("AlignedMTL"),  # Senushkin et al. 2023
    "config": _aggregated("ConFIG", length=_sum),  # Liu et al. 2024
    "dualproj": _aggregated("DualProj"),  # Lopez-Paz & Ranzato 2017
    "upgrad": _aggregated("UPGrad"),  # Quinton & Rey 2024
    "nash_mtl": _nash_mtl,
    # Ban & Ji 2024; at alpha 1 it would be the bargain of Nash-MTL. It decides on the length too.
    "fairgrad": _aggregated("FairGrad", alpha=2.0),
}


def get_outer(
    name: str, *, contexts: int, sizes: Tensor | None = None, steps_per_epoch: int = 100, seed: int = 0
) -> OuterAggregation:
    """Return a new outer aggregation of that name.

    Args:
        name: one of `OUTER`.
        contexts: how many contexts there are; they are numbered from 1.
        sizes: each context's number of rows, [contexts], for those that weigh by it.
        steps_per_epoch: steps over which a method averages that compares one epoch with the last.
        seed: of all that is random.

    Raises:
        InputError: there is none of that name, a size is missing, or a package that it needs is.
    """
    if name not in OUTER:
        raise InputError(f"unknown outer aggregation {name!r}; there are {', '.join(OUTER)}")
    given = Given(name=name, contexts=contexts, sizes=sizes, steps_per_epoch=steps_per_epoch, seed=seed)
    try:
        return OUTER[name](given)
    except ImportError as error:
        raise InputError(f"outer aggregation {name}: a package is missing. {error}") from error
