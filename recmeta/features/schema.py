"""Names and layout of the feature views: which views there are, their keys, what a row's values mean.

One view a kind (user, item, pair of both) and context, one for the users' history, and one that is no
feature: with which items a user has rows. Build, Feast, assembly and the server agree through this
module; it must never read a file or compute a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

USER, ITEM, USER_ITEM = "user", "item", "user_item"
KINDS = (USER, ITEM, USER_ITEM)
KEYS = {USER: ("user_id",), ITEM: ("item_id",), USER_ITEM: ("user_id", "item_id")}

HISTORY_VIEW = "user__history"
"""Items that a user engaged with in any context, the most recent first."""

MET_VIEW = "user__met"
"""Items with which a user has a row in any context: an index of the online store, which stands there only."""

VALUES = "values"
"""Column of a counter view: List(Float32), `counter_names` and then `ROW_TIME`."""

ITEMS = "items"
"""Column of the history view: List(String)."""

ITEM_CODES = "item_codes"
"""Column of the index: Binary, as `met.packed` makes it."""

ROW_TIME = ("row_day", "row_second", "row_microsecond")
"""A row carries the instant it is of, as days since 1970, seconds of the day and microseconds.

Each is exact as Float32. Feast's historical join does not return the row's own instant and some online
stores round it to seconds, but a fading counter can be advanced exactly only from an exact instant.
"""

NEVER = -1.0
"""Value of an ``hours_since_...`` counter of what has not happened yet."""


def duration_label(duration: timedelta) -> str:
    """Name a duration by its largest whole unit: '7d', '12h', '90m', '45s'."""
    seconds = round(duration.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def counter_names(half_lives: Sequence[timedelta]) -> tuple[str, ...]:
    """What the values of a counter row mean, in order.

    Totals of weights, the same fading by half over each half-life, and two ages in hours (`NEVER`
    where it has not happened).
    """
    labels = [duration_label(half_life) for half_life in half_lives]
    return (
        "positives",
        "negatives",
        *(f"positives_{label}" for label in labels),
        *(f"negatives_{label}" for label in labels),
        "hours_since_positive",
        "hours_since_first",
    )


def view_name(kind: str, context: str) -> str:
    """The view of one kind's counters in one context."""
    return f"{kind}__{context}"
