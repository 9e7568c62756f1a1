"""What an item is whoever asks: columns that do not depend on the context in which it is asked about."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from test_assembly import INSTANTS, WIDTH, blocks, space

from recmeta.features.assembly import Block
from recmeta.features.schema import ITEM, view_name

SOURCES = ("commenting", "feed", "reading")


def stacked(given: Mapping[str, Block]) -> Block:
    """The items' views in `SOURCES`, as one block."""
    views = [given[view_name(ITEM, name)] for name in SOURCES]
    return Block(np.stack([view.values for view in views]), np.stack([view.hours for view in views]))


def test_each_sources_counters_stand_as_in_the_rows_that_models_read() -> None:
    made, rows = space(), 40
    given = blocks(made, rows)
    found = made.item_columns(stacked(given))
    assert found.shape == (rows, made.item_width(3))
    assert np.isfinite(found).all()
    dense = made.assemble("feed", given, np.repeat(INSTANTS, rows))
    each = (found.shape[1] - 2) // 3
    for number, name in enumerate(SOURCES):
        columns = [place for place, of in enumerate(made.names) if of.startswith(f"{name}:item:")]
        own = {column.tobytes() for column in found[:, number * each : (number + 1) * each].T}
        assert {column.tobytes() for column in dense[:, columns].T} <= own
    assert found[:, -2].tobytes() == dense[:, made.index("age:item")].tobytes()
    assert found[:, -1].tobytes() == dense[:, made.index("seen:item")].tobytes()


def test_an_item_that_nobody_touched_has_no_age_and_is_finite() -> None:
    made = space()
    nobody = Block(np.zeros((3, 2, WIDTH), dtype=np.float32), np.full((3, 2), np.nan))
    found = made.item_columns(nobody)
    assert np.isfinite(found).all()
    assert found[:, -2:].tolist() == [[0.0, 0.0]] * 2
