"""Scores many pairs of a user and an item as of one instant: the rows and the scorer of a request, in bulk.

A request reads one user; here one reading is of many, and one run of a network is of thousands of rows.
What a store that does not answer costs a request is not bearable here: it is an error. This module must
never open a bundle, and never know where pairs come from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from recmeta.errors import RecmetaError
from recmeta.features.assembly import FeatureSpace, Float32s, stored_block
from recmeta.features.dense_rows import DenseRows, with_stranger
from recmeta.features.direct_online import ManyRows, Reader
from recmeta.features.schema import USER_ITEM
from recmeta.serving.catalogue import Catalogue
from recmeta.serving.guarded import store_failures
from recmeta.serving.item_memory import ItemMemory, columns_of
from recmeta.serving.scorer import KeptItems, Scorer, sigmoid

Int64s = npt.NDArray[np.int64]
T = TypeVar("T")

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
"""That score: as many as there are cores for this process."""

ROWS_OF_A_RUN = 1024
"""Of 4096 rows a network's layers no longer fit a core's cache: a row then took a third longer."""


@dataclass(frozen=True)
class Pairs:
    """What a bundle and its workspace know, as of one instant. Not to be shared between threads."""

    space: FeatureSpace
    catalogue: Catalogue
    kept: KeptItems
    """The catalogue's items."""
    memory: ItemMemory
    scorer: Scorer
    reader: Reader
    instant: int
    """Microseconds since 1970, UTC."""

    def close(self) -> None:
        """Close the connection to the online store; the next call opens it again."""
        self.reader.close()

    def scores(
        self,
        context: str,
        users: Sequence[str],
        items: Sequence[str],
        user_of: Int64s,
        item_of: Int64s,
    ) -> npt.NDArray[np.float64]:
        """Return the probability of engagement of n pairs, float64 [n], in [0, 1].

        Args:
            context: one that the bundle serves.
            users: U ids, all different; unknown ones are ordinary.
            items: I ids, all different; likewise.
            user_of: the user of each pair by their place, ascending, [n].
            item_of: the item of each pair by its place, [n]; a user has an item once.

        Raises:
            RecmetaError: the online store does not answer.
        """
        read = self.space.contexts.feature_sources(context)
        places = self.catalogue.places(items)
        unknown = np.flatnonzero(places < 0)
        codes = self.catalogue.codes(items, places)
        kept, kept_places = self.kept, places
        if len(unknown):
            kept, kept_places = KeptItems(items, self.catalogue.categories_of(items)), np.arange(len(items))
        names = [items[item] for item in item_of.tolist()]
        found = _answered(lambda: self.reader.many(read, users, user_of, names, codes[item_of]))
        who, about, met = self._users(context, found), self._items(context, items, places), found.met
        together = self._met(context, found)
        half = None
        if self.scorer.half_width(context):
            half = self.scorer.half(context, kept, kept_places, about)
        stranger = self.space.stranger(context)[self.space.split.pair]
        pair, place = with_stranger(stranger, together, met, len(user_of))
        scores = np.empty(len(user_of))

        def score(start: int) -> None:
            end = min(start + ROWS_OF_A_RUN, len(user_of))
            theirs, its = user_of[start:end], item_of[start:end]
            first, last = int(theirs[0]), int(theirs[-1]) + 1
            own = np.append(0, place[start:end][place[start:end] > 0])
            here = np.searchsorted(own, place[start:end])
            logits = self.scorer.score_kept(
                context,
                users[first:last],
                found.histories[first:last],
                kept,
                kept_places[its],
                DenseRows(
                    who[first:last],
                    lambda rows: about[its[rows]],
                    pair[own],
                    here,
                    theirs - first,
                    self.space.split,
                ),
                half=None if half is None else half[its],
            )
            scores[start:end] = sigmoid(logits)

        # A network lets go of the interpreter: the next piece is put together while one is scored.
        with ThreadPoolExecutor(max_workers=THREADS) as pool:
            list(pool.map(score, range(0, len(user_of), ROWS_OF_A_RUN)))
        return scores

    def _users(self, context: str, found: ManyRows) -> Float32s:
        """The columns at ``space.split.request`` of each user."""
        stored = stored_block(found.users, found.knows_user, self.instant)
        return self.space.request_rows(context, stored, np.full(found.users.shape[1], self.instant))

    def _met(self, context: str, found: ManyRows) -> Float32s:
        """The columns at ``space.places[USER_ITEM]`` of each pair in ``found.met``."""
        return self.space.part(USER_ITEM, context, stored_block(found.pairs, found.knows_pair, self.instant))

    def _items(self, context: str, items: Sequence[str], places: Int64s) -> Float32s:
        """The columns at ``space.split.about`` of each item."""
        columns = self.memory.columns(context, places, self.instant)
        unknown = np.flatnonzero(places < 0)
        if not len(unknown):
            return columns
        # They may have been touched since the bundle was made.
        names, sources = (
            [items[item] for item in unknown.tolist()],
            self.space.contexts.feature_sources(context),
        )
        rows = _answered(lambda: self.reader.items(sources, names))
        columns[unknown] = columns_of(
            self.space, context, rows, np.arange(len(names)), self.instant, self.memory.width
        )
        return columns


def _answered(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except store_failures() as error:
        raise RecmetaError(f"the online store does not answer: {type(error).__name__}: {error}") from error
