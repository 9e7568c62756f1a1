"""A context's log with most of its interactions left out: what a surface knows of itself while it is new.

Training and evidence about new surfaces read rows whose target columns come from such a log; without
them a few interactions of its own do a new surface more harm than none (README, "A new surface"). Logs are
thinned by a hash of the interaction, so that the same interactions are kept in every run, and a smaller
share is a part of every larger one. This module must never know a model.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

import numpy as np
import polars as pl

from recmeta.events.store import scan_events
from recmeta.features.assembly import Block, Float32s, stored_block
from recmeta.features.folding import counter_rows, in_order_of_knowledge
from recmeta.features.partitions import counter_view, floats
from recmeta.features.point_in_time import latest_row
from recmeta.features.schema import KINDS, ROW_TIME, counter_names
from recmeta.settings import Settings

SHARES = (0.0, 0.02, 0.1, 0.3, 1.0)
"""Shares of its own log that a pretended newcomer has: from none over a first day's to all of it."""


def share_of(row: str) -> float:
    """A number in [0, 1) that depends on ``row`` alone, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(row.encode(), digest_size=7).digest(), "big") / 2**56


def thinned_blocks(
    settings: Settings, context: str, rows: pl.DataFrame, share: float, until: datetime
) -> dict[str, Block]:
    """Return the counters of a context's own thinned log as they stood at the instants of ``rows``.

    Args:
        settings: of the workspace.
        context: whose log it is.
        rows: user_id, item_id, event_timestamp.
        share: of the interactions, 0 to 1; about as many are kept.
        until: only interactions that were known before this instant.

    Returns:
        By view, as `FeatureSpace.assemble` and `FeatureSpace.with_own_log` read them.
    """
    own = scan_events(settings, None, until).filter(pl.col("context") == context).collect()
    if share < 1.0:
        own = own.filter(pl.Series([share_of(event) < share for event in own["event_id"]], dtype=pl.Boolean))
    return folded_blocks(settings, context, in_order_of_knowledge(own.lazy()).collect(), rows)


def folded_blocks(
    settings: Settings, context: str, events: pl.DataFrame, rows: pl.DataFrame
) -> dict[str, Block]:
    """Fold ``events`` (as `in_order_of_knowledge` gives them) from nothing; look at them as of each row."""
    half_lives = settings.features.half_lives
    width = len(counter_names(half_lives)) + len(ROW_TIME)
    instants = rows["event_timestamp"].dt.epoch("us").to_numpy().astype(np.int64)
    blocks = {}
    for kind in KINDS:
        view = counter_view(kind, context)
        stored = counter_rows(events, view, view.schema.to_frame(), half_lives)
        found = stored[view.column].gather(latest_row(rows, stored, view.keys))
        there = found.is_not_null().to_numpy()
        values: Float32s = np.zeros((len(rows), width), dtype=np.float32)
        values[there] = floats(found.drop_nulls(), width)
        blocks[view.name] = stored_block(values, there, instants)
    return blocks
