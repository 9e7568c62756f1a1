"""What an item is whoever asks: columns that do not depend on the context in which it is asked about."""

from __future__ import annotations

import numpy as np
import pytest
from test_assembly import INSTANTS, WIDTH, blocks, space

from recmeta.errors import SchemaError
from recmeta.features.assembly import Block
from recmeta.features.schema import ITEM, view_name

SOURCES = ("commenting", "feed", "reading")


def test_each_sources_counters_stand_as_in_the_rows_that_models_read() -> None:
    made, rows = space(), 40
    given = blocks(made, rows)
    found = made.item_columns(SOURCES, given, rows)
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
    found = made.item_columns(SOURCES, {}, 2)
    assert np.isfinite(found).all()
    assert found[:, -2:].tolist() == [[0.0, 0.0]] * 2


def test_a_block_of_another_size_is_refused() -> None:
    made, view = space(), view_name(ITEM, "feed")
    wrong = Block(np.zeros((2, WIDTH), dtype=np.float32), np.zeros(3))
    with pytest.raises(SchemaError, match=view):
        made.item_columns(SOURCES, {view: wrong}, 3)
