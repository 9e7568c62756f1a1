"""How far contexts pull the shared body apart: a figure to log. It must never change a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from recmeta.meta.outer.gradients import context_gradients


def gradient_conflict(
    losses: Tensor, groups: Tensor, shared: Sequence[Tensor]
) -> dict[tuple[int, int], float]:
    """Return the cosine between two contexts' gradients, for each pair ``(a, b)`` with ``a < b``.

    Below zero a step for the one is a step against the other. Pairs of a context that is absent, or
    whose gradient is zero or not finite, are left out. Nothing's ``.grad`` changes and the graph stays,
    for the backward pass that follows. Costs one backward pass a context.

    Args:
        losses: one a task, [tasks], with a graph; those of one context are averaged.
        groups: int64 [tasks], each task's context.
        shared: the dense parameters over which gradients are compared.
    """
    present = torch.unique(groups).tolist()
    means = torch.stack([losses[groups == context].mean() for context in present])
    gradients, _ = context_gradients(means, shared)
    gradients = gradients.double()
    lengths = gradients.norm(dim=1, keepdim=True)
    cosines = (gradients / lengths) @ (gradients / lengths).T
    found = {}
    for a, b in combinations(range(len(present)), 2):
        cosine = float(cosines[a, b])
        if cosine == cosine:  # not the quotient of a zero gradient
            found[int(present[a]), int(present[b])] = max(-1.0, min(1.0, cosine))
    return found
