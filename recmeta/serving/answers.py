"""What a recommender answers, and what it accepts as an id. It must never know how a score is made."""

from __future__ import annotations

from datetime import datetime

import msgspec

from recmeta.errors import InputError
from recmeta.events.schema import LONGEST_ID


class RankedItem(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One item of an answer, best first: rank 1 is the best. It holds texts and numbers, never a cycle."""

    rank: int
    item_id: str
    score: float
    """Estimated probability of engagement in the context, in [0, 1]; finite."""
    categories: tuple[str, ...] = ()
    reason: str = ""
    """A fact about this user and item that was known at the time; not a cause. Empty where not asked for."""
    propensity: float | None = None
    """Probability with which exploration put this item here; None where nothing is explored."""


class Answer(msgspec.Struct, frozen=True):
    """A ranking for one user in one context, and what its reader must know about it."""

    context: str
    user_id: str
    items: tuple[RankedItem, ...]
    reason: str
    """On what the whole ranking stands (a known user, an unknown one)."""
    bundle: str
    """The version that answered."""
    serves: str
    """What served: shared, adapter, trees, blend, stack or popularity."""
    as_of: datetime
    """The instant, UTC, whose knowledge was used."""
    degraded: bool = False
    """Whether this is less than it should be."""
    notes: tuple[str, ...] = ()
    """Why, in sentences."""


class Moved(msgspec.Struct, frozen=True):
    """One group of inputs, and by how much it moved a score."""

    name: str
    text: str
    """What was known, in the words of somebody who asks."""
    effect: float
    """Logits that the score loses where this is not known; finite."""


class Explanation(msgspec.Struct, frozen=True):
    """Why one item has its score."""

    context: str
    user_id: str
    item_id: str
    bundle: str
    serves: str
    score: float
    shared_score: float | None
    """Without the context's adapter; None where it serves none."""
    parts: tuple[Moved, ...]
    """The largest effect first."""
    as_of: datetime
    degraded: bool = False
    notes: tuple[str, ...] = ()


def check_id(value: str, what: str) -> str:
    """Return ``value`` where it may be an id.

    Raises:
        InputError: it is empty, over 256 bytes of UTF-8, no valid Unicode, or holds control characters.
    """
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InputError(f"{what}: expected valid Unicode, found a lone surrogate") from None
    if not 1 <= size <= LONGEST_ID:
        raise InputError(f"{what}: expected 1 to {LONGEST_ID} bytes, found {size}")
    if not value.isprintable() and any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in value):
        raise InputError(f"{what}: expected no control characters, found {ascii(value)[:80]}")
    return value
