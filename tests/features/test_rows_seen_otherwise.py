"""A row seen as of another context, or of a newcomer: nothing of what does not exist shines through."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from recmeta.contexts import Contexts
from recmeta.errors import ContextError
from recmeta.features.assembly import NO_ROW_HOURS, Block, FeatureSpace
from recmeta.features.schema import counter_names

HALF_LIVES = (timedelta(days=1), timedelta(days=7), timedelta(days=28))
WIDTH = len(counter_names(HALF_LIVES))
NEVER = np.log1p(np.float32(NO_ROW_HOURS))
INSTANTS = np.repeat(np.array([1_462_060_799_999_999], dtype=np.int64), 200)
DECLARED = {
    "reading": {"positives": ["READ"], "negatives": {"sample": {}}},
    "commenting": {"positives": ["COMMENT"], "negatives": {"exposure": {"context": "reading"}}},
    "feed": {"positives": ["CLICK"], "negatives": {"impressions": {"events": ["IMPRESSION"]}}},
    "voting": {"positives": ["UP"], "negatives": {"explicit": {"events": ["DOWN"]}}},
}
SAVING = {"positives": ["SAVE"], "negatives": {"exposure": {"context": "reading"}}, "columns": "roles"}


def space(**more: object) -> FeatureSpace:
    return FeatureSpace(Contexts.model_validate({"contexts": {**DECLARED, **more}}), HALF_LIVES, 20)


def blocks(of: FeatureSpace, seed: int = 0) -> dict[str, Block]:
    rng = np.random.default_rng(seed)
    made = {}
    for context in of.contexts.names:
        for view in (f"{kind}__{context}" for kind in ("user", "item", "user_item")):
            values = rng.random((200, WIDTH), dtype=np.float32) * 20
            if not of.contexts[context].negative_events:  # nobody says no there
                values[:, [name.startswith("negatives") for name in counter_names(HALF_LIVES)]] = 0.0
            made[view] = Block(values, np.where(rng.random(200) < 0.3, np.nan, rng.random(200) * 1000))
    return made


def without(given: dict[str, Block], context: str) -> dict[str, Block]:
    return {view: block for view, block in given.items() if not view.endswith(f"__{context}")}


@pytest.mark.parametrize("target", sorted(DECLARED))
@pytest.mark.parametrize("of", sorted(DECLARED))
def test_a_row_of_any_context_becomes_the_row_that_the_target_would_have(of: str, target: str) -> None:
    made = space()
    given = blocks(made)
    seen = made.as_context(made.assemble(of, given, INSTANTS), target)
    # Rates are made of logarithms and may differ in their last bit; all else is the same.
    np.testing.assert_allclose(seen, made.assemble(target, given, INSTANTS), rtol=3e-6, atol=3e-7)


@pytest.mark.parametrize("hidden", ["feed", "voting", "reading"])
def test_nothing_of_a_hidden_context_is_left_in_a_row(hidden: str) -> None:
    made = space()
    given = blocks(made)
    target = "commenting"
    seen = made.as_context(made.assemble(target, given, INSTANTS), target, hidden=[hidden])
    other = without(given, hidden) | {
        view: block for view, block in blocks(made, seed=1).items() if view.endswith(f"__{hidden}")
    }
    unseen = made.as_context(made.assemble(target, other, INSTANTS), target, hidden=[hidden])
    assert seen.tobytes() == unseen.tobytes()
    column = seen[:, made.index(f"{hidden}:item:hours_since_first")]
    np.testing.assert_array_equal(column, np.full(200, NEVER))


def test_a_newcomer_keeps_its_own_log_in_the_target_and_has_no_columns_of_its_own() -> None:
    made = space()
    dense = made.assemble("commenting", blocks(made), INSTANTS)
    seen = made.as_newcomer(dense, "commenting")
    target = list(made.target_columns)
    assert seen[:, target].tobytes() == dense[:, target].tobytes()
    own = [index for index, name in enumerate(made.names) if name.startswith("commenting:")]
    np.testing.assert_array_equal(seen[:, own], np.tile(made.nothing()[own], (200, 1)))


def test_a_whole_log_put_into_a_newcomers_row_gives_the_columns_that_the_context_has() -> None:
    made = space()
    given = blocks(made)
    for context in DECLARED:
        dense = made.assemble(context, given, INSTANTS)
        put = made.with_own_log(made.as_newcomer(dense, context), context, given)
        np.testing.assert_allclose(
            put[:, list(made.target_columns)], dense[:, list(made.target_columns)], rtol=3e-6, atol=3e-7
        )


def test_a_surface_that_is_onboarded_changes_neither_the_layout_nor_any_other_row() -> None:
    before, after = space(), space(saving=SAVING)
    assert (after.names, after.digest) == (before.names, before.digest)
    given = blocks(after)
    for context in DECLARED:
        left = before.assemble(context, without(given, "saving"), INSTANTS)
        assert after.assemble(context, given, INSTANTS).tobytes() == left.tobytes()


def test_an_onboarded_surface_reads_its_own_log_and_the_others() -> None:
    made = space(saving=SAVING)
    given = blocks(made)
    row = made.assemble("saving", given, INSTANTS)
    own, others = row.copy(), made.assemble("saving", without(given, "saving"), INSTANTS)
    assert (own[:, list(made.target_columns)] != others[:, list(made.target_columns)]).any()
    reading = [index for index, name in enumerate(made.names) if name.startswith("reading:")]
    assert own[:, reading].tobytes() == others[:, reading].tobytes()
    assert made.as_newcomer(row, "saving").tobytes() == row.tobytes()


def test_what_was_drawn_is_told_from_what_was_met() -> None:
    made = space()
    given = blocks(made)
    column = made.index("sampled")
    assert made.assemble("reading", given, INSTANTS)[:, column].all()
    assert not made.assemble("commenting", given, INSTANTS)[:, column].any()
    assert made.as_context(made.assemble("commenting", given, INSTANTS), "reading")[:, column].all()


def test_a_context_without_named_columns_is_no_target_and_cannot_be_hidden() -> None:
    made = space(saving=SAVING)
    dense = made.assemble("reading", blocks(made), INSTANTS)
    with pytest.raises(
        ContextError, match="expected one of commenting, feed, reading, voting, found 'saving'"
    ):
        made.as_context(dense, "saving")
    with pytest.raises(ContextError, match="found 'nowhere'"):
        made.as_newcomer(dense, "reading", hidden=["nowhere"])


def test_families_hold_every_context_once() -> None:
    declared = {
        **DECLARED,
        "commenting": {**DECLARED["commenting"], "family": "talk"},
        "voting": {**DECLARED["voting"], "family": "talk"},
    }
    contexts = Contexts.model_validate({"contexts": declared})
    assert contexts.families() == {
        "feed": ("feed",),
        "reading": ("reading",),
        "talk": ("commenting", "voting"),
    }


def test_a_family_may_not_bear_the_name_of_a_context_of_another_family() -> None:
    declared = {**DECLARED, "commenting": {**DECLARED["commenting"], "family": "reading"}}
    contexts = Contexts.model_validate({"contexts": declared})  # reading is of family reading: fine
    assert contexts.families()["reading"] == ("commenting", "reading")
    declared["reading"] = {**DECLARED["reading"], "family": "other"}
    with pytest.raises(ValueError, match="family 'reading' is the name of a context that is of another"):
        Contexts.model_validate({"contexts": declared})
