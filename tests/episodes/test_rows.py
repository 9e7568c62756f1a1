"""Rows refuse what cannot be learnt from, and say where it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from episode_rows import make_rows

from recmeta.episodes.rows import concat, from_columns
from recmeta.errors import SchemaError


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", ["dense", "label", "weight"])
def test_a_number_that_is_not_finite_is_refused_with_its_column_and_row(column: str, bad: float) -> None:
    rows = make_rows({1: 4})
    values = getattr(rows, column).clone()
    values[2] = bad
    with pytest.raises(SchemaError, match=rf"column {column}: expected finite values.*row 2 \(1 such"):
        replace(rows, **{column: values}).check()


def test_wrong_types_lengths_and_ranges_are_refused() -> None:
    rows = make_rows({1: 4})
    for changes, text in (
        ({"user": rows.user.to(torch.int32)}, "column user: expected torch.int64"),
        ({"dense": rows.dense[0]}, "column dense: expected torch.float32 with 2 dimensions"),
        ({"item": rows.item[:3]}, "column item: expected 4 rows, found 3"),
        ({"history": rows.history - 50}, "column history: expected indices from 0 on"),
        ({"label": rows.label + 1.5}, "column label: expected labels in"),
        ({"weight": rows.weight * -1}, "column weight: expected weights from 0 on"),
    ):
        with pytest.raises(SchemaError, match=text):
            replace(rows, **changes).check()


def test_no_rows_at_all_are_still_rows() -> None:
    rows = make_rows({})
    assert len(rows.check()) == 0
    assert len(rows.of_context(1)) == 0


def test_rows_can_be_narrowed_by_context_and_time_and_joined_again() -> None:
    rows = make_rows({1: 20, 2: 30})
    early, late = rows.between(0, 5 * 10**12), rows.between(5 * 10**12, 10**13)
    assert bool((early.time < 5 * 10**12).all())
    assert bool((late.time >= 5 * 10**12).all())
    joined = concat([early, late])
    assert sorted(joined.group.tolist()) == list(range(50))
    assert len(rows.of_context(2)) == 30
    with pytest.raises(SchemaError, match="column dense: expected one width"):
        concat([rows, make_rows({1: 2}, features=3)])


def test_columns_that_are_missing_or_unknown_are_named() -> None:
    columns = make_rows({1: 3}).columns()
    assert len(from_columns(columns)) == 3
    columns["surprise"] = columns.pop("group")
    with pytest.raises(SchemaError, match=r"missing columns \['group'\], unknown columns \['surprise'\]"):
        from_columns(columns)
