"""Items that stand for what a user did not engage with, drawn from what was popular at that instant.

The randomness of a row comes from its positive's own id and nothing else, so that neither the order
nor the chunking of the work can change a draw. This module must never know a context or a file.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

_DRAWS = 6
"""Draws for each negative that is wanted: where an item is drawn in vain six times, few are left to draw."""

Ints = npt.NDArray[np.int64]


def draw_negatives(
    positives: pl.DataFrame,
    pool: pl.DataFrame,
    engaged: pl.DataFrame,
    *,
    count: int,
    alive_within: timedelta,
    seed: int,
) -> pl.DataFrame:
    """Draw up to ``count`` items for each positive.

    A random engagement with a known timestamp in (t - alive_within, t) is drawn, and its item taken:
    items come as often as they are engaged with. The positive's own item, items that the user was known
    to have engaged with by then, and repeats are drawn again a few times, and then left out.

    Args:
        positives: event_id, user_id, item_id, event_timestamp (t), known_timestamp.
        pool: item_id, known_timestamp of engagements, in the order of known timestamp and event id.
        engaged: user_id, item_id, known_timestamp of each user's first engagement with each item.

    Returns:
        event_id (of the positive), item_id.
    """
    items = pl.concat([frame.get_column("item_id") for frame in (positives, pool, engaged)]).unique().sort()
    users = pl.concat([frame.get_column("user_id") for frame in (positives, engaged)]).unique().sort()
    pool_item, pool_time = _codes(pool, "item_id", items), _instants(pool, "known_timestamp")
    item, user = _codes(positives, "item_id", items), _codes(positives, "user_id", users)
    instant, known = _instants(positives, "event_timestamp"), _instants(positives, "known_timestamp")
    pairs = _codes(engaged, "user_id", users) * len(items) + _codes(engaged, "item_id", items)
    order = np.argsort(pairs)
    pairs, pair_known = pairs[order], _instants(engaged, "known_timestamp")[order]

    reach = alive_within // timedelta(microseconds=1)
    low = np.searchsorted(pool_time, instant - reach, side="right")
    high = np.searchsorted(pool_time, instant, side="left")
    seeds = _seeds(positives, seed)
    drawn = np.full((len(item), count), -1, dtype=np.int64)
    found = np.zeros(len(item), dtype=np.int64)
    for attempt in range(count * _DRAWS):
        rows = np.flatnonzero((found < count) & (low < high))
        if not len(rows):
            break
        share = _uniform(seeds[rows], attempt)
        candidate = pool_item[low[rows] + (share * (high - low)[rows]).astype(np.int64)]
        pair = user[rows] * len(items) + candidate
        at = np.minimum(np.searchsorted(pairs, pair), len(pairs) - 1)
        met = (pairs[at] == pair) & (pair_known[at] <= known[rows])
        repeated = (drawn[rows] == candidate[:, None]).any(axis=1)
        good = ~met & ~repeated & (candidate != item[rows])
        drawn[rows[good], found[rows[good]]] = candidate[good]
        found[rows[good]] += 1

    row, place = np.nonzero(drawn >= 0)
    return pl.DataFrame(
        {
            "event_id": positives.get_column("event_id").gather(row),
            "item_id": items.gather(drawn[row, place]),
        }
    )


def _codes(frame: pl.DataFrame, column: str, names: pl.Series) -> Ints:
    """Each value's place in ``names``."""
    places = pl.DataFrame({column: names}).with_row_index("place")
    codes = frame.select(column).join(places, on=column, how="left", maintain_order="left")
    return codes.get_column("place").to_numpy().astype(np.int64)


def _instants(frame: pl.DataFrame, column: str) -> Ints:
    """Microseconds since 1970."""
    return frame.get_column(column).to_physical().to_numpy().astype(np.int64)


def _seeds(positives: pl.DataFrame, seed: int) -> npt.NDArray[np.uint64]:
    key = seed.to_bytes(8, "little")
    digests = (
        hashlib.blake2b(event_id.encode(), digest_size=8, key=key).digest()
        for event_id in positives.get_column("event_id")
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _uniform(seeds: npt.NDArray[np.uint64], attempt: int) -> npt.NDArray[np.float64]:
    """The attempt-th number of each seed's stream, in [0, 1): SplitMix64 (Steele, Lea and Flood 2014)."""
    step = (attempt + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = seeds + np.uint64(step)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
