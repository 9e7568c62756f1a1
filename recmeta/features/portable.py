"""Columns of a dense row that every site has: those that bear no context's name, by name.

What is learnt over these columns can be taken to a site with other contexts, whose rows are laid out
otherwise. They are the role and common columns of `FeatureSpace`, for given half-lives, always with the
counters of negatives; a site whose contexts never say no has none of those, and they are zero there.

This module knows numpy only, as `recmeta.features.assembly` does; it must never know a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from recmeta.contexts import Contexts
from recmeta.features.assembly import FeatureSpace

Float32s = npt.NDArray[np.float32]


def _imagined(half_lives: Sequence[timedelta]) -> FeatureSpace:
    """The layout of a site with one context that says yes and no: all of its role columns are portable."""
    declared = {"positives": ["yes"], "negatives": {"explicit": {"events": ["no"]}}}
    contexts = Contexts.model_validate({"contexts": {"imagined": declared}})
    return FeatureSpace(contexts, half_lives, history_length=1)


def portable_columns(half_lives: Sequence[timedelta]) -> tuple[str, ...]:
    """Return the names of the portable columns, in the order in which models read them."""
    space = _imagined(half_lives)
    return tuple(space.names[place] for place in space.role_columns)


def portable_digest(half_lives: Sequence[timedelta]) -> str:
    """Return a digest of the portable columns and of how their values are computed.

    Two versions of recmeta with the same digest read each other's models.
    """
    return _imagined(half_lives).digest


def pick(names: Sequence[str], dense: Float32s, columns: Sequence[str]) -> Float32s:
    """Return some columns of rows by name; zeros where the rows have none of that name.

    Args:
        names: of the columns of ``dense``, F names.
        dense: float32 [n, F]; not changed.
        columns: P names.

    Returns:
        float32 [n, P].
    """
    places = {name: place for place, name in enumerate(names)}
    found = np.zeros((len(dense), len(columns)), dtype=np.float32)
    for number, column in enumerate(columns):
        if column in places:
            found[:, number] = dense[:, places[column]]
    return found
