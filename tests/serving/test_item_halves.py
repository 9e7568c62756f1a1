"""What is kept of items is what would be made of them now, and no more is made than has to be."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from conftest import Living, acted

from recmeta.serving.item_halves import ItemHalves
from recmeta.serving.recommender import Recommender


def microseconds(instant: datetime) -> int:
    return round(instant.timestamp()) * 1_000_000


def made(recommender: Recommender, context: str, places: np.ndarray, instant: int) -> np.ndarray:
    about = recommender._items.made(context, places, instant)
    return recommender._scorer.half(context, recommender._kept, places, about)


@pytest.mark.parametrize("context", ["reading", "feed"])
def test_halves_are_those_of_the_items_columns_however_often_they_are_asked_for(
    recommender: Recommender, now: datetime, context: str
) -> None:
    instant = microseconds(now)
    assert recommender._halves.take(context, np.arange(20), instant) is None, "who asks once gains nothing"
    for places in (np.arange(20), np.arange(20), np.arange(5, 40), np.array([3, 1]), np.arange(20)):
        found = recommender._halves.take(context, places, instant)
        np.testing.assert_allclose(found, made(recommender, context, places, instant), rtol=1e-5, atol=1e-6)


def test_where_no_network_serves_there_are_none(recommender: Recommender, now: datetime) -> None:
    for _ in range(3):
        assert recommender._halves.take("commenting", np.arange(3), microseconds(now)) is None


def test_only_what_changed_is_made_again(
    recommender: Recommender, living: Living, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    half = recommender._scorer.half

    def counting(context: str, kept: Any, places: np.ndarray, about: np.ndarray) -> np.ndarray:
        counted.append(len(places))
        return half(context, kept, places, about)

    monkeypatch.setattr(recommender._scorer, "half", counting)
    places, instant = np.arange(20), microseconds(now)
    for _ in range(3):
        before = recommender._halves.take("feed", places, instant)
    assert counted == [20], "asked for once, a context keeps nothing"
    touched = recommender._catalogue.ids[2]
    recommender.record(acted(living, "stranger", touched, "feed", now - timedelta(minutes=5)))
    after = recommender._halves.take("feed", places, instant)
    assert before is not None and after is not None
    assert counted == [20, 1]
    assert np.flatnonzero((after != before).any(axis=1)).tolist() == [2]
    recommender._items.load(recommender._reader)
    recommender._halves.take("feed", places, instant)
    assert counted == [20, 1, 20], "all was read again"
    later = microseconds(now + timedelta(seconds=10))
    for _ in range(3):
        recommender._halves.take("feed", places, later)
    assert counted[3:] == [20]


def test_contexts_beyond_the_room_there_is_wait_until_one_is_asked_for_no_more(
    recommender: Recommender, now: datetime
) -> None:
    room = len(recommender._items.changes) * (4 * recommender._scorer.half_width("feed") + 16)
    places, instant = np.arange(20), microseconds(now)
    for most, kept in ((0, []), (room, ["feed"]), (2 * room, ["feed", "reading"])):
        halves = ItemHalves(recommender._scorer, recommender._kept, recommender._items, most)
        for turn in range(3):
            for context in ("feed", "reading"):
                found = halves.take(context, places, instant)
                assert (found is not None) == (turn > 0 and context in kept)
                if found is not None:
                    wanted = made(recommender, context, places, instant)
                    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        assert halves.contexts == kept
    halves = ItemHalves(recommender._scorer, recommender._kept, recommender._items, room)
    for later, context in ((0, "feed"), (10, "reading")):
        for _ in range(2):
            halves.take(context, places, microseconds(now + timedelta(seconds=later)))
        assert halves.contexts == [context]


def test_what_is_made_beforehand_is_not_made_again(
    recommender: Recommender, living: Living, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, instant = np.arange(20), microseconds(now)
    before = Recommender(living.settings)
    for _ in range(2):
        before._halves.take("feed", places, instant)
    assert before._halves.contexts == ["feed"]
    recommender.warm(before)
    assert recommender._halves.contexts[-1] == "feed"
    recommender._halves.fill("feed", 20, instant)
    wanted = made(recommender, "feed", places, instant)
    monkeypatch.setattr(recommender._scorer, "half", None)
    np.testing.assert_allclose(
        recommender._halves.take("feed", places, instant), wanted, rtol=1e-5, atol=1e-6
    )
    recommender._halves.fill("commenting", 20, instant)
    assert "commenting" not in recommender._halves.contexts, "no network serves it"
