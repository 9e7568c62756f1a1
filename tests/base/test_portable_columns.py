"""Portable columns are those that every site has; rows are read by name, and what is missing is zero."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from recmeta.contexts import Contexts
from recmeta.features.assembly import FeatureSpace
from recmeta.features.portable import pick, portable_columns, portable_digest

WEEK, DAY = timedelta(days=7), timedelta(days=1)
SAYS_NO = {"positives": ["up"], "negatives": {"explicit": {"events": ["down"]}}}
SAMPLED = {"positives": ["read"], "negatives": {"sample": {}}}


def space_of(**contexts: object) -> FeatureSpace:
    return FeatureSpace(Contexts.model_validate({"contexts": contexts}), [DAY, WEEK], 5)


def test_no_portable_column_bears_a_contexts_name() -> None:
    roles = {name.split(":")[0] for name in portable_columns([DAY, WEEK])}
    clock = {"hour_sin", "hour_cos", "weekday_sin", "weekday_cos"}
    assert roles == {"target", "mean", "peak", "rate", "age", "seen", "sampled", *clock}


def test_the_nameless_columns_of_any_site_are_portable() -> None:
    columns = set(portable_columns([DAY, WEEK]))
    for space in (space_of(a=SAYS_NO), space_of(a=SAMPLED), space_of(x=SAYS_NO, y=SAMPLED, z=SAMPLED)):
        nameless = {space.names[place] for place in space.role_columns}
        assert nameless <= columns
        assert columns - nameless <= {name for name in columns if ":negatives" in name}


def test_counters_of_negatives_are_portable_and_zero_where_a_site_has_none() -> None:
    columns = portable_columns([DAY, WEEK])
    negatives = [name for name in columns if ":negatives" in name]
    assert negatives
    space = space_of(a=SAMPLED)
    picked = pick(space.names, np.ones((3, space.size), dtype=np.float32), columns)
    zero = {name for name, column in zip(columns, picked.T, strict=True) if not column.any()}
    assert zero == set(negatives)


def test_columns_are_read_by_name_whatever_the_layout() -> None:
    columns = portable_columns([DAY, WEEK])
    for space in (space_of(a=SAYS_NO), space_of(b=SAYS_NO, c=SAMPLED)):
        dense = np.tile(np.arange(space.size, dtype=np.float32), (2, 1))
        picked = pick(space.names, dense, columns)
        assert picked.shape == (2, len(columns))
        assert [space.names[int(place)] for place in picked[1]] == list(columns)


@pytest.mark.parametrize("half_lives", [[DAY], [WEEK], [WEEK, DAY], [DAY, WEEK, timedelta(days=28)]])
def test_other_half_lives_have_another_digest(half_lives: list[timedelta]) -> None:
    assert portable_digest(half_lives) != portable_digest([DAY, WEEK])
    assert portable_digest([DAY, WEEK]) == portable_digest([DAY, WEEK])
