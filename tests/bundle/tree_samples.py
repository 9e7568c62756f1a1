"""Boosted trees on count-like features: the same in any process."""

from __future__ import annotations

import numpy as np

from recmeta.evaluation.baselines import Trees, fit_trees
from recmeta.settings import TreeSettings


def sample_counts(rows: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log counts, faded counts, halves and hours: many rows share one value, and values lie close."""
    generator = np.random.default_rng(seed)
    counts = generator.poisson(3, (rows, 4))
    faded = counts[:, :2] * 2.0 ** (-generator.integers(0, 9, (rows, 2)) / 7)
    dense = np.hstack(
        [np.log1p(counts), faded, counts[:, :1] / 3, np.log1p(generator.integers(0, 700, (rows, 2)))]
    )
    dense = dense.astype(np.float32)
    signal = dense[:, 0] * dense[:, 4] - dense[:, 1] + generator.normal(size=rows)
    return dense, (signal > 1).astype(np.float64)


def sample_trees(rounds: int = 120, **changes: object) -> Trees:
    dense, label = sample_counts()
    settings = TreeSettings(rounds=rounds, leaves=31, min_rows=5, rate=0.1)
    found = fit_trees(dense, label, None, None, None, settings.model_copy(update=changes), threads=1, seed=0)
    assert found is not None
    return found
