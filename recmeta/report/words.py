"""How things are called on the page: methods, features, numbers with units, durations, lists.

Words for a product manager. This module must never read a file or decide anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

METHODS = {
    "nothing": "nothing",
    "shared": "shared network",
    "adapter": "shared network with an adapter",
    "trees": "LightGBM",
    "blend": "network and LightGBM, blended",
    "stack": "stack of experts",
    "popularity": "popularity",
    "bias_only": "bias only",
    "incumbent": "what served before",
    "ours": "ours",
    "zero_shot": "zero-shot",
    "joint_fine_tune": "joint + fine-tune",
    "lightgbm": "LightGBM from scratch",
    "logistic": "logistic from scratch",
    "joint": "joint training",
    "meta_learned": "meta-learned",
    "network_alone": "network alone",
    "lightgbm_alone": "LightGBM alone",
    "lightgbm_pooled": "LightGBM pooled",
}
"""What a candidate or a method is called."""

RUNGS = {"zero_shot": "zero-shot", "stack": "stack", "boosted": "stack with boosted trees"}

RULES = {
    "too_late": "came too late",
    "unknown_event_type": "event type that no context knows",
    "in_the_future": "lies in the future",
}

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

_KINDS = {"user": "person", "item": "item", "user_item": "this person with this item"}
_ROLES = {
    "target": "this surface",
    "mean": "other surfaces (mean)",
    "peak": "other surfaces (strongest)",
}
_SPANS = {"s": "second", "m": "minute", "h": "hour", "d": "day"}
_ALONE = {
    "age:item": "age of the item",
    "age:user": "time since the person first came",
    "seen:item": "items that were met before",
    "seen:user": "people who were met before",
    "hour_sin": "hour of the day",
    "hour_cos": "hour of the day",
    "weekday_sin": "day of the week",
    "weekday_cos": "day of the week",
}


def method(name: str) -> str:
    """What a candidate or a method is called; an unknown one by its own name."""
    return METHODS.get(name, name.replace("_", " "))


def feature(name: str) -> str:
    """What a column of a dense row means, such as 'liking: item, positives in the last 7 days'.

    Counters fade by half over their days instead of ending after them; the page says so once.
    """
    if name in _ALONE:
        return _ALONE[name]
    where, _, rest = name.partition(":")
    kind, _, counter = rest.partition(":")
    if not counter or kind not in _KINDS:
        return name
    if where == "rate":
        span = "over all time" if counter == "total" else _span(counter)
        return f"this surface: {_KINDS[kind]}, share of engagements {span}"
    return f"{_ROLES.get(where, where)}: {_KINDS[kind]}, {_counter(counter)}"


def _counter(counter: str) -> str:
    if counter == "hours_since_positive":
        return "hours since the last positive"
    if counter == "hours_since_first":
        return "hours since the first event"
    what, _, label = counter.partition("_")
    return f"{what} {_span(label)}" if label else f"{what}, all time"


def _span(label: str) -> str:
    found = re.fullmatch(r"(\d+)([smhd])", label)
    if found is None:
        return f"over {label}"
    number, unit = int(found[1]), _SPANS[found[2]]
    return f"in the last {unit}" if number == 1 else f"in the last {number} {unit}s"


def number(value: Any) -> float | None:
    """A finite number, or None for everything else that a JSON file may hold in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def share(value: Any) -> float | None:
    """A number from 0 to 1, as AUCs and rates are; None for everything else."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def at(value: Any, *keys: str) -> Any:
    """What stands under ``keys`` in nested mappings; None where one of them is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def entries(value: Any, *keys: str) -> dict[str, Any]:
    """The mapping under ``keys``, its names in alphabetical order; empty where there is none."""
    found = at(value, *keys)
    return {str(name): found[name] for name in sorted(found)} if isinstance(found, dict) else {}


def auc(value: float | None) -> str:
    """An AUC to three digits."""
    return "–" if value is None else f"{value:.3f}"


def interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval, or nothing."""
    return "" if low is None or high is None else f"{low:.3f}–{high:.3f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign (a true minus)."""
    if value is None:
        return "–"
    shown = f"{abs(value):.{digits}f}"
    if float(shown) == 0:
        return shown
    return f"{'−' if value < 0 else '+'}{shown}"


def count(value: float | None, one: str = "", many: str = "") -> str:
    """A whole number with thousands apart and its noun."""
    if value is None:
        return "–"
    noun = one if value == 1 else (many or (one and f"{one}s"))
    return f"{value:,.0f} {noun}".rstrip()


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """A span in its natural unit."""
    if seconds is None:
        return "–"
    seconds = max(0.0, seconds)
    for unit, size in (("day", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            shown = f"{seconds / size:.1f}".removesuffix(".0")
            return f"{shown} {unit}{'s' if unit == 'day' and shown != '1' else ''}"
    return f"{seconds:.0f} s"


def date(instant: datetime) -> str:
    """A day, written out in English whatever the machine's locale."""
    months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    return f"{instant.day} {months[instant.month - 1]} {instant.year}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def shots(label: str) -> float | None:
    """The number of positives that a curve's key stands for; None where it is no number ('all')."""
    return float(label) if label.isascii() and label.isdigit() else None
