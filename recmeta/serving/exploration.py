"""Which items of a ranking are shown: the best, and now and then another, with each choice's probability.

A surface that shows only what it believes in learns nothing else. How much it may try is bounded: of the
slots that a context showed since midnight, UTC, in this process, at most a share may hold anything but the
best that was left. What the log needs afterwards is the probability of each shown item at its position,
given the items above it and what was allowed at that moment; it is exact. This module must never know a
user, an item or how a score is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from threading import Lock

import numpy as np
import numpy.typing as npt

from recmeta.errors import InputError
from recmeta.settings import ContextExploration

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shown:
    """What is shown, from the top; k slots. Indices count in the scores that were given."""

    indices: Ints
    """[k]."""
    propensities: Floats
    """[k] in (0, 1], of each item in its slot, given those above; 1 where nothing was tried."""
    best: Ints
    """[k], what would have been shown in this slot below the same items: the highest score left."""

    @property
    def greedy(self) -> npt.NDArray[np.bool_]:
        """[k], whether the slot holds the best that was left."""
        same: npt.NDArray[np.bool_] = self.indices == self.best
        return same


@dataclass
class _Spent:
    """Slots of a context since midnight."""

    day: date
    slots: int = 0
    tried: int = 0


class Exploration:
    """Chooses what is shown in every context; may be called from several threads."""

    def __init__(
        self, settings: Mapping[str, ContextExploration], generator: np.random.Generator | None = None
    ) -> None:
        """Take each context's settings; what has none, or no budget, is never explored.

        ``generator`` draws everything: the same one, the same choices. None: one from the system's entropy.
        """
        self._settings = {name: found for name, found in settings.items() if found.budget > 0}
        self._random = np.random.default_rng() if generator is None else generator
        self._spent: dict[str, _Spent] = {}
        self._lock = Lock()

    def explores(self, context: str) -> bool:
        """Whether a context's lists may differ from its ranking."""
        return context in self._settings

    def depth(self, context: str, n: int) -> int:
        """How many of a context's best items `show` looks at for ``n`` slots: more need not be given."""
        settings = self._settings.get(context)
        return n if settings is None else n + settings.pool

    def show(self, context: str, scores: npt.ArrayLike, n: int, *, now: datetime | None = None) -> Shown:
        """Choose ``n`` of the items with these ``scores``, or all where they are fewer.

        Args:
            context: whose settings and budget count.
            scores: [items], finite, the higher the better; of equal ones the earlier is the better. For
                plackett_luce the temperature is in their unit: give log odds.
            n: slots.
            now: an instant with a zone (default: the clock), for the day that the budget is of.

        Raises:
            InputError: scores of another shape, NaN or infinity, or ``n`` below 0.
        """
        given = np.asarray(scores, dtype=np.float64)
        if given.ndim != 1 or not np.isfinite(given).all():
            raise InputError(f"scores: expected finite numbers, shape [items], found {list(given.shape)}")
        if n < 0:
            raise InputError(f"n: expected at least 0, found {n}")
        slots = min(n, len(given))
        settings = self._settings.get(context)
        ranking = np.argsort(-given, kind="stable")
        if settings is None or not slots:
            best = ranking[:slots]
            return Shown(best, np.ones(slots), best)
        ranking = ranking[: self.depth(context, slots)]
        with self._lock:
            spent = self._today(context, (now or datetime.now(UTC)).astimezone(UTC).date())
            allowed = int(settings.budget * (spent.slots + slots) + 1e-9) - spent.tried
            if settings.strategy == "epsilon_greedy":
                shown = _epsilon_greedy(self._random, ranking, slots, settings, allowed)
            else:
                shown = _plackett_luce(self._random, ranking, given, slots, settings, allowed)
            spent.slots += slots
            spent.tried += int((~shown.greedy).sum())
        return shown

    def spent(self, context: str) -> tuple[int, int]:
        """Slots that a context showed since midnight, and those of them that held another than the best."""
        with self._lock:
            found = self._spent.get(context)
            return (0, 0) if found is None else (found.slots, found.tried)

    def _today(self, context: str, day: date) -> _Spent:
        found = self._spent.get(context)
        if found is None or found.day != day:
            found = self._spent[context] = _Spent(day)
        return found


def _epsilon_greedy(
    random: np.random.Generator, ranking: Ints, slots: int, settings: ContextExploration, allowed: int
) -> Shown:
    """In each slot the best left, or with probability epsilon any of the ``pool`` best left, all alike."""
    left = ranking.tolist()
    coins = (random.random(slots) < settings.epsilon).tolist()
    draws = random.random(slots).tolist()
    indices, propensities, best = [], [], []
    for coin, draw in zip(coins, draws, strict=True):
        pool = min(settings.pool, len(left)) if allowed > 0 else 1
        place = int(draw * pool) if coin else 0
        each = settings.epsilon / pool
        best.append(left[0])
        indices.append(left.pop(place))
        propensities.append(each if place else 1.0 if pool == 1 else 1.0 - settings.epsilon + each)
        allowed -= place > 0
    return Shown(np.array(indices), np.array(propensities), np.array(best))


def _plackett_luce(
    random: np.random.Generator,
    ranking: Ints,
    scores: Floats,
    slots: int,
    settings: ContextExploration,
    allowed: int,
) -> Shown:
    """The highest of scores / temperature + Gumbel noise among the ``pool`` best (and at least the slots).

    That is a draw without replacement by exp(scores / temperature) (Plackett 1975, Yellott 1977): Thompson
    sampling's posterior draw, with noise of one size instead of a posterior, and with exact propensities.
    """
    pool = ranking[: max(settings.pool, slots)]
    logits = scores[pool] / settings.temperature
    order = np.argsort(-(logits + random.gumbel(size=len(pool))), kind="stable")
    drawn = logits[order[:slots]]
    # What is left in each slot, summed from below: nothing is ever subtracted, so that nothing cancels.
    rest = np.logaddexp.reduce(logits[order[slots:]]) if len(pool) > slots else -np.inf
    left = np.logaddexp.accumulate(np.r_[rest, drawn[::-1]])[1:][::-1]
    propensities = np.exp(np.minimum(drawn - left, 0.0))
    taken = np.zeros(len(pool), dtype=bool)
    places, best = order[:slots].copy(), np.empty(slots, dtype=np.int64)
    first = 0
    for slot in range(slots):
        while taken[first]:
            first += 1
        if allowed <= 0:  # the budget is spent: the rest is the ranking's
            places[slot], propensities[slot] = first, 1.0
        best[slot] = first
        taken[places[slot]] = True
        allowed -= places[slot] != first
    return Shown(pool[places], propensities, pool[best])
