"""Outer aggregations by the names that settings use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from recmeta.errors import InputError
from recmeta.meta.outer.interface import OuterAggregation
from recmeta.meta.outer.weighting import BySize, Mean, PerTask


@dataclass(frozen=True)
class Given:
    """What an outer aggregation may be told of the contexts and of the run."""

    contexts: int
    sizes: Tensor | None
    steps_per_epoch: int
    seed: int


def _by_size(given: Given) -> OuterAggregation:
    if given.sizes is None:
        raise InputError("outer aggregation by_size: expected the contexts' sizes, found none")
    return BySize(given.contexts, given.sizes)


OUTER: dict[str, Callable[[Given], OuterAggregation]] = {
    "mean": lambda given: Mean(given.contexts),
    "per_task": lambda given: PerTask(given.contexts),
    "by_size": _by_size,
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
    return OUTER[name](Given(contexts, sizes, steps_per_epoch, seed))
