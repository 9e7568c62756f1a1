"""From a user and a context to a ranking: online features, the scorer, fallbacks and reasons.

Whoever or whatever is unknown is ordinary: it is ranked by what is known, and the answer says so. This
module must never fit anything, and must never speak HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta.bundle.store import BundleStore
from recmeta.contexts import ExposureNegatives, check_context_name
from recmeta.errors import InputError, IntegrityError, NotFoundError
from recmeta.features.assembly import FeatureSpace
from recmeta.features.feast_store import FeatureStore
from recmeta.features.live import OnlineFeatures
from recmeta.features.schema import USER_ITEM, view_name
from recmeta.serving.answers import Answer, RankedItem, check_id
from recmeta.serving.catalogue import CATALOGUE, Catalogue
from recmeta.serving.scorer import Candidates, Scorer
from recmeta.settings import Settings


class Recommender:
    """The champion, opened: answers for one workspace until another bundle is promoted."""

    def __init__(self, settings: Settings) -> None:
        """Open the champion of the workspace.

        Raises:
            NotFoundError: nothing was promoted yet.
            IntegrityError: a file of the bundle is damaged, or its features are not those of this code.
        """
        bundle = BundleStore(settings.bundles_folder).champion()
        if bundle is None:
            raise NotFoundError(
                f"no bundle was promoted yet in {settings.workspace}; run `recmeta nightly` first"
            )
        manifest = bundle.manifest
        self.version = bundle.version
        self.until = manifest.until
        self.contexts = manifest.declarations
        self.serves = {name: entry.serves for name, entry in manifest.contexts.items()}
        self._settings = settings
        self._space = FeatureSpace(
            manifest.declarations, manifest.features.half_lives, manifest.features.history_length
        )
        if self._space.digest != manifest.features.digest:
            raise IntegrityError(
                f"bundle {bundle.version}: its features (digest {manifest.features.digest[:12]}) are not "
                f"those that recmeta computes now ({self._space.digest[:12]}); run `recmeta nightly`"
            )
        told, found = manifest.features, settings.features
        if (told.half_lives, told.history_length) != (found.half_lives, found.history_length):
            raise IntegrityError(
                f"bundle {bundle.version} was made with other half-lives or another history length than "
                "the settings have now; run `recmeta nightly`"
            )
        self._popularity = manifest.features.popularity_index
        self._history_length = manifest.features.history_length
        self._scorer = Scorer(bundle)
        self._catalogue = Catalogue(bundle.file(CATALOGUE))
        self._store = FeatureStore(settings, manifest.declarations)

    def rank(
        self, context: str, user_id: str, item_ids: Sequence[str], now: datetime | None = None
    ) -> Answer:
        """Rank the given items for a user, the best first; repeated items count once.

        ``now`` is the instant, with a zone, whose knowledge is used (default: the clock; where the
        whole log ended long before that, its end).

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
        items = list(dict.fromkeys(check_id(item, "item_ids") for item in item_ids))
        return self._answer(context, user_id, items, now, limit=None, exclude_seen=False)

    def recommend(
        self,
        context: str,
        user_id: str,
        n: int = 10,
        now: datetime | None = None,
        *,
        exclude_seen: bool = True,
    ) -> Answer:
        """Recommend ``n`` items of the catalogue to a user, the best first; fewer where fewer are alive.

        An item counts as seen where the user engaged with it in any context; in a context whose
        negatives come from exposure (one comments on what one has read) only in that context.
        ``now`` as in `rank`.

        Raises:
            NotFoundError: the bundle knows no such context.
            InputError: an id that cannot be one, ``n`` out of bounds, or ``now`` without a zone.
        """
        self._check_context(context)
        check_id(user_id, "user_id")
        if not 1 <= n <= self._settings.serving.most_items:
            raise InputError(f"n: expected 1 to {self._settings.serving.most_items}, found {n}")
        items = self._catalogue.alive(self._instant(now)[0], self._settings.serving.alive_within)
        most = self._settings.serving.most_candidates
        notes = [] if items else ["nobody touched any item lately; the latest ones are ranked"]
        items = (items or self._catalogue.latest(most))[:most]
        return self._answer(context, user_id, items, now, limit=n, exclude_seen=exclude_seen, notes=notes)

    def record(self, interactions: pl.DataFrame) -> None:
        """Take live interactions (columns of ``Interaction``) into the online features at once.

        The next answer reacts to them. They do not enter the log: ingest them as well.
        """
        self._store.record(interactions)

    def _check_context(self, context: str) -> None:
        check_context_name(context)
        if context not in self.serves:
            raise NotFoundError(
                f"unknown context {context!r}; bundle {self.version} serves {', '.join(self.serves)}"
            )

    def _instant(self, now: datetime | None) -> tuple[datetime, bool]:
        """The instant to answer as of, and whether it is the end of a log that ended long ago."""
        if now is not None:
            if now.tzinfo is None:
                raise InputError(f"now: expected an instant with a zone, found {now.isoformat()} without")
            return now.astimezone(UTC), False
        clock = datetime.now(UTC)
        ended = clock - self.until > self._settings.serving.alive_within
        return (self.until, True) if ended else (clock, False)

    def _read_after_end(
        self, user_id: str, items: Sequence[str], as_of: datetime
    ) -> tuple[OnlineFeatures, datetime]:
        """Read online features of a log that ended long ago, and the instant they are of.

        Where somebody acted live after its end, that is just after the latest action that is visible here.
        """
        online = self._store.read_online(user_id, items, as_of)
        hours = np.concatenate([block.hours for block in online.blocks.values()] or [np.zeros(0)])
        ahead = float(np.max(-hours, initial=0.0, where=hours < 0))
        if ahead > 0.0:
            as_of += timedelta(hours=ahead, seconds=1)
            online = self._store.read_online(user_id, items, as_of)
        return online, as_of

    def _answer(
        self,
        context: str,
        user_id: str,
        items: list[str],
        now: datetime | None,
        *,
        limit: int | None,
        exclude_seen: bool,
        notes: Sequence[str] = (),
    ) -> Answer:
        told = [*notes]
        as_of, ended = self._instant(now)
        if ended:
            online, as_of = self._read_after_end(user_id, items, as_of)
            told.append(f"the log ended long ago; answered as of {as_of:%Y-%m-%d %H:%M} UTC")
        else:
            online = self._store.read_online(user_id, items, as_of)
        serves = self.serves[context]
        if serves == "nothing":
            serves = "popularity"
            told.append(f"the gates let nothing serve {context}; ranked by popularity")
        if exclude_seen:
            kept = np.flatnonzero(~self._seen(context, items, online))
            items = [items[place] for place in kept]
            online = online.take(kept)
        categories = self._catalogue.categories(items)
        dense = self._space.assemble(context, online.blocks, _microseconds(as_of, len(items)))
        scores = self._scorer.score(context, Candidates(user_id, items, categories, online.history, dense))
        popularity = dense[:, self._popularity]
        order = np.lexsort((np.array(items, dtype=np.str_), -popularity, -scores))[:limit]
        tastes = self._tastes(online.history)
        ranked = tuple(
            RankedItem(
                rank,
                items[place],
                categories[place],
                float(scores[place]),
                self._item_reason(items[place], categories[place], tastes, float(popularity[place])),
            )
            for rank, place in enumerate(order.tolist(), start=1)
        )
        return Answer(
            context=context,
            user_id=user_id,
            items=ranked,
            reason=self._user_reason(context, user_id, online, len(items)),
            version=self.version,
            serves=serves,
            as_of=as_of,
            degraded=tuple(told),
        )

    def _seen(self, context: str, items: Sequence[str], online: OnlineFeatures) -> npt.NDArray[np.bool_]:
        exposed = isinstance(self.contexts[context].negatives.source, ExposureNegatives)
        seen = np.zeros(len(items), dtype=bool)
        if not exposed:
            recent = set(online.history)
            seen |= np.fromiter((item in recent for item in items), dtype=bool, count=len(items))
        for name in (context,) if exposed else self.contexts.names:
            block = online.blocks.get(view_name(USER_ITEM, name))
            if block is not None:
                seen |= (block.hours >= 0) & (block.values[:, 0] > 0)
        return seen

    def _tastes(self, history: Sequence[str]) -> Counter[str]:
        """How many of the user's last engagements were of each category."""
        return Counter(category for found in self._catalogue.categories(history) for category in found)

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

    def _user_reason(self, context: str, user_id: str, online: OnlineFeatures, candidates: int) -> str:
        if not candidates:
            return "no candidates: nothing is left to rank"
        trained = self._scorer.knows_user(context, user_id)
        length = len(online.history)
        if length:
            known = "known user" if trained else "user without a place in the model yet"
            return f"{known}, ranked with their last {length} engagements"
        if trained or online.knows_user:
            return "known user without recent engagements, ranked by what was learnt of them"
        return "unknown user: no history, ranked by what is known of the items"


def _microseconds(instant: datetime, n: int) -> npt.NDArray[np.int64]:
    since = np.datetime64(instant.astimezone(UTC).replace(tzinfo=None), "us")
    return np.full(n, since.astype(np.int64), dtype=np.int64)
