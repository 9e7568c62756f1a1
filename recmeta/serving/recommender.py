"""From a user and a context to a ranking: online features, the scorer, fallbacks and reasons.

Whoever or whatever is unknown is ordinary: it is ranked by what is known, and the answer says so. What a
bundle's items are lies in memory; what a user is comes in one reading of the online store. This module
must never fit anything, and must never speak HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import RLock

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta.bundle.store import Bundle, BundleStore
from recmeta.contexts import ExposureNegatives, check_context_name
from recmeta.errors import InputError, IntegrityError, NotFoundError
from recmeta.features.assembly import FeatureSpace, Float32s, stored_block
from recmeta.features.counters import split_row_time
from recmeta.features.dense_rows import DenseRows
from recmeta.features.direct_online import EPOCH, Reader, UserRows, open_rows
from recmeta.features.feast_definitions import registry_file
from recmeta.features.feast_online import FeastReader, OnlineStore
from recmeta.features.live import LiveFeatures, row_width
from recmeta.features.met import item_codes
from recmeta.serving.answers import Answer, Explanation, RankedItem, check_id
from recmeta.serving.catalogue import CATALOGUE, Catalogue
from recmeta.serving.explanation import explained
from recmeta.serving.exploration import Exploration
from recmeta.serving.guarded import GuardedReader
from recmeta.serving.item_halves import ItemHalves
from recmeta.serving.item_memory import ItemMemory, columns_of
from recmeta.serving.pairs import Pairs
from recmeta.serving.probes import check_probes
from recmeta.serving.reranking import fresher, varied
from recmeta.serving.retrieval import Retrieval
from recmeta.serving.scorer import KeptItems, Scorer, sigmoid
from recmeta.serving.served_log import ServedLog
from recmeta.settings import Settings

Int64s = npt.NDArray[np.int64]

ANSWERED_EVERY = timedelta(seconds=10)
"""Requests of ten seconds are answered as of their end, and share what items are by then: a counter that
fades by half in a day has lost less than a ten-thousandth."""

SECOND = 1_000_000
"""Microseconds."""

MOST_CONTEXTS_SEEN = 32
"""With more, an item counts as seen by what the context reads alone."""

WARM_CONTEXTS, WARM_ITEMS = 16, 200
"""Ranked once before a bundle serves."""

STORE_SILENT = "the online store does not answer: ranked by what is known of the items"


@dataclass(frozen=True)
class Asked:
    """A user, some items, and all that is known of both at an instant."""

    context: str
    user_id: str
    ids: list[str]
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


class Recommender:
    """One bundle, opened: answers for one workspace. One thread asks, another may `refresh` meanwhile."""

    _catalogue: Catalogue
    _kept: KeptItems
    _items: ItemMemory
    _newest: int
    _written: datetime | None
    """No row of the online store was newer when items were last read; None: not known."""
    _scorer: Scorer
    _exploration: Exploration
    _catalogue_checksum: str
    _retrieval: Retrieval | None = None
    """None: the latest items are scored."""

    def __init__(
        self,
        settings: Settings,
        like: Recommender | None = None,
        *,
        version: str | None = None,
        served: ServedLog | None = None,
    ) -> None:
        """Open the champion of the workspace, or the bundle ``version``.

        Args:
            settings: of the workspace.
            like: what served before; what is the same in both bundles is not loaded again.
            version: which bundle; None: the champion.
            served: takes the lists of contexts that are explored.

        Raises:
            NotFoundError: there is no such bundle, or nothing was ever materialized.
            IntegrityError: a file of the bundle is damaged, or its features are not those of this code.
        """
        store = BundleStore(settings.bundles_folder)
        bundle = store.champion() if version is None else store.open(version)
        if bundle is None:
            raise NotFoundError(
                f"no bundle was promoted yet in {settings.workspace}; run `recmeta nightly` first"
            )
        manifest = bundle.manifest
        self.manifest = manifest
        self.evidence = bundle.evidence
        self._bundle = bundle
        self.version = bundle.version
        self.until = manifest.until
        self.contexts = manifest.declarations
        self.serves = {name: entry.serves for name, entry in manifest.contexts.items()}
        self._settings = settings
        self._served = served
        self._space = _space(bundle, settings)
        self._popularity = int(np.searchsorted(self._space.split.about, manifest.features.popularity_index))
        """Of an item's columns, the one that the popularity baseline ranks by."""
        self._history_length = manifest.features.history_length
        self._scorer = Scorer(
            bundle, None if like is None else like._scorer, adapters=settings.serving.adapters_in_memory
        )
        self._width = row_width(settings)
        self._exploration = Exploration(settings.serving.exploration) if like is None else like._exploration
        self._writing = RLock()
        self._live: LiveFeatures | None = None
        self._reader = self._open_reader(settings.serving.store_timeout)
        self._guarded = GuardedReader(self._reader, settings.serving.store_rest)
        self._own_catalogue(bundle, like)
        most = settings.serving.item_columns_megabytes * 1_000_000
        self._halves = ItemHalves(self._scorer, self._kept, self._items, most)
        self._retrieval = self._open_retrieval(bundle)

    def _open_retrieval(self, bundle: Bundle) -> Retrieval | None:
        towers, serving = bundle.manifest.towers, self._settings.serving
        if towers is None or serving.retrieval == "off" or len(self._catalogue) <= serving.most_candidates:
            return None
        approximate = serving.retrieval == "ann"
        opened = Retrieval(bundle, towers, self._space, self._catalogue, approximate=approximate)
        opened.encode(self._items, self._item_instant())
        return opened

    def _item_instant(self) -> int:
        """The instant for which what items are is computed beforehand."""
        return self._answered_at(None, _nobody(1, self._width))[0]

    def _own_catalogue(self, bundle: Bundle, like: Recommender | None) -> None:
        checksum = bundle.manifest.files[CATALOGUE].sha256
        same = like is not None and like._catalogue_checksum == checksum
        self._catalogue_checksum = checksum
        if like is not None and same:
            self._catalogue, self._kept = like._catalogue, like._kept
        else:
            self._catalogue = Catalogue(bundle.file(CATALOGUE))
            self._kept = KeptItems(self._catalogue.ids, self._catalogue.categories)
        if (
            like is not None
            and same
            and like._space.digest == self._space.digest
            and (like.contexts.names == self.contexts.names)
        ):
            self._items, self._newest, self._written = like._items, like._newest, like._written
            return
        most = self._settings.serving.item_columns_megabytes * 1_000_000
        self._newest, self._written = 0, None
        self._items = ItemMemory(self._space, self._catalogue.ids, self._width, most)
        self.refresh()

    def _open_reader(self, timeout: float | None) -> Reader:
        if not registry_file(self._settings).exists():
            raise NotFoundError(
                f"{self._settings.workspace} has no online features yet; run `recmeta nightly` first"
            )
        return open_rows(self._settings, self._width, timeout) or FeastReader(self._open_store(), self._width)

    def _open_store(self) -> OnlineStore:
        rows = open_rows(self._settings, self._width)
        if rows is not None:
            return OnlineStore(rows, self._width)
        from recmeta.features.feast_store import FeatureStore  # seconds; and only where nothing else can

        return FeatureStore(self._settings, self.contexts).online

    # Keeping up ---------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read all items again, through a connection of its own, where anything was written since."""
        guarded = GuardedReader(self._open_reader(None), 0.0)
        rows = open_rows(self._settings, self._width)
        try:
            written = None
            if rows is not None:
                online = OnlineStore(rows, self._width)
                written = guarded.read(lambda _: online.newest())
                online.close()
            if written is not None and written == self._written:
                self._keep_up(changed=False)
                return
            guarded.read(self._items.load)
            if guarded.fault is None:
                self._written = written
        finally:
            guarded.close()
        self._newest = max(self._newest, self._items.newest())
        self._keep_up(changed=True)

    def _keep_up(self, *, changed: bool) -> None:
        if self._retrieval is not None:
            self._retrieval.keep_up(self._items, self._item_instant(), changed=changed)

    def record(self, interactions: pl.DataFrame) -> None:
        """Take live interactions (columns of ``Interaction``) into the online features at once.

        The next answer reacts to them. They do not enter the log: ingest them as well.

        Raises:
            ContextError: a row names a context that is not declared.
        """
        with self._writing:
            if self._live is None:
                self._live = LiveFeatures(self._settings, self.contexts, self._open_store())
            self._live.record(interactions)
            touched = self._catalogue.places(interactions["item_id"].unique().to_list())
            if len(touched := touched[touched >= 0]):
                self._guarded.read(lambda reader: self._items.update(reader, touched))
            newest = interactions["created_timestamp"].max()
            if isinstance(newest, datetime):
                self._newest = max(self._newest, _since_epoch(newest))

    def close(self) -> None:
        """Close the connections to the online store; the next call opens them again."""
        self._guarded.close()
        with self._writing:
            if self._live is not None:
                self._live.close()

    def warm(self) -> None:
        """Answer once in some contexts, so that the first request need not pay for what comes first.

        Raises:
            IntegrityError: it scores its probe rows otherwise than where it was published.
            RecmetaError: what serves cannot score.
        """
        check_probes(self._scorer, self._bundle, self._settings.gate.parity)
        for context in [*self.serves][:WARM_CONTEXTS]:
            self.rank(context, "\u2026", self._catalogue.ids[:WARM_ITEMS], reasons=True)

    # Answers ------------------------------------------------------------------------------------------

    def rank(
        self,
        context: str,
        user_id: str,
        item_ids: Sequence[str],
        now: datetime | None = None,
        *,
        reasons: bool = False,
    ) -> Answer:
        """Rank the given items for a user, the best first; repeated items count once.

        ``now`` is the instant, with a zone, whose knowledge is used (default: the end of these ten seconds;
        where the whole log ended long before that, its end). ``reasons``: say of each item why.

        Raises:
            NotFoundError: the bundle knows no such context.
            InputError: an id that cannot be one, too many items, or ``now`` without a zone.
        """
        self._check_context(context)
        check_id(user_id, "user_id")
        if len(item_ids) > self._settings.serving.most_items:
            raise InputError(
                f"item_ids: expected at most {self._settings.serving.most_items}, found {len(item_ids)}"
            )
        places = self._catalogue.places(item_ids)
        if (places < 0).any():
            for item in item_ids:
                check_id(item, "item_ids")
        ids = list(dict.fromkeys(item_ids))
        if len(ids) < len(item_ids):
            places = self._catalogue.places(ids)
        asked = self._ask(context, user_id, ids, places, now, seen=False)
        logits = self._logits(asked)
        order = self._order(asked, logits)
        return self._answer(asked, order, sigmoid(logits[order]), reasons=reasons)

    def recommend(
        self,
        context: str,
        user_id: str,
        n: int = 10,
        now: datetime | None = None,
        *,
        exclude_seen: bool = True,
        diversity: float = 0.0,
        freshness: float = 0.0,
    ) -> Answer:
        """Recommend ``n`` items of the catalogue to a user, the best first; fewer where fewer are alive.

        An item counts as seen where the user engaged with it in any context; in a context whose
        negatives come from exposure (one comments on what one has read) only in that context.
        ``now`` as in `rank`. Where the context's settings explore, some slots hold another item than the
        best, and each item says with which probability it stands there.

        Args:
            context: the surface.
            user_id: an unknown user is ordinary.
            n: how many.
            now: as in `rank`.
            exclude_seen: leave out what the user engaged with.
            diversity: 0 to 1, how much an item loses for categories that stand above it.
            freshness: logits that an item gains which became known just now; half of it a day later.

        Raises:
            NotFoundError: the bundle knows no such context.
            InputError: an id that cannot be one, a number out of bounds, or ``now`` without a zone.
        """
        self._check_context(context)
        check_id(user_id, "user_id")
        serving = self._settings.serving
        if not 1 <= n <= serving.most_items:
            raise InputError(f"n: expected 1 to {serving.most_items}, found {n}")
        for name, value, most in (("diversity", diversity, 1.0), ("freshness", freshness, 10.0)):
            if not 0.0 <= value <= most:
                raise InputError(f"{name}: expected 0 to {most:g}, found {value}")
        alive = self._catalogue.alive(self._instant(now)[0], serving.alive_within)
        notes = () if alive else ("nobody touched any item lately; the latest ones are ranked",)
        places = self._candidates(context, user_id, alive, now, without_seen=exclude_seen)
        ids = [self._catalogue.ids[place] for place in places.tolist()]
        asked = self._ask(context, user_id, ids, places, now, seen=exclude_seen, notes=notes)
        if exclude_seen:
            asked = asked.take(np.flatnonzero(~asked.seen))
        logits = self._logits(asked)
        if freshness:
            logits = fresher(logits, self._catalogue.first_known[asked.places], asked.instant, freshness)
        order = self._order(asked, logits)
        if diversity:
            categories = [self._catalogue.categories[place] for place in asked.places[order].tolist()]
            order = order[varied(logits[order], categories, n, diversity)]
        if not self._exploration.explores(context):
            order = order[:n]
            return self._answer(asked, order, sigmoid(logits[order]), reasons=True)
        deep = order[: self._exploration.depth(context, n)]
        # What diversity ordered stays in that order: ranks stand for scores where it has a say.
        given = -np.arange(len(deep), dtype=np.float64) if diversity else logits[deep]
        shown = self._exploration.show(context, given, n)
        order, best = deep[shown.indices], deep[shown.best]
        answer = self._answer(
            asked, order, sigmoid(logits[order]), reasons=True, propensity=shown.propensities
        )
        if self._served is not None:
            self._served.append(
                context,
                user_id,
                [item.item_id for item in answer.items],
                shown.propensities,
                [item.score for item in answer.items],
                sigmoid(logits[best]),
                shown.greedy,
                bundle=self.version,
                as_of=answer.as_of,
            )
        return answer

    def explain(self, context: str, user_id: str, item_id: str, now: datetime | None = None) -> Explanation:
        """Say which inputs moved the score of one item, and what the context's adapter added.

        Raises:
            NotFoundError: the bundle knows no such context.
            InputError: an id that cannot be one, or ``now`` without a zone.
        """
        self._check_context(context)
        check_id(user_id, "user_id")
        check_id(item_id, "item_id")
        asked = self._ask(context, user_id, [item_id], self._catalogue.places([item_id]), now, seen=False)
        return explained(asked, self._scorer, self._space, self.manifest, self._catalogue, self.version)

    def history(self, user_id: str, now: datetime | None = None) -> list[dict[str, object]]:
        """The user's last engagements, most recent first: item_id and categories.

        Raises:
            InputError: an id that cannot be one.
        """
        check_id(user_id, "user_id")
        rows = self._guarded.request(user_id, (), (), item_codes(()))
        known = () if rows is None else rows.history
        return [
            {"item_id": item, "categories": list(about)}
            for item, about in zip(known, self._catalogue.categories_of(known), strict=True)
        ]

    def pairs(self, now: datetime | None = None) -> Pairs:
        """What scores many pairs as of one instant, over a connection of its own: close it in the end.

        ``now`` as in `rank`; where a log ended long ago, what acts since did to items counts.

        Raises:
            InputError: ``now`` without a zone, or before this bundle's knowledge ends: the online store
                holds but the latest rows.
        """
        as_of, ended = self._instant(now)
        if as_of < self.until:
            raise InputError(f"as of {as_of.isoformat()}: expected {self.until.isoformat()} or later")
        instant = _since_epoch(as_of)
        if ended:
            instant = self._after_end(instant, _nobody(1, self._width))
        return Pairs(
            space=self._space,
            catalogue=self._catalogue,
            kept=self._kept,
            memory=self._items,
            scorer=self._scorer,
            reader=self._open_reader(None),
            instant=instant,
        )

    # Steps --------------------------------------------------------------------------------------------

    def _check_context(self, context: str) -> None:
        if context not in self.serves:
            check_context_name(context)
            shown = ", ".join([*self.serves][:20])
            raise NotFoundError(f"unknown context {context!r}; bundle {self.version} serves {shown}")

    def _instant(self, now: datetime | None) -> tuple[datetime, bool]:
        """The instant to answer as of, and whether it is the end of a log that ended long ago."""
        if now is not None:
            if now.tzinfo is None:
                raise InputError(f"now: expected an instant with a zone, found {now.isoformat()} without")
            return now.astimezone(UTC), False
        clock = datetime.now(UTC)
        if clock - self.until > self._settings.serving.alive_within:
            return self.until, True
        return clock + (ANSWERED_EVERY - (clock - EPOCH) % ANSWERED_EVERY), False

    def _ask(
        self,
        context: str,
        user_id: str,
        ids: list[str],
        places: Int64s,
        now: datetime | None,
        *,
        seen: bool,
        notes: tuple[str, ...] = (),
    ) -> Asked:
        """Read the user, and put together what is known of them and of the items."""
        sources = self.contexts.feature_sources(context)
        read = self._read_for_seen(sources) if seen else sources
        unknown = np.flatnonzero(places < 0)
        found = self._guarded.request(user_id, read, ids, self._catalogue.codes(ids, places))
        degraded = found is None
        rows = found or _nobody(len(read), self._width)
        told = [*notes, *([STORE_SILENT] if degraded else [])]
        instant, ended = self._answered_at(now, rows)
        if ended:
            as_of = EPOCH + timedelta(microseconds=instant)
            told.append(f"the log ended long ago; answered as of {as_of:%Y-%m-%d %H:%M} UTC")
        if self.serves[context] == "nothing":
            told.append(f"the gates let nothing serve {context}; ranked by popularity")
        dense = self._dense(context, read, sources, rows, ids, places, instant)
        kept, kept_places = self._kept, places
        if len(unknown):
            categories = self._catalogue.categories_of(ids)
            kept, kept_places = KeptItems(ids, categories), np.arange(len(ids))
        met = self._seen(context, read, places, rows) if seen else np.zeros(len(ids), dtype=np.bool_)
        return Asked(
            context,
            user_id,
            ids,
            places,
            kept,
            kept_places,
            rows,
            dense,
            met,
            instant,
            tuple(told),
            bool(told),
        )

    def _candidates(
        self, context: str, user_id: str, alive: int, now: datetime | None, *, without_seen: bool
    ) -> Int64s:
        """Which of the first ``alive`` items are scored: all, what the towers choose, or the latest.

        Where none is alive, the latest of all.
        """
        most = self._settings.serving.most_candidates
        if self._retrieval is None or alive <= most or not self._retrieval.chooses(context):
            return np.arange(min(alive or len(self._catalogue), most))
        sources = self.contexts.feature_sources(context)
        rows = self._guarded.request(user_id, sources, (), item_codes(())) or _nobody(
            len(sources), self._width
        )
        instant, _ = self._answered_at(now, rows)
        exposed = isinstance(self.contexts[context].negatives.source, ExposureNegatives)
        return self._retrieval.choose(
            context,
            user_id,
            rows.history,
            self._request(context, rows, instant),
            alive=alive,
            most=most,
            without=self._catalogue.places(rows.history if without_seen and not exposed else ()),
        )

    def _request(self, context: str, rows: UserRows, instant: int) -> Float32s:
        """What dense rows say of a user, read in the context's sources, and of the instant, [R]."""
        own = stored_block(rows.user[:, None], rows.knows_user[:, None], instant)
        only: Float32s = self._space.request_rows(context, own, np.array([instant]))[0]
        return only

    def _read_for_seen(self, sources: tuple[str, ...]) -> tuple[str, ...]:
        every = self.contexts.names
        return every if len(every) <= MOST_CONTEXTS_SEEN else sources

    def _answered_at(self, now: datetime | None, rows: UserRows) -> tuple[int, bool]:
        """The instant of an answer for whom ``rows`` tell of, in microseconds, and as `_instant` whether the
        log ended long ago.
        """
        as_of, ended = self._instant(now)
        instant = _since_epoch(as_of)
        return (self._after_end(instant, rows) if ended else instant), ended

    def _after_end(self, instant: int, rows: UserRows) -> int:
        """Just after the latest action that is visible here, where somebody acted after the log's end."""
        stamps = [self._newest]
        for values, there in ((rows.user, rows.knows_user), (rows.pairs, rows.knows_pair)):
            if there.any():
                stamps.append(int(split_row_time(values[there])[1].max()))
        newest = max(stamps)
        return newest + SECOND if newest > instant else instant

    def _dense(
        self,
        context: str,
        read: Sequence[str],
        sources: Sequence[str],
        rows: UserRows,
        ids: Sequence[str],
        places: Int64s,
        instant: int,
    ) -> DenseRows:
        """The dense rows of one user and n items: what `FeatureSpace.assemble` makes, to the bit."""
        values = np.concatenate([rows.user[:, None], rows.pairs], axis=1)
        there = np.concatenate([rows.knows_user[:, None], rows.knows_pair], axis=1)
        stored = stored_block(values, there, instant)
        if tuple(read) != tuple(sources):
            stored = stored.take([read.index(name) for name in sources])
        request, met = self._space.of_request(context, stored, instant)
        pair = np.concatenate([self._space.stranger(context)[None, self._space.split.pair], met])
        place = np.zeros(len(ids), dtype=np.int64)
        place[rows.met] = np.arange(1, len(pair))

        def about(chosen: Int64s) -> Float32s:
            return self._items.columns(context, places[chosen], instant)

        asker = np.zeros(len(ids), dtype=np.int64)
        unknown = np.flatnonzero(places < 0)
        part = None
        if len(unknown):
            part = self._unknown_items([ids[row] for row in unknown.tolist()], context, sources, instant)
        if part is None:
            return DenseRows(request, about, pair, place, asker, self._space.split)
        whole = about(np.arange(len(ids)))
        whole[unknown] = part
        return DenseRows(request, whole, pair, place, asker, self._space.split)

    def _unknown_items(
        self, ids: Sequence[str], context: str, sources: Sequence[str], instant: int
    ) -> Float32s | None:
        """Columns of items that are not in the catalogue: they may have been touched since."""
        found = self._guarded.read(lambda reader: reader.items(sources, ids))
        if found is None or not any(len(rows.places) for rows in found.values()):
            return None
        return columns_of(self._space, context, found, np.arange(len(ids)), instant, self._width)

    def _logits(self, asked: Asked) -> npt.NDArray[np.float64]:
        half = None
        if asked.kept is self._kept:
            half = self._halves.take(asked.context, asked.places, asked.instant)
        return self._scorer.score_kept(
            asked.context,
            [asked.user_id],
            [asked.rows.history],
            asked.kept,
            asked.kept_places,
            asked.dense,
            half=half,
        )

    def _order(self, asked: Asked, logits: npt.NDArray[np.float64]) -> Int64s:
        """The best first; of equal ones the more popular, and then by id."""
        order = np.argsort(-logits, kind="stable")
        ranked = logits[order]
        if (ranked[1:] == ranked[:-1]).any():  # rare, and then dear
            popularity = asked.dense.about[:, self._popularity]
            order = np.lexsort((np.array(asked.ids, dtype=np.str_), -popularity, -logits))
        return order

    def _answer(
        self,
        asked: Asked,
        order: Int64s,
        scores: npt.NDArray[np.float64],
        *,
        reasons: bool,
        propensity: npt.NDArray[np.float64] | None = None,
    ) -> Answer:
        ids, chosen = asked.ids, order.tolist()
        if reasons:
            tastes = self._tastes(asked.rows.history)
            abouts = self._catalogue.categories_of([ids[row] for row in chosen])
            popularity = asked.dense.take(order).about[:, self._popularity].tolist()
            told = [
                self._item_reason(ids[row], about, tastes, popular)
                for row, about, popular in zip(chosen, abouts, popularity, strict=True)
            ]
            shown: list[float | None] = [None] * len(chosen) if propensity is None else propensity.tolist()
            items = tuple(
                RankedItem(rank, ids[row], score, about, reason, probability)
                for rank, (row, score, about, reason, probability) in enumerate(
                    zip(chosen, scores.tolist(), abouts, told, shown, strict=True), start=1
                )
            )
        else:
            ranked = enumerate(zip(chosen, scores.tolist(), strict=True), start=1)
            items = tuple([RankedItem(rank, ids[row], score) for rank, (row, score) in ranked])
        serves = self.serves[asked.context]
        return Answer(
            context=asked.context,
            user_id=asked.user_id,
            items=items,
            reason=self._user_reason(asked),
            bundle=self.version,
            serves="popularity" if serves == "nothing" else serves,
            as_of=asked.as_of,
            degraded=asked.degraded,
            notes=asked.notes,
        )

    def _seen(
        self, context: str, read: Sequence[str], places: Int64s, rows: UserRows
    ) -> npt.NDArray[np.bool_]:
        exposed = isinstance(self.contexts[context].negatives.source, ExposureNegatives)
        seen = np.zeros(len(places), dtype=np.bool_)
        if not exposed and rows.history:
            seen |= np.isin(places, self._catalogue.places(rows.history))
        for number, name in enumerate(read):
            if not exposed or name == context:
                engaged = rows.knows_pair[number] & (rows.pairs[number, :, 0] > 0)
                seen[rows.met[engaged]] = True
        return seen

    def _tastes(self, history: Sequence[str]) -> Counter[str]:
        """How many of the user's last engagements were of each category."""
        return Counter(category for found in self._catalogue.categories_of(history) for category in found)

    def _item_reason(
        self, item: str, categories: Sequence[str], tastes: Counter[str], popularity: float
    ) -> str:
        liked = max(categories, key=lambda category: tastes[category], default="")
        engagements = float(np.expm1(popularity))
        here = (
            "little known here yet"
            if round(engagements) < 1
            else f"{engagements:.0f} engagement{'s' if round(engagements) > 1 else ''} here lately"
        )
        if liked and tastes[liked]:
            total = min(sum(tastes.values()), self._history_length)
            return f"{liked}: {tastes[liked]} of the user's last {total}; {here}"
        if item not in self._catalogue:
            return f"unknown item; {here}"
        return here

    def _user_reason(self, asked: Asked) -> str:
        if not asked.ids:
            return "no candidates: nothing is left to rank"
        trained = self._scorer.knows_user(asked.context, asked.user_id)
        length = len(asked.rows.history)
        if length:
            known = "known user" if trained else "user without a place in the model yet"
            return f"{known}, ranked with their last {length} engagements"
        if trained or asked.rows.knows_user.any():
            return "known user without recent engagements, ranked by what was learnt of them"
        return "unknown user: no history, ranked by what is known of the items"


def _space(bundle: Bundle, settings: Settings) -> FeatureSpace:
    """The columns of the bundle's rows, where this code and these settings make them alike.

    Raises:
        IntegrityError: they do not.
    """
    told, found = bundle.manifest.features, settings.features
    space = FeatureSpace(bundle.manifest.declarations, told.half_lives, told.history_length)
    if space.digest != told.digest:
        raise IntegrityError(
            f"bundle {bundle.version}: its features (digest {told.digest[:12]}) are not "
            f"those that recmeta computes now ({space.digest[:12]}); run `recmeta nightly`"
        )
    if (told.half_lives, told.history_length) != (found.half_lives, found.history_length):
        raise IntegrityError(
            f"bundle {bundle.version} was made with other half-lives or another history length than "
            "the settings have now; run `recmeta nightly`"
        )
    return space


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


def _since_epoch(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)
