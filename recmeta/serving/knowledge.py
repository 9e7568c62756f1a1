"""What is known of users and items as of an instant: rows of the online store and of memory, put together.

Several questions are looked up at once, as a journey to the store and an array are much the same for one user
and for eight. Whoever or whatever is unknown is ordinary. This module must never score, and never open a
bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from recmeta.contexts import ExposureNegatives
from recmeta.errors import InputError
from recmeta.features.assembly import FeatureSpace, Float32s, Standing, stored_block
from recmeta.features.counters import split_row_time
from recmeta.features.dense_rows import DenseRows, with_stranger
from recmeta.features.direct_online import EPOCH, Lookup, UserRows
from recmeta.features.met import item_codes
from recmeta.serving.catalogue import Catalogue
from recmeta.serving.guarded import GuardedReader
from recmeta.serving.item_memory import ItemMemory, columns_of
from recmeta.serving.scorer import KeptItems

Int64s = npt.NDArray[np.int64]
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

ANSWERED_EVERY = timedelta(seconds=10)
"""Requests of ten seconds are answered as of their end, and share what items are by then: a counter that
fades by half in a day has lost less than a ten-thousandth."""

SECOND = 1_000_000
"""Microseconds."""

MOST_CONTEXTS_SEEN = 32
"""With more, an item counts as seen by what the context reads alone."""

STORE_SILENT = "the online store does not answer: ranked by what is known of the items"


@dataclass(frozen=True)
class Question:
    """A user on a surface, and n items: what is known of them?"""

    context: str
    user_id: str
    ids: Sequence[str]
    places: Int64s
    """Of the items in the catalogue; -1: unknown."""
    as_of: datetime
    """UTC."""
    ended: bool
    """Whether that is the end of a log that ended long ago."""
    seen: bool = False
    """Whether to tell which of the items the user has seen."""
    notes: tuple[str, ...] = ()
    """Why the answer will be less than it should be, as far as that is clear."""


@dataclass(frozen=True)
class Asked:
    """A user, some items, and all that is known of both at an instant."""

    context: str
    user_id: str
    ids: Sequence[str]
    places: Int64s
    """Of the items in the catalogue; -1: unknown."""
    kept: KeptItems
    kept_places: Int64s
    """Of the items in `kept`."""
    rows: UserRows
    dense: DenseRows
    seen: npt.NDArray[np.bool_]
    instant: int
    """Microseconds since 1970, UTC."""
    notes: tuple[str, ...]
    degraded: bool

    @property
    def as_of(self) -> datetime:
        """The instant, UTC."""
        return EPOCH + timedelta(microseconds=self.instant)

    def take(self, chosen: npt.NDArray[np.int64]) -> Asked:
        """The same user with some of the items; `rows.met` is of all of them still."""
        return replace(
            self,
            ids=[self.ids[place] for place in chosen.tolist()],
            places=self.places[chosen],
            kept_places=self.kept_places[chosen],
            dense=self.dense.take(chosen),
            seen=self.seen[chosen],
        )


class Knowledge:
    """Of one bundle's items, and of any user. One thread asks."""

    def __init__(
        self,
        space: FeatureSpace,
        catalogue: Catalogue,
        kept: KeptItems,
        memory: ItemMemory,
        reader: GuardedReader,
        until: datetime,
        alive_within: timedelta,
    ) -> None:
        """Know what these know.

        Args:
            space: how columns are made.
            catalogue: the bundle's items.
            kept: the same items, as scorers take them.
            memory: their counters.
            reader: of the online store.
            until: the end of the log that the bundle has seen, UTC.
            alive_within: a log that ended longer ago is answered as of its end.
        """
        self._space, self._contexts, self._catalogue, self._kept = space, space.contexts, catalogue, kept
        self._memory, self._reader, self._until, self._alive_within = memory, reader, until, alive_within
        self.newest = 0
        """When the newest row of any item became known, microseconds since 1970, UTC; 0: nobody said so."""

    # Instants -----------------------------------------------------------------------------------------

    def instant(self, now: datetime | None) -> tuple[datetime, bool]:
        """The instant to answer as of, UTC, and whether it is the end of a log that ended long ago.

        Raises:
            InputError: ``now`` has no zone.
        """
        if now is not None:
            if now.tzinfo is None:
                raise InputError(f"now: expected an instant with a zone, found {now.isoformat()} without")
            return now.astimezone(UTC), False
        clock = datetime.now(UTC)
        if clock - self._until > self._alive_within:
            return self._until, True
        return clock + (ANSWERED_EVERY - (clock - EPOCH) % ANSWERED_EVERY), False

    def instant_for(self, as_of: datetime, ended: bool, rows: UserRows | None = None) -> int:
        """Microseconds since 1970 of an answer for whom ``rows`` tell of (None: for anybody).

        Where a log ended long ago and somebody acted since, that is just after what is visible here of it.
        """
        instant = since_epoch(as_of)
        if not ended:
            return instant
        stamps = [self.newest]
        for values, there in () if rows is None else _stamped(rows):
            if there.any():
                stamps.append(int(split_row_time(values[there])[1].max()))
        newest = max(stamps)
        return newest + SECOND if newest > instant else instant

    # Users --------------------------------------------------------------------------------------------

    def history(self, user_id: str) -> tuple[str, ...]:
        """The user's last engagements, the most recent first; none where the store does not answer."""
        rows = self._reader.requests([Lookup(user_id, (), (), item_codes(()))])
        return () if rows is None else rows[0].history

    def user(
        self, context: str, user_id: str, as_of: datetime, ended: bool
    ) -> tuple[tuple[str, ...], Float32s]:
        """A user's history, and the columns at ``space.split.request``, [R]."""
        sources = self._contexts.feature_sources(context)
        found = self._reader.requests([Lookup(user_id, sources, (), item_codes(()))])
        rows = _nobody(len(sources), self._memory.width) if found is None else found[0]
        instant = self.instant_for(as_of, ended, rows)
        own = stored_block(rows.user[:, None], rows.knows_user[:, None], instant)
        return rows.history, self._space.request_rows(context, own, np.array([instant]))[0]

    # Users and items ----------------------------------------------------------------------------------

    def of(self, question: Question) -> Asked:
        """What is known, of one question."""
        ((_, (asked,)),) = self.of_each([question])
        return asked

    def of_each(self, questions: Sequence[Question]) -> Iterator[tuple[list[int], list[Asked]]]:
        """What is known, of the questions of one context after the other.

        Yields:
            The places of some questions and what is known of each. They have context, instant and `kept` in
            common, so that they can be scored together.
        """
        # Read and brought to their instant together, of whatever contexts: arrays are of as many of these.
        every = [self._read_by(question) for question in questions]
        for width, numbers in _grouped(every, len).items():
            asked, reads = [questions[number] for number in numbers], [every[number] for number in numbers]
            rows, silent = self._rows(asked, reads, width)
            instants = [
                self.instant_for(one.as_of, one.ended, known) for one, known in zip(asked, rows, strict=True)
            ]
            standing, pairs = self._standing(rows, np.array(instants, dtype=np.int64))
            alone = [number if (one.places < 0).any() else -1 for number, one in enumerate(asked)]
            keys = zip([one.context for one in asked], instants, alone, strict=True)
            for (context, instant, _), chosen in _grouped([*keys], lambda key: key).items():
                views = self._views(context, reads[chosen[0]])
                request, met = self._space.of_requests(
                    context,
                    standing.take(np.array(chosen), views),
                    standing.take(np.concatenate([pairs[number] for number in chosen]), views),
                    np.full(len(chosen), instant),
                )
                known, first = [], 0
                for place, number in enumerate(chosen):
                    one, of, last = asked[number], rows[number], first + len(rows[number].met)
                    dense = self._dense(one, of, request[place : place + 1], met[first:last], instant)
                    known.append(self._asked(one, reads[number], of, dense, instant, silent))
                    first = last
                yield [numbers[number] for number in chosen], known

    def _read_by(self, question: Question) -> tuple[str, ...]:
        """The contexts whose rows of the user are read."""
        every = self._contexts.names
        if question.seen and len(every) <= MOST_CONTEXTS_SEEN:
            return tuple(every)
        return self._contexts.feature_sources(question.context)

    def _views(self, context: str, read: tuple[str, ...]) -> list[int] | slice:
        """Which of the contexts that are read the rows of a context are made of."""
        sources = self._contexts.feature_sources(context)
        return slice(None) if read == sources else [read.index(name) for name in sources]

    def _rows(
        self, asked: Sequence[Question], reads: Sequence[tuple[str, ...]], width: int
    ) -> tuple[list[UserRows], bool]:
        """The rows of each user, of ``width`` contexts, and whether the store is silent."""
        lookups = [
            Lookup(one.user_id, read, one.ids, self._catalogue.codes(one.ids, one.places))
            for one, read in zip(asked, reads, strict=True)
        ]
        rows = self._reader.requests(lookups)
        if rows is None:
            return [_nobody(width, self._memory.width)] * len(asked), True
        return rows, False

    def _standing(self, rows: Sequence[UserRows], instants: Int64s) -> tuple[Standing, list[Int64s]]:
        """Counters of A users and then of their pairs, [S, A + m]; which of these are each one's pairs."""
        own = [(one.user[:, None], one.knows_user[:, None]) for one in rows]
        own += [(one.pairs, one.knows_pair) for one in rows]
        values, there = (np.concatenate(part, axis=1) for part in zip(*own, strict=True))
        sizes = [len(one.met) for one in rows]
        at = np.concatenate([instants, np.repeat(instants, sizes)])
        places = np.arange(len(rows), len(at))
        pairs = np.split(places, np.cumsum(sizes)[:-1])
        return self._space.standing(stored_block(values, there, at)), pairs

    def _asked(
        self,
        question: Question,
        read: Sequence[str],
        rows: UserRows,
        dense: DenseRows,
        instant: int,
        silent: bool,
    ) -> Asked:
        ids, places = question.ids, question.places
        told = [*question.notes, *([STORE_SILENT] if silent else [])]
        if question.ended:
            as_of = EPOCH + timedelta(microseconds=instant)
            told.append(f"the log ended long ago; answered as of {as_of:%Y-%m-%d %H:%M} UTC")
        kept, kept_places = self._kept, places
        if (places < 0).any():
            kept, kept_places = KeptItems(ids, self._catalogue.categories_of(ids)), np.arange(len(ids))
        seen = np.zeros(len(ids), dtype=np.bool_)
        if question.seen:
            seen = self._seen(question.context, read, places, rows)
        return Asked(
            question.context,
            question.user_id,
            ids,
            places,
            kept,
            kept_places,
            rows,
            dense,
            seen,
            instant,
            tuple(told),
            bool(told),
        )

    def _dense(
        self, question: Question, rows: UserRows, request: Float32s, met: Float32s, instant: int
    ) -> DenseRows:
        """The dense rows of one user and n items: what `FeatureSpace.assemble` makes, to the bit."""
        space, context = self._space, question.context
        asker = np.zeros(len(question.ids), dtype=np.int64)
        pair, places = with_stranger(space.stranger(context)[space.split.pair], met, rows.met, len(asker))
        return DenseRows(request, self._about(question, instant), pair, places, asker, space.split)

    def _about(self, question: Question, instant: int) -> Float32s | Callable[[Int64s], Float32s]:
        """What dense rows say of the items; nothing is worked out yet where all are known."""
        context, places = question.context, question.places

        def about(chosen: Int64s) -> Float32s:
            return self._memory.columns(context, places[chosen], instant)

        unknown = np.flatnonzero(places < 0)
        if not len(unknown):
            return about
        ids = [question.ids[row] for row in unknown.tolist()]
        # They may have been touched since the bundle was made.
        sources = self._contexts.feature_sources(context)
        rows = self._reader.read(lambda reader: reader.items(sources, ids))
        if rows is None or not any(len(of.places) for of in rows.values()):
            return about
        whole = about(np.arange(len(places)))
        width = self._memory.width
        whole[unknown] = columns_of(self._space, context, rows, np.arange(len(ids)), instant, width)
        return whole

    def _seen(
        self, context: str, read: Sequence[str], places: Int64s, rows: UserRows
    ) -> npt.NDArray[np.bool_]:
        exposed = self.exposed(context)
        seen = np.zeros(len(places), dtype=np.bool_)
        if not exposed and rows.history:
            seen |= np.isin(places, self._catalogue.places(rows.history))
        for number, name in enumerate(read):
            if not exposed or name == context:
                engaged = rows.knows_pair[number] & (rows.pairs[number, :, 0] > 0)
                seen[rows.met[engaged]] = True
        return seen

    def exposed(self, context: str) -> bool:
        """Whether one acts here on what one has seen elsewhere, which therefore does not count as seen."""
        return isinstance(self._contexts[context].negatives.source, ExposureNegatives)


def _grouped(values: Sequence[T], key: Callable[[T], K]) -> dict[K, list[int]]:
    """The places of values by their key, in the order in which a key first comes."""
    found: dict[K, list[int]] = {}
    for number, value in enumerate(values):
        found.setdefault(key(value), []).append(number)
    return found


def _stamped(rows: UserRows) -> tuple[tuple[Float32s, npt.NDArray[np.bool_]], ...]:
    return (rows.user, rows.knows_user), (rows.pairs, rows.knows_pair)


def _nobody(contexts: int, width: int) -> UserRows:
    """What is known of a user whom nobody can look up."""
    return UserRows(
        user=np.zeros((contexts, width), dtype=np.float32),
        knows_user=np.zeros(contexts, dtype=np.bool_),
        history=(),
        met=np.zeros(0, dtype=np.int64),
        pairs=np.zeros((contexts, 0, width), dtype=np.float32),
        knows_pair=np.zeros((contexts, 0), dtype=np.bool_),
    )


def since_epoch(instant: datetime) -> int:
    """Microseconds since 1970, UTC, of an instant with a zone."""
    return (instant - EPOCH) // timedelta(microseconds=1)
