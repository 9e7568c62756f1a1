"""Small rows for the tests of this folder."""

from __future__ import annotations

import numpy as np
import torch

from recmeta.episodes.rows import Rows


def make_rows(sizes: dict[int, int], *, seed: int = 0, span: int = 10**13, features: int = 5) -> Rows:
    """Rows of each context at random instants within ``span`` microseconds; ``group`` numbers them."""
    generator = np.random.default_rng(seed)
    n = sum(sizes.values())
    context = np.concatenate([np.full(size, context) for context, size in sizes.items()] or [np.empty(0)])
    return Rows(
        dense=torch.from_numpy(generator.normal(size=(n, features)).astype(np.float32)),
        user=torch.from_numpy(generator.integers(0, 30, n)),
        item=torch.from_numpy(generator.integers(0, 40, n)),
        categories=torch.from_numpy(generator.integers(0, 6, (n, 4))),
        history=torch.from_numpy(generator.integers(0, 40, (n, 7))),
        context=torch.from_numpy(context.astype(np.int64)),
        label=torch.from_numpy(generator.integers(0, 2, n).astype(np.float32)),
        weight=torch.ones(n),
        time=torch.from_numpy(generator.integers(0, span, n)),
        group=torch.arange(n),
    )
