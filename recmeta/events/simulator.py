"""People who read, comment and scroll a feed: a log whose truth is known, made from a seed.

Each person has a taste over topics and a few hidden factors. A surface sees that taste mixed with
one of its own: the correlation between two surfaces' tastes is the knob `relatedness`. What people
read raises their interest in its topic for some days, on that surface and (times the relatedness)
on the others. Articles are born, fade and die; tastes drift; hours have their rhythm. The feed is
filled by a logged policy that explores, with the exact probability of each choice, and people look
less far down than up. The model follows common practice for simulated click logs: Plackett-Luce
slates (Plackett 1975) and examination by position (Craswell et al. 2008).

They save articles for later, too; but that is not in the log, and the log would be the same without
it: a surface whose truth is known, and which is new to whoever knows the log (`simulate_surface`).

This module must never know a workspace, a file or a feature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from recmeta.events.schema import ITEM_SCHEMA, RawLog

TOPICS = (
    "astronomy", "cooking", "cycling", "economy", "film", "football",
    "gardening", "health", "music", "politics", "technology", "travel",
)  # fmt: skip

_SURFACES = ("reading", "commenting", "feed")
_READING, _COMMENTING, _FEED = range(3)
_HOUR = 3_600_000_000  # microseconds

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class SimulatorSettings(BaseModel):
    """The size and the nature of the simulated product. The defaults make about 70,000 events."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    users: int = Field(default=600, ge=2, le=20_000)
    items: int = Field(default=800, ge=20, le=20_000)
    days: int = Field(default=42, ge=2, le=730)
    end: date = Field(default=date(2026, 6, 30), description="the first day without events, UTC")
    relatedness: float = Field(
        default=0.8, ge=0, le=1, description="correlation of a person's tastes on two surfaces"
    )
    reads_per_day: float = Field(default=0.55, ge=0, description="of an average person")
    slates_per_day: float = Field(default=0.28, ge=0, description="how often the feed is opened")
    slate: int = Field(default=8, ge=1, le=20, description="articles that the feed shows at once")
    drift: float = Field(default=0.1, ge=0, le=1, description="share of a taste that is new each day")
    lifetime: float = Field(default=12, gt=0, description="days that an average article lives")
    late_share: float = Field(
        default=0, ge=0, le=1, description="share of events that are recorded hours or days late"
    )


class _Population(NamedTuple):
    """Who reads: activity and hours are fixed, tastes drift."""

    activity: Floats  # [users], mean 1
    joined: Floats  # [users], hours since the start
    peak: Floats  # [users], the hour of day of most activity
    talkative: Floats  # [users], logit
    shared_factors: Floats  # [users, factors]
    factors: Floats  # [surfaces, users, factors]


class _Catalogue(NamedTuple):
    """What is read: births and deaths in hours since the start."""

    topic: Ints  # [items]
    born: Floats
    dies: Floats
    shared_quality: Floats  # [items], of unit variance
    quality: Floats  # [surfaces, items], logit
    factors: Floats  # [items, factors]


