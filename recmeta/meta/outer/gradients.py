"""Each context's gradient over dense parameters, as one matrix. It must never know what is done with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, autograd


def context_gradients(losses: Tensor, shared: Sequence[Tensor]) -> tuple[Tensor, list[bool]]:
    """Return the gradient of each loss [contexts] over all of ``shared``, [contexts, numbers of shared].

    Also which of ``shared`` any loss depends on. Costs one backward pass a context, over what leads to
    ``shared`` alone, so tables with sparse gradients are not touched. One after the other, because all
    at once (``is_grads_batched``) was 8 to 17 % slower on a CPU and is refused by some backward
    functions. The graph stays.
    """
    rows: list[Tensor] = []
    reached = [False] * len(shared)
    for loss in losses:
        slopes = autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        reached = [known or slope is not None for known, slope in zip(reached, slopes, strict=True)]
        parts = [
            torch.zeros_like(leaf) if slope is None else slope
            for leaf, slope in zip(shared, slopes, strict=True)
        ]
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows), reached
