"""Towers for the night's bundle: what it serves is asked about lists of users and items, and imitated.

Users and items are looked up in the feature files as of some instants of the last days, so that the lists
are what requests of tomorrow will be: people who acted lately, everything that is alive. The teacher is the
bundle itself, scored as a server does it, and no label is looked at. Only what then helps is shipped: towers
choose in a context where lists hold no less of later engagements, but for noise, than lists of the latest do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recmeta.bundle.export_towers import export_towers
from recmeta.bundle.manifest import ITEM_TOWER, USER_TOWER, Manifest, Towers
from recmeta.bundle.parity import towers_difference
from recmeta.bundle.store import Bundle, seal
from recmeta.contexts import ExposureNegatives
from recmeta.dataset import CATEGORIES_PER_ITEM, Vocabularies
from recmeta.distillation import Lists, distil
from recmeta.events.schema import known_timestamp
from recmeta.events.store import scan_events
from recmeta.features.assembly import Block, FeatureSpace, Float32s, stored_block
from recmeta.features.counters import MICROSECONDS_PER_HOUR
from recmeta.features.dense_rows import DenseRows
from recmeta.features.partitions import HISTORY, counter_view
from recmeta.features.schema import ITEM, ROW_TIME, USER, counter_names
from recmeta.features.training_rows import stored_rows, view_as_of
from recmeta.model_folder import load_model
from recmeta.models.two_towers import TwoTowers
from recmeta.serving.catalogue import CATALOGUE, Catalogue
from recmeta.serving.pairs import ROWS_OF_A_RUN
from recmeta.serving.scorer import KeptItems, Scorer
from recmeta.stages.learn import feature_space
from recmeta.stages.night import Night, Progress, labelled_rows

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HELD_OUT = 10
"""One user of so many is kept for judging what the towers find."""

TOP = 100
"""So many first items of a list are looked at for later engagements, and so many are what serves best."""

RECALL_USERS = 32
"""For whom all items are scored, to see what of the best the towers find."""

AT_ONCE = 8192
"""Items whose vectors are computed in one piece."""


@dataclass(frozen=True)
class _Stored:
    """Counters of one view: values [n, W + 3], and where there is a row, [n]."""

    values: Float32s
    there: Bools


def _block(stored: Mapping[str, _Stored], sources: Sequence[str], chosen: Int64s, instant: int) -> Block:
    """The views of some entities in some contexts as of an instant, [S, n]."""
    values = np.stack([stored[name].values[chosen] for name in sources])
    there = np.stack([stored[name].there[chosen] for name in sources])
    return stored_block(values, there, instant)


@dataclass(frozen=True)
class _Snapshot:
    """Who acted lately and what was alive at an instant, and what was known of both."""

    instant: int
    """Microseconds since 1970, UTC."""
    alive: Int64s
    """Items, by their place in the catalogue, the most recently touched first."""
    items: dict[str, _Stored]
    """By context, of the items in `alive`."""
    users: list[str]
    people: dict[str, _Stored]
    """By context, of `users`."""
    histories: list[list[str]]
    held_out: Bools
    """Of `users`."""


def write_towers(
    night: Night, manifest: Manifest, folder: Path, progress: Progress | None
) -> tuple[Towers | None, dict[str, Any]]:
    """Fit towers to the bundle that is being made in ``folder``, and write them there where they help.

    Args:
        night: whose bundle it is.
        manifest: what the bundle says of itself; its unit ``trained`` lends its tables and ids.
        folder: with all other files of the bundle.
        progress: as in any stage.

    Returns:
        The manifest's entry, None where there are no towers; and what the night's report tells.
    """
    settings = night.settings.retrieval
    if not settings.enabled or manifest.trained is None:
        return None, {"made": False, "reason": "switched off"}
    catalogue = Catalogue(folder / CATALOGUE)
    alive = catalogue.alive(night.until, settings.alive_within)
    if alive <= settings.least_items:
        return None, {
            "made": False,
            "reason": f"{alive} items are alive; towers are made for more than {settings.least_items}",
        }
    asked = _Asked(night, Scorer(Bundle(folder, seal(manifest, folder))), catalogue)
    if not asked.snapshots or min(len(snapshot.users) for snapshot in asked.snapshots) < 2:
        return None, {"made": False, "reason": "hardly anybody acted lately"}
    model = load_model(night.folder / "train")
    threads = torch.get_num_threads()
    torch.set_num_threads(night.settings.training.threads)
    try:
        towers = distil(
            asked.draw, model, len(night.contexts.names), settings, night.settings.training.seed, progress
        )
        export_towers(towers, folder, history_length=night.settings.features.history_length)
        gap = towers_difference(towers, folder, *asked.probes())
        report = {"alive": alive, "largest_difference": gap, "recall": asked.recall(towers)}
        judged = asked.judge(towers)
    finally:
        torch.set_num_threads(threads)
    chosen = tuple(name for name, found in judged.items() if found["retrieves"] or not settings.gated)
    gains = [found["retrieved"] - found["latest"] for found in judged.values() if found["enough"]]
    tolerance = night.settings.gate.tolerance
    report["contexts"] = judged
    if gap <= night.settings.gate.parity and chosen:
        entry = Towers(
            unit=manifest.trained,
            sources=asked.sources,
            vector_size=settings.vector_size,
            contexts=chosen,
            newcomers=not settings.gated or float(np.mean(gains)) >= -tolerance,
            latest_share=settings.latest_share,
            metrics={"recall": report["recall"], "contexts": judged},
        )
        return entry, {"made": True, "reason": f"they choose for {', '.join(chosen)}", **report}
    for path in (ITEM_TOWER, USER_TOWER):
        (folder / path).unlink()
    reason = "in no context do lists of what they chose hold as many later engagements as those of the latest"
    if gap > night.settings.gate.parity:
        reason = f"the exported towers differ from the fitted ones by {gap:.3g}"
    return None, {"made": False, "reason": reason, **report}


@dataclass
class _Asked:
    """Draws lists, and asks the bundle about them."""

    night: Night
    scorer: Scorer
    catalogue: Catalogue
    sources: tuple[str, ...] = field(init=False)
    snapshots: list[_Snapshot] = field(init=False)

    def __post_init__(self) -> None:
        night = self.night
        self.space: FeatureSpace = feature_space(night)
        self._width = len(counter_names(self.space.half_lives)) + len(ROW_TIME)
        self._names = night.contexts.names
        self._random = np.random.default_rng([night.settings.training.seed, 20_13])
        self._kept = KeptItems(self.catalogue.ids, self.catalogue.categories)
        vocabularies = Vocabularies.load(night.folder / "train")
        self._users = vocabularies.users
        self._items = vocabularies.items.encode(self.catalogue.ids)
        self._vocabulary = vocabularies.items
        self._categories = vocabularies.categories.encode_lists(
            self.catalogue.categories, CATEGORIES_PER_ITEM
        )
        settings = night.settings.retrieval
        events = (
            scan_events(night.settings, None, night.until)
            .select("user_id", "item_id", "context", "label", known_timestamp())
            .collect()
        )
        self._events = events
        rows = events.group_by("context").len().sort("len", "context", descending=[True, False])
        most = set(rows["context"].head(settings.most_sources).to_list())
        self.sources = tuple(name for name in self._names if name in most)
        self.snapshots = []
        for days in range(settings.snapshots):
            instant = night.until - timedelta(days=days)
            lately = self._lately(instant)
            if len(lately):
                acted = lately["user_id"].unique().sort()
                count = min(len(acted), settings.most_users)
                drawn = np.sort(self._random.choice(len(acted), count, replace=False))
                self.snapshots.append(self._snapshot(instant, lately, acted.gather(drawn).to_list()))

    def _lately(self, instant: datetime) -> pl.DataFrame:
        """Interactions before an instant that keep their items alive."""
        known, within = pl.col("known_timestamp"), self.night.settings.retrieval.alive_within
        return self._events.filter(known < instant, known >= instant - within)

    def _snapshot(self, instant: datetime, lately: pl.DataFrame, users: list[str]) -> _Snapshot:
        settings = self.night.settings
        touched = lately.group_by("item_id").agg(pl.col("known_timestamp").max())
        touched = touched.sort("known_timestamp", "item_id", descending=[True, False])
        alive = self.catalogue.places(touched["item_id"].to_list())
        at = pl.lit(instant).cast(pl.Datetime("us", "UTC")).alias("event_timestamp")
        about = touched.select("item_id", at)
        who = pl.DataFrame({"user_id": users}, schema={"user_id": pl.String}).with_columns(at)
        items = {
            name: _Stored(*stored_rows(view_as_of(settings, counter_view(ITEM, name), about), self._width))
            for name in self._names
        }
        people = {
            name: _Stored(*stored_rows(view_as_of(settings, counter_view(USER, name), who), self._width))
            for name in self._names
        }
        empty = pl.Series([[]], dtype=pl.List(pl.String))
        histories = view_as_of(settings, HISTORY, who).fill_null(empty).to_list()
        # By the id alone, so that a user is held out of all snapshots or of none.
        held = np.array([crc32(user.encode()) % HELD_OUT == 0 for user in users], dtype=np.bool_)
        stamp = int(instant.timestamp()) * 1_000_000
        return _Snapshot(stamp, alive, items, users, people, histories, held)

    # Lists ----------------------------------------------------------------------------------------

    def draw(self, towers: TwoTowers | None) -> list[Lists]:
        """The lists of a round."""
        settings = self.night.settings.retrieval
        vectors: dict[int, torch.Tensor] = {}
        drawn = []
        for number in range(settings.lists):
            place = number % len(self.snapshots)
            snapshot = self.snapshots[place]
            instant = snapshot.instant + int(self._random.integers(int(24 * MICROSECONDS_PER_HOUR)))
            context = self._names[int(self._random.integers(len(self._names)))]
            learnt = np.flatnonzero(~snapshot.held_out)
            if not len(learnt):
                learnt = np.arange(len(snapshot.users))
            who = np.sort(
                self._random.choice(learnt, min(len(learnt), settings.users_per_list), replace=False)
            )
            asked = self._people(snapshot, context, who, instant)
            best = np.zeros(0, dtype=np.int64)
            if towers is not None:
                if place not in vectors:
                    vectors[place] = self.vectors(towers, snapshot, snapshot.instant)
                best = self._best(towers, asked, context, vectors[place])
            about = self._mixed(len(snapshot.alive), best, settings.items_per_list)
            drawn.append(self._list(snapshot, context, who, about, instant, asked))
        return drawn

    def _best(
        self, towers: TwoTowers, asked: dict[str, torch.Tensor], context: str, vectors: torch.Tensor
    ) -> Int64s:
        """Items that the towers think best for some of the users: more of them the higher they stand."""
        scores = self._scores(towers, asked, context, vectors)
        settings = self.night.settings.retrieval
        most = min(scores.shape[1], settings.proposed)
        order = scores.topk(most, dim=1).indices.numpy()
        wanted = settings.items_per_list // 2
        each = max(1, 2 * wanted // len(order))
        ranks = np.minimum(
            np.floor(most ** self._random.random((len(order), each))).astype(np.int64) - 1, most - 1
        )
        found = np.unique(np.take_along_axis(order, ranks, axis=1))
        chosen: Int64s = self._random.choice(found, min(len(found), wanted), replace=False)
        return chosen

    def _mixed(self, alive: int, best: Int64s, wanted: int) -> Int64s:
        """``best`` and others: half of those drawn evenly, half from what was touched last."""
        others = wanted - len(best)
        recent = np.floor(alive ** self._random.random(others // 2)).astype(np.int64) - 1
        even = self._random.choice(alive, min(alive, others - others // 2), replace=False)
        return np.unique(np.concatenate([best, np.clip(recent, 0, alive - 1), even]))

    def _list(
        self,
        snapshot: _Snapshot,
        context: str,
        who: Int64s,
        about: Int64s,
        instant: int,
        asked: dict[str, torch.Tensor],
    ) -> Lists:
        items = self._about(snapshot, about, instant)
        return Lists(
            user_dense=asked["dense"],
            user=asked["user"],
            history=asked["history"],
            context=self._names.index(context) + 1,
            item_dense=items["dense"],
            item=items["item"],
            categories=items["categories"],
            teacher=torch.from_numpy(self.teacher(snapshot, context, who, about, instant)),
        )

    def _people(
        self, snapshot: _Snapshot, context: str, who: Int64s, instant: int
    ) -> dict[str, torch.Tensor]:
        dense = self._requests(snapshot, context, who, instant)
        return {
            "dense": torch.from_numpy(dense),
            "user": torch.from_numpy(self._users.encode([snapshot.users[one] for one in who.tolist()])),
            "history": torch.from_numpy(
                self._vocabulary.encode_lists(
                    [snapshot.histories[one] for one in who.tolist()], self.space.history_length
                )
            ),
        }

    def _requests(self, snapshot: _Snapshot, context: str, who: Int64s, instant: int) -> Float32s:
        """What dense rows say of users and the instant, [B, R]."""
        sources = self.space.contexts.feature_sources(context)
        users = _block(snapshot.people, sources, who, instant)
        return self.space.request_rows(context, users, np.full(len(who), instant))

    def _about(self, snapshot: _Snapshot, about: Int64s, instant: int) -> dict[str, torch.Tensor]:
        """Items as the item tower takes them."""
        places = snapshot.alive[about]
        dense = self.space.item_columns(_block(snapshot.items, self.sources, about, instant))
        return {
            "dense": torch.from_numpy(dense),
            "item": torch.from_numpy(self._items[places]),
            "categories": torch.from_numpy(self._categories[places]),
        }

    def teacher(
        self, snapshot: _Snapshot, context: str, who: Int64s, about: Int64s, instant: int
    ) -> Float32s:
        """What the bundle makes of users and items who never met: logits, float32 [B, M]."""
        space, places = self.space, snapshot.alive[about]
        sources = space.contexts.feature_sources(context)
        request = self._requests(snapshot, context, who, instant)
        columns = space.part(ITEM, context, _block(snapshot.items, sources, about, instant))
        never = space.stranger(context)[None, space.split.pair]
        first = np.zeros(ROWS_OF_A_RUN, dtype=np.int64)
        found = np.empty((len(who), len(about)), dtype=np.float32)
        for start in range(0, len(about), ROWS_OF_A_RUN):
            end = min(start + ROWS_OF_A_RUN, len(about))
            its, count = columns[start:end], end - start
            half = None
            if self.scorer.half_width(context):
                half = self.scorer.half(context, self._kept, places[start:end], its)
            for row, user in enumerate(who.tolist()):
                found[row, start:end] = self.scorer.score_kept(
                    context,
                    [snapshot.users[user]],
                    [snapshot.histories[user]],
                    self._kept,
                    places[start:end],
                    DenseRows(request[row : row + 1], its, never, first[:count], first[:count], space.split),
                    half=half,
                )
        return found

    @torch.no_grad()
    def vectors(self, towers: TwoTowers, snapshot: _Snapshot, instant: int) -> torch.Tensor:
        """The vectors of all items that are alive, [n, d]."""
        parts = []
        for start in range(0, len(snapshot.alive), AT_ONCE):
            about = np.arange(start, min(start + AT_ONCE, len(snapshot.alive)))
            parts.append(towers.item_vectors(**self._about(snapshot, about, instant)))
        return torch.cat(parts)

    # Judging --------------------------------------------------------------------------------------

    def probes(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Rows of some items and users on which exported graphs are compared: the towers' columns."""
        snapshot, context = self.snapshots[0], self._names[0]
        about = np.arange(min(len(snapshot.alive), AT_ONCE))
        who = np.arange(len(snapshot.users))
        items = self._about(snapshot, about, snapshot.instant)
        people = self._people(snapshot, context, who, snapshot.instant)
        return items, {**people, "context": torch.ones(len(who), dtype=torch.int64)}

    @torch.no_grad()
    def recall(self, towers: TwoTowers) -> dict[str, float]:
        """The share of the `TOP` that serve best which is among ``proposed`` items, on held-out users."""
        snapshot = self.snapshots[0]
        vectors = self.vectors(towers, snapshot, snapshot.instant)
        alive = len(snapshot.alive)
        proposed = min(self.night.settings.retrieval.proposed, alive // 2)  # of all, anything would find all
        top = min(TOP, max(1, proposed // 5))
        among = np.flatnonzero(snapshot.held_out)
        if not len(among):
            among = np.arange(len(snapshot.users))
        random = self._of_judging()
        chosen = random.choice(among, min(len(among), RECALL_USERS), replace=False)
        retrieved, latest = [], []
        for number, user in enumerate(chosen.tolist()):
            context, who = self._names[number % len(self._names)], np.array([user])
            logits = self.teacher(snapshot, context, who, np.arange(alive), snapshot.instant)[0]
            best = np.argpartition(-logits, top - 1)[:top]
            found = self._products(towers, snapshot, context, who, vectors)[0].topk(proposed).indices
            retrieved.append(np.isin(best, found.numpy()).mean())
            latest.append((best < proposed).mean())
        return {
            "retrieved": round(float(np.mean(retrieved)), 4),
            "latest": round(float(np.mean(latest)), 4),
            "proposed": proposed,
        }

    def _of_judging(self) -> np.random.Generator:
        """Draws of its own, so that who is judged does not depend on how towers were fitted."""
        return np.random.default_rng([self.night.settings.training.seed, 0])

    def _products(
        self,
        towers: TwoTowers,
        snapshot: _Snapshot,
        context: str,
        who: Int64s,
        vectors: torch.Tensor,
    ) -> torch.Tensor:
        """What the towers make of users and all items that are alive, [B, n]."""
        return self._scores(towers, self._people(snapshot, context, who, snapshot.instant), context, vectors)

    def _scores(
        self, towers: TwoTowers, asked: dict[str, torch.Tensor], context: str, vectors: torch.Tensor
    ) -> torch.Tensor:
        index = torch.full((len(asked["user"]),), self._names.index(context) + 1)
        return towers.queries(**asked, context=index) @ vectors.T

    @torch.no_grad()
    def judge(self, towers: TwoTowers) -> dict[str, dict[str, Any]]:
        """Say where towers choose: where lists hold no less of what users engaged with later.

        Lists are made as of an instant after all rows that models were fitted to, once from what the towers
        choose and once from the latest; both are scored and ordered by the bundle. A share of what a user
        engaged with until the night's end is in the first `TOP`; contexts with fewer users than the gates
        want are left with the latest.

        Where a model was taught by negatives that were drawn, its best of *all* items may be those that
        nobody was ever offered; then the latest, which it was taught to order, make better lists.
        """
        night, settings = self.night, self.night.settings.retrieval
        instant = max(night.until - settings.judged_within, labelled_rows(night).split.test)
        lately, known = self._lately(instant), pl.col("known_timestamp")
        engaged = self._events.filter(pl.col("label") == 1)
        before, after = engaged.filter(known < instant), engaged.filter(known >= instant)
        after = after.join(lately.select("item_id").unique(), on="item_id", how="semi")
        users = after["user_id"].unique().sort().to_list()
        if not users or lately.is_empty():
            return {name: _judged([], [], 0, night) for name in self._names}
        snapshot = self._snapshot(instant, lately, users)
        vectors = self.vectors(towers, snapshot, snapshot.instant)
        place_of = {place: number for number, place in enumerate(snapshot.alive.tolist())}
        number_of = {user: number for number, user in enumerate(users)}
        judged, random = {}, self._of_judging()
        for name in self._names:
            exposed = isinstance(night.contexts[name].negatives.source, ExposureNegatives)
            seen = before.filter(pl.col("context") == name) if exposed else before
            later = after.filter(pl.col("context") == name).join(seen, on=["user_id", "item_id"], how="anti")
            wanted = later.group_by("user_id").agg("item_id").sort("user_id")
            rows = random.permutation(len(wanted))[: settings.judged_users]
            known_to = dict(
                seen.join(wanted, on="user_id", how="semi").group_by("user_id").agg("item_id").rows()
            )
            gained: list[float] = []
            kept: list[float] = []
            for user, items in wanted[np.sort(rows)].iter_rows():
                who = np.array([number_of[user]])
                products = self._products(towers, snapshot, name, who, vectors)[0].numpy()
                out = self._numbers(known_to.get(user, []), place_of)
                shares = self._shares(snapshot, name, who, products, out, self._numbers(items, place_of))
                gained.append(shares[0])
                kept.append(shares[1])
            judged[name] = _judged(gained, kept, len(later), night)
        return judged

    def _numbers(self, items: Sequence[str], place_of: dict[int, int]) -> Int64s:
        """Where items stand among those that are alive."""
        found = (place_of.get(place, -1) for place in self.catalogue.places(list(items)).tolist())
        return np.array([number for number in found if number >= 0], dtype=np.int64)

    def _shares(
        self,
        snapshot: _Snapshot,
        context: str,
        who: Int64s,
        products: npt.NDArray[np.float32],
        seen: Int64s,
        engaged: Int64s,
    ) -> tuple[float, float]:
        """The share of ``engaged`` in the first of a list of what towers chose, and of the latest."""
        settings = self.night.settings.retrieval
        alive = len(snapshot.alive)
        most = min(settings.proposed, alive)
        latest = round(most * settings.latest_share)
        products[seen] = -np.inf
        products[:latest] = np.inf  # they are candidates in any case
        chosen = np.argpartition(-products, most - 1)[:most]
        union = np.setdiff1d(np.union1d(chosen, np.arange(most)), seen)
        logits = self.teacher(snapshot, context, who, union, snapshot.instant)[0]
        ranked = union[np.argsort(-logits, kind="stable")]
        lists = (ranked[np.isin(ranked, chosen)], ranked[ranked < most])
        top = min(TOP, max(1, most // 5))
        retrieved, kept = (float(np.isin(engaged, found[:top]).mean()) for found in lists)
        return retrieved, kept


def _judged(
    retrieved: Sequence[float], latest: Sequence[float], positives: int, night: Night
) -> dict[str, Any]:
    """What is told of one context."""
    enough = len(retrieved) >= night.settings.gate.min_users
    means = [round(float(np.mean(found)), 4) if len(found) else 0.0 for found in (retrieved, latest)]
    return {
        "users": len(retrieved),
        "positives": positives,
        "retrieved": means[0],
        "latest": means[1],
        "enough": enough,
        "retrieves": enough and means[0] >= means[1] - night.settings.gate.tolerance,
    }
