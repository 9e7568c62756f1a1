"""What a recommender answers, and what it accepts as an id. It must never know how a score is made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from recmeta.errors import InputError
from recmeta.events.schema import LONGEST_ID


@dataclass(frozen=True)
class RankedItem:
    """One item of an answer, best first: rank 1 is the best."""

    rank: int
    item_id: str
    categories: tuple[str, ...]
    score: float
    """Estimated probability of engagement in the context, in [0, 1]; finite."""
    reason: str
    """A fact about this user and item that was known at the time; not a cause."""


@dataclass(frozen=True)
class Answer:
    """A ranking for one user in one context, and what its reader must know about it."""

    context: str
    user_id: str
    items: tuple[RankedItem, ...]
    reason: str
    """On what the whole ranking stands (a known user, an unknown one)."""
    version: str
    """The bundle that answered."""
    serves: str
    """What served: shared, adapter, trees, blend or popularity."""
    as_of: datetime
    """The instant, UTC, whose knowledge was used."""
    degraded: tuple[str, ...] = ()
    """Why this is less than it should be, in sentences; empty in an ordinary answer."""

    def as_json(self) -> dict[str, Any]:
        """The answer as JSON-able values."""
        return {
            "context": self.context,
            "user_id": self.user_id,
            "items": [
                {
                    "rank": item.rank,
                    "item_id": item.item_id,
                    "categories": list(item.categories),
                    "score": item.score,
                    "reason": item.reason,
                }
                for item in self.items
            ],
            "reason": self.reason,
            "bundle": self.version,
            "serves": self.serves,
            "as_of": self.as_of.isoformat(),
            "degraded": list(self.degraded),
        }


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
