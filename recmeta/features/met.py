"""Which items a user has a row with, as one value a user: what a server asks before it reads any pair.

The value is the sorted codes of these items, and a code is a hash of an item's id. It may name too many
items, by a collision or because a row is gone: that costs a reading which finds nothing. It must never
name too few. This module must never open a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta.features.schema import ITEM_CODES

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]

CODE_BYTES = 8
"""Of a million items two share a code once in forty million such catalogues."""

_CODE = "<u8"


def item_codes(items: Sequence[str]) -> UInt64s:
    """The code of each item, [n]: the same in every process and for ever."""
    joined = b"".join([blake2b(item.encode(), digest_size=CODE_BYTES).digest() for item in items])
    return np.frombuffer(joined, dtype=_CODE).astype(np.uint64, copy=False)


def packed(codes: UInt64s) -> bytes:
    """Codes, sorted and all different, as they are stored: 8 bytes each, little-endian."""
    return codes.astype(_CODE, copy=False).tobytes()


def codes_in(stored: bytes) -> UInt64s | None:
    """Undo `packed`; None where that many bytes are no codes."""
    if len(stored) % CODE_BYTES:
        return None
    return np.frombuffer(stored, dtype=_CODE).astype(np.uint64, copy=False)


def merged(one: bytes, other: bytes) -> bytes:
    """The value that names the items of both values."""
    return packed(np.union1d(np.frombuffer(one, dtype=_CODE), np.frombuffer(other, dtype=_CODE)))


def maybe_met(known: bool, stored: bytes | None, codes: UInt64s) -> Int64s:
    """The places in ``codes`` of the items that a user may have a row with, ascending, [m].

    Args:
        known: whether the user has counters. Who has none has no row with any item: every interaction is
            folded into both.
        stored: the user's value; None where there is none. Where there are counters all the same, an older
            recmeta wrote them, and it may be any item.
        codes: of the items that are asked for, in any order, [n].
    """
    if not known or not len(codes):
        return np.zeros(0, dtype=np.int64)
    met = None if stored is None else codes_in(stored)
    if met is None:
        return np.arange(len(codes))
    if not len(met):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(met.take(met.searchsorted(codes), mode="clip") == codes)


def maybe_met_of_each(
    known: npt.NDArray[np.bool_], stored: Sequence[bytes | None], whose: Int64s, codes: UInt64s
) -> Int64s:
    """What `maybe_met` says of U users, each with items of their own.

    Args:
        known: [U].
        stored: [U].
        whose: the user of each item by their place, ascending, [n].
        codes: of the items, [n].
    """
    borders = np.searchsorted(whose, np.arange(len(known) + 1)).tolist()
    found = [np.zeros(0, dtype=np.int64)]
    for knows, value, (start, end) in zip(known.tolist(), stored, pairwise(borders), strict=True):
        found.append(start + maybe_met(knows, value, codes[start:end]))
    return np.concatenate(found)


def met_of_users(pairs: pl.DataFrame) -> pl.DataFrame:
    """Fold pairs (user_id, item_id) into one value a user: user_id and `ITEM_CODES`, by user_id."""
    items = pairs["item_id"].unique()
    codes = pl.DataFrame({"item_id": items, ITEM_CODES: item_codes(items.to_list())})
    named = pairs.join(codes, on="item_id").select("user_id", ITEM_CODES).unique().sort("user_id", ITEM_CODES)
    users = named.group_by("user_id", maintain_order=True).len()
    ends = (users["len"].cum_sum().to_numpy() * CODE_BYTES).tolist()
    together = packed(named[ITEM_CODES].to_numpy())
    values = [together[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return users.select("user_id", pl.Series(ITEM_CODES, values, dtype=pl.Binary))