class _Saving:
    """What saving does not share with other surfaces: random numbers, parts of tastes, and its log."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.random = np.random.default_rng([settings.seed, 20260630, 1])
        users = settings.users
        self.own_taste = self.random.standard_normal((users, len(TOPICS)))
        self.own_factors = self.random.standard_normal((users, _FACTORS))
        self.own_quality = self.random.standard_normal(settings.items)
        self.keen = self.random.normal(0, 1.0, users)  # logit
        self.log = _Log()


@dataclass
class _Log:
    """Columns of events, in the order in which they were simulated."""

    parts: list[dict[str, npt.NDArray[Any]]] = field(default_factory=list)

    def add(
        self,
        event_type: str,
        user: Ints,
        item: Ints,
        instant: Ints,
        position: Ints | None = None,
        propensity: Floats | None = None,
    ) -> None:
        """Append events; ``instant`` in microseconds since the start."""
        none = np.full(len(user), np.nan)
        self.parts.append(
            {
                "event_type": np.full(len(user), event_type),
                "user": user,
                "item": item,
                "instant": instant,
                "position": none if position is None else position.astype(np.float64),
                "propensity": none if propensity is None else propensity,
            }
        )


_FACTORS = 4
_TASTE = 1.8  # logits by which a topic that one likes stands out, per standard deviation
_MEMORY_HALF_LIFE = 96.0  # hours for which a read raises the interest in its topic
_MEMORY_GAIN = 0.6  # logits that one read adds to its topic
_MEMORY_LIMIT = 1.8
_FRESH = 72.0  # hours after which an article has lost most of its pull
_CLICK_LOGIT = -3.0  # of an article in the feed that is as appealing as any
_POLICY_NOISE = 1.0  # how coarse the feed's own idea of tastes is


def simulate(settings: SimulatorSettings) -> RawLog:
    """Simulate the log of ``settings``: the same settings, the same rows.

    Event types are READ, COMMENT, IMPRESSION and CLICK; each article has one topic as its category.
    Rows lie in [end - days, end), UTC, in the order of their instants. IMPRESSION rows carry the
    position (from 0) and the propensity: the probability with which the policy put this article at
    this position, given what it had put above.
    """
    world = _World(settings)
    for hour in range(settings.days * 24):
        world.pass_hour(hour)
    return world.so_far()


def simulate_shown_alike(settings: SimulatorSettings, since: int) -> RawLog:
    """Simulate the same log up to day ``since`` (from 0); from then on the feed shows all articles alike.

    What people click then says what they would click, whatever the feed's policy believed of it.
    """
    world = _World(settings)
    for hour in range(settings.days * 24):
        if hour == since * 24:
            world.sharpness = 0.0
        world.pass_hour(hour)
    return world.so_far()


def simulate_surface(settings: SimulatorSettings) -> pl.DataFrame:
    """Simulate what people save for later in the world whose log is ``simulate(settings)``.

    Who reads an article may save it within a day, once. Tastes of saving are as related to those of other
    surfaces as these are to one another. Saving moves nobody and nothing, so that the log is the same.

    Returns:
        user_id, item_id, event_timestamp (before the end, UTC), in the order of the instants.
    """
    world = _World(settings)
    for hour in range(settings.days * 24):
        world.pass_hour(hour)
    saves = world.in_order(world.saving.log).select("user_id", "item_id", "event_timestamp")
    return saves.unique(["user_id", "item_id"], keep="first", maintain_order=True)


class _World:
    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.random = np.random.default_rng([settings.seed, 20260630])
        self.people = self._people()
        self.catalogue = self._catalogue()
        users, topics = settings.users, len(TOPICS)
        self.shared_taste = self.random.standard_normal((users, topics))
        self.own_taste = self.random.standard_normal((len(_SURFACES), users, topics))
        self.memory = np.zeros((len(_SURFACES), users, topics))
        self.trend = self.random.standard_normal(topics) * 0.3
        self.policy_error = self.random.standard_normal((users, topics))
        self.seen = np.zeros((users, settings.items), dtype=bool)
        self.log = _Log()
        self.saving = _Saving(settings)
        self.sharpness = 1.0  # of the feed's policy; at 0 it shows all articles alike
        self.start = datetime.combine(settings.end, time(), UTC) - timedelta(days=settings.days)

    def _mix(self, shared: Floats, own: Floats) -> Floats:
        """Values of unit variance for each surface, correlated by the relatedness between any two."""
        r = self.settings.relatedness
        mixed: Floats = np.sqrt(r) * shared + np.sqrt(1 - r) * own
        return mixed

    def _people(self) -> _Population:
        random, n = self.random, self.settings.users
        activity = random.lognormal(0, 0.7, n)
        hours = self.settings.days * 24
        joined = np.where(random.random(n) < 0.75, 0.0, random.uniform(0, 0.85 * hours, n))
        peak = np.where(random.random(n) < 0.35, 8.0, 20.0) + random.normal(0, 1.5, n)
        talkative = random.normal(0, 1.0, n)
        shared_factors = random.standard_normal((n, _FACTORS))
        return _Population(
            activity=activity / activity.mean(),
            joined=joined,
            peak=peak,
            talkative=talkative,
            shared_factors=shared_factors,
            factors=self._mix(shared_factors, random.standard_normal((3, n, _FACTORS))),
        )

    def _catalogue(self) -> _Catalogue:
        random, n = self.random, self.settings.items
        before = 1.5 * self.settings.lifetime * 24
        born = np.sort(random.uniform(-before, self.settings.days * 24, n))
        topic = random.permutation(np.arange(n) % len(TOPICS))
        dies = born + 24 * self.settings.lifetime * random.gamma(4.0, 0.25, n)
        shared_quality = random.standard_normal(n)
        return _Catalogue(
            topic=topic,
            born=born,
            dies=dies,
            shared_quality=shared_quality,
            quality=0.5 * self._mix(shared_quality, random.standard_normal((3, n))),
            factors=random.standard_normal((n, _FACTORS)),
        )

    def taste(self, surface: int, users: Ints) -> Floats:
        """Logits [users, topics] of people's interest on a surface at this time."""
        lasting = self._mix(self.shared_taste[users], self.own_taste[surface][users])
        r = self.settings.relatedness
        memory = self.memory[surface][users]
        others = np.max(self.memory[[s for s in range(3) if s != surface]][:, users], axis=0)
        raised = np.minimum(np.maximum(memory, r * others), _MEMORY_LIMIT)
        result: Floats = _TASTE * lasting + raised + self.trend
        return result

    def appeal(self, surface: int, users: Ints, items: Ints, hour: float) -> Floats:
        """Logits of how much people want articles on a surface, without the surface's base rate.

        ``items`` is [items] for every pairing [users, items], or [users, n] for n articles a person.
        """
        catalogue, everyone = self.catalogue, np.arange(len(users))[:, None]
        items = np.atleast_2d(items)
        by_topic = self.taste(surface, users)[everyone, catalogue.topic[items]]
        mine, theirs = self.people.factors[surface][users], catalogue.factors[items]
        by_factor = 0.25 * np.einsum(
            "uf,unf->un", mine, np.broadcast_to(theirs, (len(users), *theirs.shape[1:]))
        )
        fresh = 1.2 * np.exp(-(hour - catalogue.born[items]) / _FRESH)
        known = -2.0 * self.seen[users[:, None], items]
        result: Floats = by_topic + by_factor + catalogue.quality[surface][items] + fresh
        return result if surface == _COMMENTING else result + known

    def pass_hour(self, hour: int) -> None:
        """Let one hour happen."""
        if hour % 24 == 0:
            self._drift()
        self.memory *= 0.5 ** (1 / _MEMORY_HALF_LIFE)
        born, dies = self.catalogue.born, self.catalogue.dies
        alive = np.flatnonzero((born <= hour) & (dies > hour))
        if len(alive) <= self.settings.slate:
            return
        rate = self._activity(hour)
        self._read(hour, alive, self.random.poisson(self.settings.reads_per_day * rate))
        self._scroll(hour, alive, self.random.poisson(self.settings.slates_per_day * rate))

    def _activity(self, hour: int) -> Floats:
        """How much of an average day's activity each person has in this hour."""
        distance = np.cos((hour % 24 - self.people.peak) / 24 * 2 * np.pi)
        rhythm = np.exp(2 * distance) / (24 * np.i0(2))  # i0 is the mean over a day: a day sums to 1
        weekend = 1.25 if (self.start.weekday() + hour // 24) % 7 >= 5 else 0.9
        result: Floats = self.people.activity * (self.people.joined <= hour) * rhythm * weekend
        return result

    def _drift(self) -> None:
        keep, new = np.sqrt(1 - self.settings.drift**2), self.settings.drift
        for taste in (self.shared_taste, self.own_taste):
            taste *= keep
            taste += new * self.random.standard_normal(taste.shape)
        own = self.saving.own_taste
        own *= keep
        own += new * self.saving.random.standard_normal(own.shape)
        self.trend = 0.97 * self.trend + 0.08 * self.random.standard_normal(len(TOPICS))

    def _remember(self, surface: int, users: Ints, items: Ints, gain: float) -> None:
        np.add.at(self.memory[surface], (users, self.catalogue.topic[items]), gain)
        np.minimum(self.memory[surface], _MEMORY_LIMIT, out=self.memory[surface])

    def _minutes(self, count: int, hour: int) -> Ints:
        """Random instants within an hour, in microseconds since the start."""
        result: Ints = hour * _HOUR + self.random.integers(0, _HOUR, count)
        return result

    def _read(self, hour: int, alive: Ints, counts: npt.NDArray[np.int64]) -> None:
        users = np.repeat(np.arange(len(counts)), counts)
        if not len(users):
            return
        appeal = self.appeal(_READING, users, alive, hour)
        items = alive[np.argmax(appeal + self.random.gumbel(size=appeal.shape), axis=1)]
        instants = self._minutes(len(users), hour)
        self.log.add("READ", users, items, instants)
        self.seen[users, items] = True
        self._remember(_READING, users, items, _MEMORY_GAIN)
        self._save(users, items, instants)
        self._comment(hour, users, items, instants)

    def _comment(self, hour: int, users: Ints, items: Ints, instants: Ints) -> None:
        """Some readers comment, most of them within the hour."""
        appeal = self.appeal(_COMMENTING, users, items[:, None], hour)[:, 0]
        logit = -5.2 + 0.8 * appeal + self.people.talkative[users]
        chosen = self.random.random(len(users)) < _share(logit)
        delay = (self.random.exponential(40, len(users)) * 60_000_000).astype(np.int64) + 20_000_000
        self.log.add("COMMENT", users[chosen], items[chosen], (instants + delay)[chosen])
        self._remember(_COMMENTING, users[chosen], items[chosen], _MEMORY_GAIN)

    def _save(self, users: Ints, items: Ints, instants: Ints) -> None:
        """Some readers save for later, most of them within two hours."""
        saving, people, catalogue = self.saving, self.people, self.catalogue
        raised = self.settings.relatedness * self.memory[:, users].max(axis=0)
        lasting = self._mix(self.shared_taste[users], saving.own_taste[users])
        by_topic = (_TASTE * lasting + raised + self.trend)[np.arange(len(users)), catalogue.topic[items]]
        factors = self._mix(people.shared_factors[users], saving.own_factors[users])
        by_factor = 0.25 * (factors * catalogue.factors[items]).sum(axis=1)
        quality = 0.5 * self._mix(catalogue.shared_quality[items], saving.own_quality[items])
        logit = -5.2 + 0.8 * (by_topic + by_factor + quality) + saving.keen[users]
        chosen = saving.random.random(len(users)) < _share(logit)
        delay = saving.random.exponential(60, len(users)) * 60_000_000 + 5_000_000
        in_time = np.minimum(delay, 24 * _HOUR).astype(np.int64)
        saving.log.add("SAVE", users[chosen], items[chosen], (instants + in_time)[chosen])

    def _scroll(self, hour: int, alive: Ints, counts: npt.NDArray[np.int64]) -> None:
        users = np.flatnonzero(counts)  # nobody opens the feed twice in an hour
        if not len(users):
            return
        shown, propensity = self._slates(hour, alive, users)
        instants = np.broadcast_to(self._minutes(len(users), hour)[:, None], shown.shape)
        position = np.broadcast_to(np.arange(shown.shape[1]), shown.shape)
        person = np.broadcast_to(users[:, None], shown.shape)
        self.log.add(
            "IMPRESSION",
            person.ravel(),
            shown.ravel(),
            instants.ravel(),
            position.ravel(),
            propensity.ravel(),
        )
        wanted = _share(_CLICK_LOGIT + self.appeal(_FEED, users, shown, hour))
        clicked = self.random.random(shown.shape) < wanted * examination(position)
        delay = (position + 1) * 3_000_000 + self.random.integers(0, 60_000_000, shown.shape)
        person, items = person[clicked], shown[clicked]
        self.log.add("CLICK", person, items, (instants + delay)[clicked], position[clicked])
        self.seen[person, items] = True
        self._remember(_FEED, person, items, _MEMORY_GAIN)

    def feed_scores(self, hour: int, alive: Ints, users: Ints) -> Floats:
        """What the feed's policy holds of the articles that are alive, in logits: [users, alive]."""
        catalogue = self.catalogue
        guess = self._mix(self.shared_taste[users], self.own_taste[_FEED][users])
        guess = 0.5 * (guess + _POLICY_NOISE * self.policy_error[users])
        age = hour - catalogue.born[alive]
        result: Floats = (
            guess[:, catalogue.topic[alive]] + catalogue.quality[_FEED][alive] + np.exp(-age / _FRESH)
        )
        return result

    def _slates(self, hour: int, alive: Ints, users: Ints) -> tuple[Ints, Floats]:
        """Draw slates without replacement from a soft policy: items [n, slate], and their propensities."""
        score = self.sharpness * self.feed_scores(hour, alive, users)
        size = self.settings.slate
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        order = np.argsort(-(score + self.random.gumbel(size=score.shape)), axis=1)[:, :size]
        picked = np.take_along_axis(weight, order, axis=1)
        above = np.cumsum(picked, axis=1) - picked
        propensity = picked / np.maximum(weight.sum(axis=1, keepdims=True) - above, picked)
        return alive[order], propensity

    def so_far(self) -> RawLog:
        """All events before the end, in the order of their instants, as a raw log."""
        random, settings = self.random, self.settings
        rows = self.in_order(self.log)
        if settings.late_share:
            late = random.random(len(rows)) < settings.late_share
            delay = np.where(late, random.exponential(24 * _HOUR, len(rows)), 0).astype(np.int64)
            recorded = pl.col("event_timestamp") + pl.Series(delay).cast(pl.Duration("us"))
            rows = rows.with_columns(recorded.alias("created_timestamp")).filter(
                pl.col("created_timestamp") < datetime.combine(settings.end, time(), UTC)
            )
        items = pl.DataFrame(
            {"item_id": self._item_ids(), "categories": [[TOPICS[topic]] for topic in self.catalogue.topic]},
            schema=ITEM_SCHEMA,
        )
        return RawLog(rows, items.sort("item_id"), f"simulator, seed {settings.seed}")

    def in_order(self, log: _Log) -> pl.DataFrame:
        """The events of a log before the end, in the order of their instants."""
        empty = np.empty(0, np.int64)
        log.add("", empty, empty, empty)  # so that a product in which nothing happens has columns
        table = pl.concat([pl.DataFrame(part) for part in log.parts], how="vertical_relaxed")
        table = table.filter(pl.col("instant") < self.settings.days * 24 * _HOUR).sort(
            "instant", "user", "event_type", "item", "position"
        )
        start = int(self.start.timestamp()) * 1_000_000
        event = (pl.col("instant").cast(pl.Int64) + start).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        return table.select(
            pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("row"),
            pl.lit("simulator").alias("file"),
            pl.format("user-{}", pl.col("user").cast(pl.Int64).cast(pl.String).str.zfill(4)).alias("user_id"),
            pl.lit(pl.Series(self._item_ids())).gather(pl.col("item").cast(pl.Int64)).alias("item_id"),
            "event_type",
            event.alias("event_timestamp"),
            pl.col("position").fill_nan(None).cast(pl.Int32),
            pl.col("propensity").fill_nan(None).cast(pl.Float32),
        )

    def _item_ids(self) -> list[str]:
        """Names by topic and birth, such as cooking-017."""
        count = dict.fromkeys(range(len(TOPICS)), 0)
        names: list[str] = []
        for topic in self.catalogue.topic.tolist():
            count[topic] += 1
            names.append(f"{TOPICS[topic]}-{count[topic]:03d}")
        return names


def examination(position: Ints) -> Floats:
    """The probability that a person looks at a position (from 0) of the feed."""
    result: Floats = 1 / np.sqrt(1 + position)
    return result


def _share(logit: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-logit))
    return result
