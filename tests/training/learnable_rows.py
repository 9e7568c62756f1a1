"""Rows whose right answer is known, for the tests of this folder."""

from __future__ import annotations

import numpy as np
import torch

from recmeta.episodes.rows import Rows
from recmeta.models.shared import ModelShape
from recmeta.settings import TrainingSettings

SHAPE = ModelShape(
    features=6, users=21, items=31, categories=4, contexts=4, history_length=5,
    embedding_size=4, context_size=2, hidden=(16, 8), rank=2,
)  # fmt: skip

QUICK = TrainingSettings(
    hidden=(16, 8), embedding_size=4, adapter_rank=2, tasks=4, support=16, query=16, rows_per_task=32,
    max_steps=60, warm_steps=20, check_every=10, patience=100, adapt_steps=60, rate=1e-2, table_rate=1e-2,
)  # fmt: skip

DAY = 86_400_000_000


def make_rows(sizes: dict[int, int], *, seed: int = 0, first_day: int = 0, days: int = 30) -> Rows:
    """Labels follow the dense features, by a rule that contexts 1 and 2 share and context 3 turns round."""
    draw = np.random.default_rng(seed)
    n = sum(sizes.values())
    context = np.concatenate([np.full(size, name) for name, size in sizes.items()] or [np.empty(0)])
    dense = draw.normal(size=(n, SHAPE.features)).astype(np.float32)
    user = draw.integers(0, SHAPE.users, n)
    sign = np.where(context == 3, -1.0, 1.0)
    logit = sign * (2.0 * dense[:, 0] - dense[:, 1]) + 0.5 * (user % 2) - 1.0
    return Rows(
        dense=torch.from_numpy(dense * 10 + 5),
        user=torch.from_numpy(user),
        item=torch.from_numpy(draw.integers(0, SHAPE.items, n)),
        categories=torch.from_numpy(draw.integers(0, SHAPE.categories, (n, 4))),
        history=torch.from_numpy(draw.integers(0, SHAPE.items, (n, SHAPE.history_length))),
        context=torch.from_numpy(context.astype(np.int64)),
        label=torch.from_numpy((draw.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float32)),
        weight=torch.ones(n),
        time=torch.from_numpy(draw.integers(first_day * DAY, (first_day + days) * DAY, n)),
        group=torch.arange(n),
    )
