"""Rows whose right answer is known, for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recmeta.episodes.rows import Rows
from recmeta.models.shared import ModelShape
from recmeta.settings import TrainingSettings
from recmeta.training import TrainingReport, train

SHAPE = ModelShape(
    features=6, users=21, items=31, categories=4, contexts=4, history_length=5,
    embedding_size=4, context_size=2, hidden=(16, 8), rank=2,
)  # fmt: skip

QUICK = TrainingSettings(
    hidden=(16, 8), embedding_size=4, adapter_rank=2, tasks=4, support=16, query=16, rows_per_task=32,
    max_steps=60, warm_steps=20, check_every=10, patience=100, adapt_steps=60, rate=1e-2, table_rate=1e-2,
)  # fmt: skip

TINY_SHAPE = replace(SHAPE, hidden=(8, 4), embedding_size=2)

TINY = QUICK.model_copy(
    update={
        "hidden": (8, 4), "embedding_size": 2, "support": 8, "query": 8, "rows_per_task": 16,
        "inner_steps": 2, "max_steps": 40, "warm_steps": 10, "check_every": 5, "rate": 3e-2,
    }
)  # fmt: skip
"""For tests that go through all names: a training takes about half a second."""

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


TINY_ROWS = make_rows({1: 300, 2: 100, 3: 100})
TINY_LATER = make_rows({1: 100, 2: 50, 3: 50}, seed=1, first_day=40)


def train_tiny(folder: Path, given: TrainingSettings) -> TrainingReport:
    """Train with the backbone that the settings name."""
    return train(TINY_ROWS, TINY_LATER, replace(TINY_SHAPE, backbone=given.backbone), given, folder)


class _KilledError(Exception):
    pass


def train_killed_once(folder: Path, given: TrainingSettings, at: int) -> list[int]:
    """Train, die at step ``at``, train again; return the steps that the second run told."""
    shape = replace(TINY_SHAPE, backbone=given.backbone)

    def kill(what: str, done: int, total: int) -> None:
        if done == at:
            raise _KilledError

    with pytest.raises(_KilledError):
        train(TINY_ROWS, TINY_LATER, shape, given, folder, progress=kill)
    told: list[int] = []
    train(TINY_ROWS, TINY_LATER, shape, given, folder, progress=lambda what, done, total: told.append(done))
    return told


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
