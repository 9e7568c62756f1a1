"""The simulated feed with its alternatives: what another policy would have earned, slate by slate.

Each slate of the log is a moment in which the other policy might have chosen instead. The simulator knows
what a person wants at that moment, so that the other policy can be played out there, and its value is known.
This module must never know an estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recmeta.events.simulator import (
    _CLICK_LOGIT,
    _FEED,
    Floats,
    Ints,
    SimulatorSettings,
    _World,
    examination,
)

CANDIDATES = 8
"""Draws of the other policy for each slot, given the items above it."""

_PLAYS = 16
"""Slates that the other policy draws in each moment, to say what it earns there."""


@dataclass(frozen=True)
class FeedTrial:
    """n shown articles of the log, and what the other policy would have done."""

    slate: Ints
    user: Ints
    position: Ints
    reward: Floats
    """1 where it was clicked."""
    propensity: Floats
    """Of the logged policy, given the articles above."""
    target: Floats
    """Of the other policy, given the same articles above."""
    score: Floats
    """What the feed's policy holds of the article."""
    candidates: Floats
    """[n, CANDIDATES], scores of articles that the other policy drew for this slot."""
    value: float
    """Expected clicks of a slate of the other policy, over the log's moments."""
    logged_value: float
    """The same of the slates that were shown."""


def simulate_feed(settings: SimulatorSettings, sharpness: float) -> FeedTrial:
    """Simulate the feed of ``simulate(settings)`` beside a policy that draws by exp(sharpness * score).

    At 0 the other policy shows all articles alike, at 1 it is the logged one, and more is greedier.
    """
    world = _Watched(settings, sharpness)
    for hour in range(settings.days * 24):
        world.pass_hour(hour)
    columns = {name: np.concatenate([part[name] for part in world.seen_slates]) for name in _COLUMNS}
    return FeedTrial(
        **columns,
        value=float(np.concatenate(world.values).mean()),
        logged_value=float(np.concatenate(world.logged_values).mean()),
    )


_COLUMNS = ("slate", "user", "position", "reward", "propensity", "target", "score", "candidates")


class _Watched(_World):
    def __init__(self, settings: SimulatorSettings, sharpness: float) -> None:
        super().__init__(settings)
        self.other = sharpness
        self.chance = np.random.default_rng([settings.seed, 20260630, 2])  # the log's numbers stay its own
        self.seen_slates: list[dict[str, npt.NDArray[Any]]] = []
        self.values: list[Floats] = []
        self.logged_values: list[Floats] = []
        self.slates = 0

    def _scroll(self, hour: int, alive: Ints, counts: Ints) -> None:
        users = np.flatnonzero(counts)
        if not len(users):
            return
        scores = self.feed_scores(hour, alive, users)
        wanted = 1 / (1 + np.exp(-(_CLICK_LOGIT + self.appeal(_FEED, users, alive, hour))))
        logged = len(self.log.parts)
        super()._scroll(hour, alive, counts)
        shown, clicks = self.log.parts[logged], self.log.parts[logged + 1]
        size = self.settings.slate
        place = np.searchsorted(alive, shown["item"]).reshape(len(users), size)
        looked_at = examination(np.arange(size))
        clicked = np.zeros((len(users), size))
        clicked[np.searchsorted(users, clicks["user"]), clicks["position"].astype(np.int64)] = 1.0
        target, candidates = self._other_choices(scores, place)
        numbers = np.broadcast_to(self.slates + np.arange(len(users))[:, None], place.shape)
        self.slates += len(users)
        self.seen_slates.append(
            {
                "slate": numbers.ravel(),
                "user": np.repeat(users, size),
                "position": np.tile(np.arange(size), len(users)),
                "reward": clicked.ravel(),
                "propensity": shown["propensity"],
                "target": target.ravel(),
                "score": np.take_along_axis(scores, place, axis=1).ravel(),
                "candidates": candidates.reshape(-1, CANDIDATES),
            }
        )
        self.logged_values.append((np.take_along_axis(wanted, place, axis=1) * looked_at).sum(axis=1))
        total = np.zeros(len(users))
        for _ in range(_PLAYS):
            noise = self.chance.gumbel(size=scores.shape)
            played = np.argsort(-(self.other * scores + noise), axis=1)[:, :size]
            total += (np.take_along_axis(wanted, played, axis=1) * looked_at).sum(axis=1)
        self.values.append(total / _PLAYS)

    def _other_choices(self, scores: Floats, place: Ints) -> tuple[Floats, Floats]:
        """The other policy's probability of each shown article, and draws of its own, below the same ones."""
        logits = self.other * scores
        target = np.empty(place.shape)
        candidates = np.empty((*place.shape, CANDIDATES))
        rows = np.arange(len(place))
        for slot in range(place.shape[1]):
            left = np.exp(logits - logits.max(axis=1, keepdims=True))
            chance = left / left.sum(axis=1, keepdims=True)
            target[:, slot] = chance[rows, place[:, slot]]
            below = np.cumsum(chance, axis=1)[:, None, :]
            drawn = (self.chance.random((len(place), CANDIDATES, 1)) > below).sum(axis=2)
            drawn = np.minimum(drawn, scores.shape[1] - 1)
            candidates[:, slot] = np.take_along_axis(scores, drawn, axis=1)
            logits[rows, place[:, slot]] = -np.inf
        return target, candidates
