"""A challenger scores what the champion answered, off the request path; its answers go nowhere.

What is kept are sums by context, in a small file a process, which the night's report compares. It must
never change an answer, nor make one wait.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from recmeta import artifacts
from recmeta.errors import RecmetaError
from recmeta.serving.answers import Answer
from recmeta.serving.recommender import Recommender
from recmeta.settings import Settings

WAITING = 256
"""Answers that wait to be scored at the most; more are dropped."""

WRITE_SECONDS = 15.0
POLL_SECONDS = 0.2
TOP = 10


class Shadow:
    """Scores a share of the answers with the bundle that `serving.shadow` names; `start` before the first."""

    def __init__(self, settings: Settings, write_seconds: float = WRITE_SECONDS) -> None:
        self._settings, self._write_seconds = settings, write_seconds
        self._share = settings.serving.shadow_share
        self._waiting: queue.Queue[Answer] = queue.Queue(WAITING)
        self._stopped = threading.Event()
        self._sums: dict[str, dict[str, dict[str, float]]] = {}
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Answers that were not compared because too many waited."""
        self.problem: str | None = None
        """Why nothing is compared; None where it is."""

    def start(self) -> None:
        """Open the challenger and compare, in a thread; nothing where the settings name none."""
        if self._settings.serving.shadow is not None:
            self._thread = threading.Thread(target=self._run, name="recmeta-shadow", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Write what was found and end."""
        if self._thread is not None:
            self._stopped.set()
            self._thread.join(timeout=10)

    def offer(self, answer: Answer) -> None:
        """Take an answer that went out; costs a microsecond."""
        if self._thread is None or random.random() >= self._share:  # noqa: S311  (a sample)
            return
        try:
            self._waiting.put_nowait(answer)
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        version = self._settings.serving.shadow
        try:
            challenger = Recommender(self._settings, version=version)
            challenger.warm()
        except RecmetaError as error:
            self.problem = str(error)
            return
        written = time.monotonic()
        while not (self._stopped.is_set() and self._waiting.empty()):
            with suppress(queue.Empty):
                answer = self._waiting.get(timeout=POLL_SECONDS)
                if answer.bundle != version and answer.context in challenger.serves:
                    self._compare(challenger, answer)
            if time.monotonic() - written >= self._write_seconds:
                self._write()
                written = time.monotonic()
        self._write()
        challenger.close()

    def _compare(self, challenger: Recommender, answer: Answer) -> None:
        items = [item.item_id for item in answer.items]
        if not items:
            return
        began = time.perf_counter()
        other = challenger.rank(answer.context, answer.user_id, items, answer.as_of)
        seconds = time.perf_counter() - began
        theirs = {item.item_id: item.score for item in other.items}
        gap = np.mean([abs(item.score - theirs[item.item_id]) for item in answer.items])
        top = min(TOP, len(items))
        ahead = {item.item_id for item in other.items[:top]}
        found = {
            "answers": 1.0,
            "same_first": float(other.items[0].item_id == items[0]),
            "same_top": len(ahead & set(items[:top])) / top,
            "score_gap": float(gap),
            "seconds": seconds,
        }
        sums = self._sums.setdefault(answer.bundle, {}).setdefault(answer.context, dict.fromkeys(found, 0.0))
        for name, value in found.items():
            sums[name] += value

    def _write(self) -> None:
        if not self._sums:
            return
        version = str(self._settings.serving.shadow)
        path = self._settings.shadow_folder / version / f"{os.getpid()}-{int(_STARTED)}.json"
        artifacts.write_json(path, self._sums)


_STARTED = time.time()


def compared(folder: Path) -> Iterator[dict[str, Any]]:
    """Read what all processes found below ``folder`` (a workspace's shadow folder).

    Returns:
        For each challenger, champion and context: their names, ``answers``, and means over these:
        ``same_first`` (the same item on top), ``same_top`` (share of the first ten in common), ``score_gap``
        (absolute difference of scores) and ``seconds`` (for which the challenger took).
    """
    total: dict[tuple[str, str, str], dict[str, float]] = {}
    for path in sorted(folder.glob("*/*.json")):
        for champion, contexts in artifacts.read_json(path).items():
            for context, sums in contexts.items():
                key = (path.parent.name, champion, context)
                held = total.setdefault(key, dict.fromkeys(sums, 0.0))
                for name, value in sums.items():
                    held[name] = held.get(name, 0.0) + value
    for (challenger, champion, context), sums in sorted(total.items()):
        count = sums.pop("answers")
        yield {
            "challenger": challenger,
            "champion": champion,
            "context": context,
            "answers": int(count),
            **{name: value / count for name, value in sums.items()},
        }
