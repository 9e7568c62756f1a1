"""The dense row: its layout, its roles, and that nothing depends on the rows beside it."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from recmeta.contexts import Contexts
from recmeta.errors import ContextError, SchemaError
from recmeta.features.assembly import NO_ROW_HOURS, Block, FeatureSpace
from recmeta.features.schema import counter_names

HALF_LIVES = (timedelta(days=1), timedelta(days=7), timedelta(days=28))
WIDTH = len(counter_names(HALF_LIVES))
DECLARED = {
    "contexts": {
        "reading": {"positives": ["READ"], "negatives": {"sample": {}}},
        "commenting": {"positives": ["COMMENT"], "negatives": {"exposure": {"context": "reading"}}},
        "feed": {"positives": ["CLICK"], "negatives": {"impressions": {"events": ["IMPRESSION"]}}},
    }
}


def space(**changes: object) -> FeatureSpace:
    declared = {"contexts": {name: {**body, **changes} for name, body in DECLARED["contexts"].items()}}
    return FeatureSpace(Contexts.model_validate(declared), HALF_LIVES, 20)


def blocks(of: FeatureSpace, rows: int, seed: int = 0) -> dict[str, Block]:
    rng = np.random.default_rng(seed)
    made = {}
    for context in of.contexts.names:
        for view in of.views(context):
            values = rng.random((rows, WIDTH), dtype=np.float32) * 20
            made[view] = Block(values, np.where(rng.random(rows) < 0.3, np.nan, rng.random(rows) * 1000))
    return made


INSTANTS = np.array([1_462_060_799_999_999], dtype=np.int64)


def test_every_value_is_finite_and_has_one_name() -> None:
    made = space()
    dense = made.assemble("feed", blocks(made, 500), np.repeat(INSTANTS, 500))
    assert dense.shape == (500, made.size) == (500, len(set(made.names)))
    assert dense.dtype == np.float32
    assert np.isfinite(dense).all()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    made = space()
    given = blocks(made, 300)
    instants = INSTANTS + np.arange(300) * 977_777_777
    together = made.assemble("commenting", given, instants)
    for row in range(0, 300, 7):
        alone = {view: Block(b.values[row : row + 1], b.hours[row : row + 1]) for view, b in given.items()}
        assert (
            made.assemble("commenting", alone, instants[row : row + 1]).tobytes() == together[row].tobytes()
        )


def test_the_target_of_one_context_is_among_the_others_of_the_next() -> None:
    made = space()
    given = blocks(made, 50)
    instants = np.repeat(INSTANTS, 50)
    for target in made.contexts.names:
        dense = made.assemble(target, given, instants)
        column = "item:positives_7d"
        named = {name: dense[:, made.index(f"{name}:{column}")] for name in made.contexts.names}
        np.testing.assert_array_equal(dense[:, made.index(f"target:{column}")], named.pop(target))
        np.testing.assert_allclose(
            dense[:, made.index(f"mean:{column}")], np.mean(list(named.values()), axis=0), rtol=1e-6
        )
        np.testing.assert_array_equal(
            dense[:, made.index(f"peak:{column}")], np.max(list(named.values()), axis=0)
        )


def test_without_any_row_counts_are_zero_and_times_are_long() -> None:
    made = space()
    dense = made.assemble("reading", {}, INSTANTS)[0]
    assert dense[made.index("target:user:positives")] == 0
    assert dense[made.index("mean:user:hours_since_positive")] == np.log1p(np.float32(NO_ROW_HOURS))
    assert dense[made.index("seen:user")] == 0
    assert dense[made.index("rate:user:total")] == np.float32(0.1)


def test_a_context_reads_only_what_it_declares() -> None:
    made = space(features=["reading"])
    dense = made.assemble("feed", blocks(made, 20), np.repeat(INSTANTS, 20))
    assert (dense[:, made.index("commenting:user:positives")] == 0).all()
    assert (dense[:, made.index("reading:user:positives")] > 0).any()
    assert (dense[:, made.index("feed:user:positives")] > 0).any()


def test_only_contexts_with_negative_events_have_columns_for_them() -> None:
    names = space().names
    assert "feed:user:negatives" in names
    assert "reading:user:negatives" not in names
    assert "target:user:negatives" in names


def test_an_exposed_context_is_rated_by_its_exposures() -> None:
    made = space()
    given = {
        "user__commenting": Block(np.zeros((1, WIDTH), np.float32), np.zeros(1)),
        "user__reading": Block(np.zeros((1, WIDTH), np.float32), np.zeros(1)),
    }
    given["user__commenting"].values[0, 0] = 2
    given["user__reading"].values[0, 0] = 10
    dense = made.assemble("commenting", given, INSTANTS)[0]
    assert dense[made.index("rate:user:total")] == pytest.approx((2 + 0.5) / (10 + 5))


def test_popularity_ranks_by_the_targets_recent_positives() -> None:
    assert space().popularity_column() == "target:item:positives_7d"


def test_the_digest_follows_the_declaration() -> None:
    assert space().digest == space().digest
    assert space().digest != space(features=["reading"]).digest


def test_a_block_of_the_wrong_shape_is_refused() -> None:
    made = space()
    with pytest.raises(SchemaError, match=r"user__reading: expected values \(1, 10\)"):
        made.assemble(
            "feed", {"user__reading": Block(np.zeros((2, WIDTH), np.float32), np.zeros(1))}, INSTANTS
        )


def test_an_undeclared_context_and_an_unknown_column_are_refused() -> None:
    with pytest.raises(ContextError, match="unknown context 'video'"):
        space().assemble("video", {}, INSTANTS)
    with pytest.raises(SchemaError, match="found 'nothing'"):
        space().index("nothing")
