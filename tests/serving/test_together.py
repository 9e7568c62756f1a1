"""Rankings that are made together are those that each would have got, and no one's fault is another's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from conftest import Living

from recmeta.errors import InputError, NotFoundError
from recmeta.serving.answers import Answer
from recmeta.serving.knowledge import STORE_SILENT
from recmeta.serving.recommender import Ranking, Recommender
from recmeta.serving.together import MOST, Together


def drawn(living: Living, recommender: Recommender, now: datetime, count: int) -> list[Ranking]:
    """Rankings of all contexts, of known and unknown users and items, as of two instants."""
    draw = np.random.default_rng(0)
    users = [*sorted(set(living.events["user_id"])), "nobody", "張"]
    items = [*recommender._catalogue.ids, "never seen"]
    return [
        Ranking(
            recommender.contexts.names[number % 3],
            users[draw.integers(len(users))],
            [items[n] for n in draw.choice(len(items), draw.integers(0, 40), replace=number % 5 == 0)],
            now + timedelta(minutes=number % 2),
            reasons=number % 4 == 0,
        )
        for number in range(count)
    ]


def test_each_of_many_gets_what_it_would_get_alone(
    living: Living, recommender: Recommender, now: datetime
) -> None:
    rankings = drawn(living, recommender, now, 40)
    together = recommender.rank_each(rankings)
    for one, found in zip(rankings, together, strict=True):
        alone = recommender.rank(one.context, one.user_id, one.item_ids, one.now, reasons=one.reasons)
        assert found == alone, "to the bit"
    assert {len(answer.items) > 1 for answer in together if isinstance(answer, Answer)} == {True, False}
    questions = [recommender._question(one) for one in rankings]
    groups = [known for _, known in recommender._knowledge.of_each(questions)]
    assert max(len(known) for known in groups) > 2
    assert any(len(one.rows.met) for known in groups for one in known)


def test_a_user_who_asks_twice_is_told_twice(living: Living, recommender: Recommender, now: datetime) -> None:
    items = recommender._catalogue.ids[:30]
    twice = [Ranking("reading", living.reader(), items[start:], now) for start in (0, 10)]
    for asked, found in zip(twice, recommender.rank_each(twice), strict=True):
        assert found == recommender.rank("reading", living.reader(), asked.item_ids, now)


def test_what_one_asks_wrongly_is_that_ones_fault_alone(recommender: Recommender, now: datetime) -> None:
    found = recommender.rank_each(
        [
            Ranking("nowhere", "u", ["a"], now),
            Ranking("feed", "", ["a"], now),
            Ranking("feed", "u", [*recommender._catalogue.ids[:3]], now),
            Ranking("feed", "u", ["a"], now.replace(tzinfo=None)),
            Ranking("reading", "u", ["a\x00"], now),
        ]
    )
    kinds = [type(one) for one in found]
    assert kinds == [NotFoundError, InputError, Answer, InputError, InputError]
    assert recommender.rank_each([]) == []


def test_a_silent_store_degrades_all_of_them(
    living: Living, recommender: Recommender, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> Any:
        raise TimeoutError("slow")

    monkeypatch.setattr(recommender._reader, "requests", silent)
    for found in recommender.rank_each(drawn(living, recommender, now, 9)):
        assert isinstance(found, Answer)
        assert STORE_SILENT in found.notes
        assert found.degraded


class Counting:
    """Stands for a recommender; notes what it is asked at once."""

    def __init__(self, fault: str = "") -> None:
        self.batches: list[list[str]] = []
        self.fault = fault

    def rank_each(self, asked: Sequence[Ranking]) -> list[Any]:
        self.batches.append([one.user_id for one in asked])
        if self.fault in self.batches[-1]:
            raise ZeroDivisionError(self.fault)
        return [InputError(one.user_id) if one.context == "bad" else one.user_id for one in asked]


def asked(*users: str, context: str = "feed") -> list[Ranking]:
    return [Ranking(context, user, ()) for user in users]


def test_who_asks_at_the_same_time_is_answered_at_once_and_no_more_than_so_many() -> None:
    one, other = Counting(), Counting()
    names = [f"u{number}" for number in range(MOST + 3)]

    async def run() -> list[Any]:
        together = Together()
        waiting = [together.rank(one, ranking) for ranking in asked(*names)]  # type: ignore[arg-type]
        waiting += [together.rank(other, ranking) for ranking in asked("v", "w")]  # type: ignore[arg-type]
        found = await asyncio.gather(*waiting)
        return [*found, await together.rank(one, asked("later")[0])]  # type: ignore[arg-type]

    assert asyncio.run(run()) == [*names, "v", "w", "later"]
    assert one.batches == [names[:MOST], names[MOST:], ["later"]]
    assert other.batches == [["v", "w"]]


def test_a_fault_that_nobody_foresaw_is_told_to_the_one_whose_it_is() -> None:
    counting = Counting(fault="broken")

    async def run() -> list[Any]:
        together = Together()
        rankings = [*asked("a", "broken"), *asked("b", context="bad"), *asked("c")]
        waiting = [together.rank(counting, one) for one in rankings]  # type: ignore[arg-type]
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(run())
    assert (found[0], found[3]) == ("a", "c")
    assert isinstance(found[1], ZeroDivisionError)
    assert isinstance(found[2], InputError)


def test_who_leaves_before_the_answer_takes_nobody_along() -> None:
    counting = Counting()

    async def run() -> Any:
        together = Together()
        waiting = [
            asyncio.ensure_future(together.rank(counting, one))  # type: ignore[arg-type]
            for one in asked("gone", "here")
        ]
        await asyncio.sleep(0)
        waiting[0].cancel()
        return await asyncio.gather(*waiting, return_exceptions=True)

    gone, here = asyncio.run(run())
    assert isinstance(gone, asyncio.CancelledError)
    assert here == "here"
