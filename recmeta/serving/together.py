"""Rankings that are asked for at about the same time are made together, which costs each of them less.

Nobody waits for others to come: the event loop goes round a few times, in which it writes what was answered
before and reads what lies there already. This module must never know what a ranking is made of.
"""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import NamedTuple

from recmeta.serving.answers import Answer
from recmeta.serving.recommender import Ranking, Recommender

ROUNDS = 4
"""Of the event loop, from the first ranking on: who was answered in the last batch is told, asks again, is
read, and comes here. With fewer, batches stay apart that could be one; each takes some ten microseconds, and
where the last batch was of one, nobody is waited for."""

MOST = 16
"""Made together; with more, the first would wait for the last."""


class _Waiting(NamedTuple):
    recommender: Recommender
    asked: Ranking
    done: asyncio.Future[Answer]


class Together:
    """Gathers the rankings of one event loop."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._alone = True
        """Whether the last batch was of one."""

    async def rank(self, recommender: Recommender, asked: Ranking) -> Answer:
        """As `Recommender.rank`, perhaps together with others that ask the same recommender."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._go_round, loop, 0 if self._alone else ROUNDS)
        self._waiting.append(_Waiting(recommender, asked, loop.create_future()))
        return await self._waiting[-1].done

    def _go_round(self, loop: asyncio.AbstractEventLoop, rounds: int) -> None:
        if rounds:
            loop.call_soon(self._go_round, loop, rounds - 1)
            return
        batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        self._alone = len(batch) == 1
        if self._waiting:  # what was just answered is written first
            loop.call_soon(self._go_round, loop, 1)
        for _, some in groupby(batch, key=lambda one: id(one.recommender)):
            _rank([*some])


def _rank(batch: list[_Waiting]) -> None:
    try:
        answers = batch[0].recommender.rank_each([one.asked for one in batch])
    except Exception as error:  # noqa: BLE001  (whoever waits is told; but a fault of one is not the others')
        if len(batch) > 1:
            for one in batch:
                _rank([one])
            return
        _tell(batch[0].done, error)
        return
    for one, answer in zip(batch, answers, strict=True):
        _tell(one.done, answer)


def _tell(done: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if done.done():  # the client left
        return
    if isinstance(answer, Exception):
        done.set_exception(answer)
    else:
        done.set_result(answer)
