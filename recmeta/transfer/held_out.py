"""A known context held out, as if it had not existed: what the bank of the others says of its rows.

Its own counters are removed from its rows (cold), so that what is measured is what others know. This
module must never fit anything to the held-out context's labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recmeta.dataset import TEST, TRAIN, VALIDATION
from recmeta.episodes.rows import Rows, concat, evenly
from recmeta.features.assembly import Float32s
from recmeta.features.thinning import SHARES, thinned_blocks
from recmeta.transfer.bank import Bank, Learnt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """Rows of a context before the test part (from which shots are drawn) and in it, seen by a bank."""

    context: str
    bank: Bank
    pool: Rows
    """Cold, as a newcomer's."""
    test: Rows
    users: npt.NDArray[np.int64]
    """Of the test rows."""
    pool_experts: Floats
    """Scaled, [n, sources + 1]."""
    test_experts: Floats
    live: Mapping[float, Floats]
    """Scaled experts of the test rows where a share of its own log flows into its counters."""
    rate: float
    """Share of positives that the sources' rows have: what is expected of a context nobody knows."""

    @property
    def positives(self) -> int:
        """In the pool."""
        return int(self.pool.label.sum())


def hold_out(learnt: Learnt, bank: Bank, context: str, until: datetime) -> HeldOut:
    """See the rows of ``context``, one of the bank's hidden ones, through the bank."""
    index = learnt.space.contexts.names.index(context) + 1
    parts = {part: learnt.parts[part].of_context(index) for part in (TRAIN, VALIDATION, TEST)}
    pool = concat([parts[TRAIN].rows, parts[VALIDATION].rows])
    pool = pool.take(evenly(len(pool), learnt.settings.transfer.rows))
    cold_pool, cold_test = _cold(bank, pool, context), _cold(bank, parts[TEST].rows, context)
    return HeldOut(
        context=context,
        bank=bank,
        pool=cold_pool,
        test=cold_test,
        users=parts[TEST].clusters,
        pool_experts=bank.scaled(cold_pool, context),
        test_experts=bank.scaled(cold_test, context),
        live=_live(learnt, bank, cold_test, parts[TEST].rows, context, until),
        rate=_rate(learnt, bank),
    )


def _cold(bank: Bank, rows: Rows, context: str) -> Rows:
    dense = bank.space.as_newcomer(rows.dense.numpy(), context, hidden=bank.hidden)
    return _with_dense(rows, bank.space.with_own_log(dense, context, {}))


def _with_dense(rows: Rows, dense: Float32s) -> Rows:
    return replace(rows, dense=torch.from_numpy(dense))


def _live(
    learnt: Learnt, bank: Bank, cold: Rows, rows: Rows, context: str, until: datetime
) -> dict[float, Floats]:
    """Only the newcomer's expert reads a context's own log; the sources' are those of cold rows."""
    names = learnt.space.contexts.names
    chosen = (learnt.frames.part == TEST) & (
        learnt.frames.table["context"] == names[names.index(context)]
    ).to_numpy()
    table = learnt.frames.table.filter(pl.Series(chosen)).select("user_id", "item_id", "event_timestamp")
    found = {}
    for share in SHARES:
        if share in (0.0, 1.0):
            dense = cold.dense.numpy() if share == 0.0 else rows.dense.numpy()
        else:
            blocks = thinned_blocks(learnt.settings, context, table, share, until)
            dense = bank.space.with_own_log(cold.dense.numpy(), context, blocks)
        found[share] = bank.scaled(_with_dense(rows, dense), context)
    return found


def _rate(learnt: Learnt, bank: Bank) -> float:
    """The mean over sources of the share of positives among their training rows."""
    names = learnt.space.contexts.names
    rates = []
    for source in bank.sources:
        rows = learnt.parts[TRAIN].of_context(names.index(source) + 1).rows
        rates.append(float((rows.weight * rows.label).sum() / rows.weight.sum()))
    return float(np.clip(np.mean(rates), 1e-3, 1 - 1e-3))
