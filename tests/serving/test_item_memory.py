"""Columns of items that are kept, or shared by contexts, are to the bit those that would be made anew."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from recmeta.contexts import Contexts
from recmeta.features.assembly import FeatureSpace
from recmeta.features.counters import split_row_time, with_row_time
from recmeta.features.direct_online import ItemRows
from recmeta.serving import item_memory
from recmeta.serving.item_memory import ItemMemory
from recmeta.serving.kept_by_context import KeptByContext

EXPOSED = {"exposure": {"context": "reading", "within": "P1D"}}
SHOWN = {"explicit": {"events": ["SHOW"]}}

DECLARED = Contexts.model_validate(
    {
        "contexts": {
            "reading": {"positives": ["READ"], "negatives": {"explicit": {"events": ["SKIP"]}}},
            "feed": {
                "positives": ["CLICK"],
                "negatives": {"exposure": {"context": "reading", "within": "P1D"}},
            },
            "saving": {"positives": ["SAVE"], "negatives": {"sample": {}}, "columns": "roles"},
            "sharing": {"positives": ["SHARE"], "negatives": {"sample": {}}, "columns": "roles"},
            "hiding": {
                "positives": ["HIDE"],
                "negatives": {"explicit": {"events": ["SHOW"]}},
                "columns": "roles",
            },
        }
    }
)
SPACE = FeatureSpace(DECLARED, (timedelta(days=1), timedelta(days=30)), 5)
ITEMS = [f"i{number}" for number in range(30)]
NOW = 1_800_000_000_000_000
WIDTH = len(SPACE._counters) + 3


class Drawn:
    """A store of drawn rows: all items in the first two contexts, a few in the others."""

    def __init__(self, own: int = 4) -> None:
        draw = np.random.default_rng(0)
        self.rows: dict[str, dict[str, np.ndarray]] = {}
        for name in DECLARED.names:
            count = len(ITEMS) if name in SPACE.named else own
            self.rows[name] = {item: self.row(draw) for item in draw.choice(ITEMS, count, replace=False)}
        self.rows["hiding"] = {}

    @staticmethod
    def row(draw: np.random.Generator) -> np.ndarray:
        """Counters, of some days ago."""
        counters = draw.gamma(1.0, 2.0, (1, len(SPACE._counters))).astype(np.float32)
        found: np.ndarray = with_row_time(counters, NOW - draw.integers(1, 5 * 86_400, 1) * 1_000_000)[0]
        return found

    def items(self, contexts: Sequence[str], items: Sequence[str]) -> dict[str, ItemRows]:
        found = {}
        for name in contexts:
            places = [place for place, item in enumerate(items) if item in self.rows[name]]
            values = [self.rows[name][items[place]] for place in places]
            found[name] = ItemRows(
                np.array(places, np.int64), np.array(values, np.float32).reshape(-1, WIDTH)
            )
        return found


@pytest.fixture
def store() -> Drawn:
    return Drawn()


@pytest.fixture
def memory(store: Drawn) -> ItemMemory:
    memory = ItemMemory(SPACE, ITEMS, WIDTH, 10_000_000)
    memory.load(store)  # type: ignore[arg-type]
    return memory


def assert_as_made(memory: ItemMemory, instant: int = NOW) -> None:
    places = np.array([*range(len(ITEMS)), -1, 3])
    for _ in range(3):
        for context in DECLARED.names:
            found = memory.columns(context, places, instant)
            assert found.tobytes() == memory.made(context, places, instant).tobytes(), context


def test_rows_are_such_that_the_test_can_fail(memory: ItemMemory, store: Drawn) -> None:
    (row,) = store.items(["reading"], ITEMS[:1])["reading"].values
    assert split_row_time(row[None])[1][0] < NOW
    made = {name: memory.made(name, np.arange(len(ITEMS)), NOW).tobytes() for name in DECLARED.names}
    assert len(set(made.values())) == len(made)


@pytest.mark.parametrize("up_to", [0, 256])
def test_columns_are_those_that_would_be_made(
    memory: ItemMemory, store: Drawn, monkeypatch: pytest.MonkeyPatch, up_to: int
) -> None:
    monkeypatch.setattr(item_memory, "SHARED_UP_TO", up_to)
    assert_as_made(memory)
    assert_as_made(memory, NOW + 10_000_000)
    draw = np.random.default_rng(1)
    for name, item in (("saving", ITEMS[7]), ("reading", ITEMS[3]), ("hiding", ITEMS[9])):
        store.rows[name][item] = store.row(draw)
        memory.update(store, np.array([ITEMS.index(item)]))  # type: ignore[arg-type]
        assert_as_made(memory)
    memory.load(Drawn(own=9))  # type: ignore[arg-type]
    assert_as_made(memory)


def test_contexts_without_rows_of_their_own_share_what_is_made(
    memory: ItemMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SPACE.alike("saving") == SPACE.alike("sharing") != SPACE.alike("hiding")
    assert SPACE.alike("reading") is None
    made: list[int] = []
    columns_of = item_memory.columns_of

    def counting(*given: Any) -> Any:
        made.append(len(given[3]))
        return columns_of(*given)

    monkeypatch.setattr(item_memory, "columns_of", counting)
    places = np.arange(len(ITEMS))
    for context in ("saving", "sharing", "saving"):
        memory.columns(context, places, NOW)
    # Asked for once all are made for nobody else; the second makes what is kept; each its own rows.
    assert made == [len(ITEMS), 4, len(ITEMS), 4, 4]


def test_threads_that_ask_for_different_instants_each_get_their_own() -> None:
    kept = KeptByContext(np.zeros(50, dtype=np.int64), 50 * (4 * 3 + 16))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda instant: asked_for(kept, instant), range(1, 5)))
    finally:
        sys.setswitchinterval(before)
    assert all(right for right, _ in found)
    assert sum(taken for _, taken in found) > 100


def asked_for(kept: KeptByContext, instant: int) -> tuple[bool, int]:
    """Whether rows that tell their instant were those of this one, and how often any were kept."""
    places, right, taken = np.arange(50), True, 0

    def make(some: np.ndarray) -> np.ndarray:
        return np.full((len(some), 3), instant, dtype=np.float32)

    for _ in range(2_000):
        rows = kept.take(f"context {instant % 2}", places, instant, 3, make)
        if rows is not None:
            right, taken = right and bool((rows == instant).all()), taken + 1
    return right, taken
