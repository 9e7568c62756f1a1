"""From a user and a context to a ranking: online features, the scorer, fallbacks and reasons.

Whoever or whatever is unknown is ordinary: it is ranked by what is known, and the answer says so. What a
bundle's items are lies in memory; what a user is comes in one reading of the online store. This module
must never fit anything, and must never speak HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from threading import RLock

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta.bundle.store import Bundle, BundleStore
from recmeta.contexts import check_context_name
from recmeta.errors import InputError, IntegrityError, NotFoundError, RecmetaError
from recmeta.features.assembly import FeatureSpace
from recmeta.features.dense_rows import joined
from recmeta.features.direct_online import Reader, open_rows
from recmeta.features.feast_definitions import registry_file
from recmeta.features.feast_online import FeastReader, OnlineStore
from recmeta.features.live import LiveFeatures, row_width
from recmeta.serving.answers import Answer, Explanation, RankedItem, check_id
from recmeta.serving.catalogue import CATALOGUE, Catalogue
from recmeta.serving.explanation import explained
from recmeta.serving.exploration import Exploration
from recmeta.serving.guarded import GuardedReader
from recmeta.serving.item_halves import ItemHalves
from recmeta.serving.item_memory import ItemMemory
from recmeta.serving.knowledge import Asked, Knowledge, Question, since_epoch
from recmeta.serving.pairs import Pairs
from recmeta.serving.probes import check_probes
from recmeta.serving.reranking import fresher, varied
from recmeta.serving.retrieval import Retrieval
from recmeta.serving.scorer import KeptItems, Scorer, sigmoid
from recmeta.serving.served_log import ServedLog
from recmeta.settings import Settings

Int64s = npt.NDArray[np.int64]

Floats = npt.NDArray[np.float64]

_BESIDE = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recmeta-score")
"""Scores one context of several: a network lets go of the interpreter while it runs."""

WARM_CONTEXTS, WARM_ITEMS = 16, 200
"""Ranked once before a bundle serves."""


@dataclass(frozen=True)
class Ranking:
    """What `Recommender.rank` is asked."""

    context: str
    user_id: str
    item_ids: Sequence[str]
    now: datetime | None = None
    reasons: bool = False


class Recommender:
    """One bundle, opened: answers for one workspace. One thread asks, another may `refresh` meanwhile."""

    _catalogue: Catalogue
    _kept: KeptItems
    _items: ItemMemory
    _knowledge: Knowledge
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
        return self._knowledge.instant_for(*self._knowledge.instant(None))

    def _own_catalogue(self, bundle: Bundle, like: Recommender | None) -> None:
        checksum = bundle.manifest.files[CATALOGUE].sha256
        same = like is not None and like._catalogue_checksum == checksum
        self._catalogue_checksum = checksum
        if like is not None and same:
            self._catalogue, self._kept = like._catalogue, like._kept
        else:
            self._catalogue = Catalogue(bundle.file(CATALOGUE))
            self._kept = KeptItems(self._catalogue.ids, self._catalogue.categories)
        before = like if same and like is not None and self._reads_as(like) else None
        if before is not None:
            self._items, self._written = before._items, before._written
        else:
            most = self._settings.serving.item_columns_megabytes * 1_000_000
            self._items, self._written = ItemMemory(self._space, self._catalogue.ids, self._width, most), None
        self._knowledge = Knowledge(
            self._space,
            self._catalogue,
            self._kept,
            self._items,
            self._guarded,
            self.until,
            self._settings.serving.alive_within,
        )
        if before is None:
            self.refresh()
        else:
            self._knowledge.newest = before._knowledge.newest

    def _reads_as(self, other: Recommender) -> bool:
        """Whether both make the same columns of the same rows."""
        return other._space.digest == self._space.digest and other.contexts.names == self.contexts.names

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
        self._knowledge.newest = max(self._knowledge.newest, self._items.newest())
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
                self._knowledge.newest = max(self._knowledge.newest, since_epoch(newest))

    def close(self) -> None:
        """Close the connections to the online store; the next call opens them again."""
        self._guarded.close()
        with self._writing:
            if self._live is not None:
                self._live.close()

    def warm(self, before: Recommender | None = None) -> None:
        """Answer once in some contexts, so that the first request need not pay for what comes first.

        ``before`` still serves: what it keeps of items for the contexts that are asked for is made here too.

        Raises:
            IntegrityError: it scores its probe rows otherwise than where it was published.
            RecmetaError: what serves cannot score.
        """
        check_probes(self._scorer, self._bundle, self._settings.gate.parity)
        for number, context in enumerate([*self.serves][:WARM_CONTEXTS]):
            self.rank(context, "\u2026", self._catalogue.ids[:WARM_ITEMS], reasons=number == 0)
        items = min(len(self._catalogue), self._settings.serving.most_candidates)
        for context in [] if before is None else before._halves.contexts[-WARM_CONTEXTS:]:
            if context in self.serves:
                self._halves.fill(context, items, self._item_instant())

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
        (answer,) = self.rank_each([Ranking(context, user_id, item_ids, now, reasons)])
        if isinstance(answer, RecmetaError):
            raise answer
        return answer

    def rank_each(self, asked: Sequence[Ranking]) -> list[Answer | RecmetaError]:
        """As `rank` of each, to the bit, at less than each one's cost; what one would raise is its answer."""
        found: dict[int, Answer | RecmetaError] = {}
        questions: dict[int, Question] = {}
        for number, one in enumerate(asked):
            try:
                questions[number] = self._question(one)
            except RecmetaError as error:
                found[number] = error
        places, several = [*questions], len({one.context for one in questions.values()}) > 1
        groups = []
        for numbers, known in self._knowledge.of_each([*questions.values()]):
            score = self._to_score(known)
            if several:  # while this is scored, the next is put together and the one before is told
                score = _BESIDE.submit(copy_context().run, score).result
            groups.append(([places[number] for number in numbers], known, score))
        for numbers, known, score in groups:
            logits, first = score(), 0
            for number, of in zip(numbers, known, strict=True):
                own, first = logits[first : first + len(of.ids)], first + len(of.ids)
                order = self._order(of, own)
                answer = self._answer(of, order, sigmoid(own[order]), reasons=asked[number].reasons)
                found[number] = answer
        return [found[number] for number in range(len(asked))]

    def _question(self, asked: Ranking) -> Question:
        self._check_context(asked.context)
        check_id(asked.user_id, "user_id")
        item_ids, most = asked.item_ids, self._settings.serving.most_items
        if len(item_ids) > most:
            raise InputError(f"item_ids: expected at most {most}, found {len(item_ids)}")
        if len(set(item_ids)) < len(item_ids):
            item_ids = [*dict.fromkeys(item_ids)]
        places = self._catalogue.places(item_ids)
        if (places < 0).any():
            for item in item_ids:
                check_id(item, "item_ids")
        as_of, ended = self._knowledge.instant(asked.now)
        notes = self._gated(asked.context)
        return Question(asked.context, asked.user_id, item_ids, places, as_of, ended, notes=notes)

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
        as_of, ended = self._knowledge.instant(now)
        alive = self._catalogue.alive(as_of, serving.alive_within)
        notes = self._gated(context)
        if not alive:
            notes += ("nobody touched any item lately; the latest ones are ranked",)
        places = self._candidates(context, user_id, alive, as_of, ended, without_seen=exclude_seen)
        ids = [self._catalogue.ids[place] for place in places.tolist()]
        question = Question(context, user_id, ids, places, as_of, ended, seen=exclude_seen, notes=notes)
        asked = self._knowledge.of(question)
        if exclude_seen:
            asked = asked.take(np.flatnonzero(~asked.seen))
        logits = self._to_score([asked])()
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
        places, (as_of, ended) = self._catalogue.places([item_id]), self._knowledge.instant(now)
        question = Question(context, user_id, [item_id], places, as_of, ended, notes=self._gated(context))
        asked = self._knowledge.of(question)
        return explained(asked, self._scorer, self._space, self.manifest, self._catalogue, self.version)

    def history(self, user_id: str, now: datetime | None = None) -> list[dict[str, object]]:
        """The user's last engagements, most recent first: item_id and categories.

        Raises:
            InputError: an id that cannot be one.
        """
        check_id(user_id, "user_id")
        known = self._knowledge.history(user_id)
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
        as_of, ended = self._knowledge.instant(now)
        if as_of < self.until:
            raise InputError(f"as of {as_of.isoformat()}: expected {self.until.isoformat()} or later")
        return Pairs(
            space=self._space,
            catalogue=self._catalogue,
            kept=self._kept,
            memory=self._items,
            scorer=self._scorer,
            reader=self._open_reader(None),
            instant=self._knowledge.instant_for(as_of, ended),
        )

    # Steps --------------------------------------------------------------------------------------------

    def _check_context(self, context: str) -> None:
        if context not in self.serves:
            check_context_name(context)
            shown = ", ".join([*self.serves][:20])
            raise NotFoundError(f"unknown context {context!r}; bundle {self.version} serves {shown}")

    def _gated(self, context: str) -> tuple[str, ...]:
        """Why every answer in a context is less than it should be."""
        if self.serves[context] != "nothing":
            return ()
        return (f"the gates let nothing serve {context}; ranked by popularity",)

    def _candidates(
        self, context: str, user_id: str, alive: int, as_of: datetime, ended: bool, *, without_seen: bool
    ) -> Int64s:
        """Which of the first ``alive`` items are scored: all, what the towers choose, or the latest.

        Where none is alive, the latest of all.
        """
        most = self._settings.serving.most_candidates
        if self._retrieval is None or alive <= most or not self._retrieval.chooses(context):
            return np.arange(min(alive or len(self._catalogue), most))
        history, request = self._knowledge.user(context, user_id, as_of, ended)
        without = history if without_seen and not self._knowledge.exposed(context) else ()
        return self._retrieval.choose(
            context,
            user_id,
            history,
            request,
            alive=alive,
            most=most,
            without=self._catalogue.places(without),
        )

    def _to_score(self, asked: Sequence[Asked]) -> Callable[[], Floats]:
        """What scores the items of all, one after another, who have context, instant and `kept` in common.

        It may be called in another thread: what is in memory of items is looked up here.
        """
        context, kept = asked[0].context, asked[0].kept
        places = np.concatenate([one.kept_places for one in asked])
        dense = joined([one.dense for one in asked])
        half = self._halves.take(context, places, asked[0].instant) if kept is self._kept else None
        if half is None or self.serves[context] not in ("shared", "adapter"):
            dense.about  # noqa: B018  (kept by `dense`)
        users, histories = [one.user_id for one in asked], [one.rows.history for one in asked]
        return partial(self._scorer.score_kept, context, users, histories, kept, places, dense, half=half)

    def _order(self, asked: Asked, logits: Floats) -> Int64s:
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
        scores: Floats,
        *,
        reasons: bool,
        propensity: Floats | None = None,
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
            named = map(ids.__getitem__, chosen)
            items = tuple(map(RankedItem, range(1, len(chosen) + 1), named, scores.tolist()))
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
