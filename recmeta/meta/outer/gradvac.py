"""GradVac: gradients that agree at least as much as they used to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import GradVac as Aggregator

from recmeta.meta.outer.draws import Draws
from recmeta.meta.outer.sharing import Sharing


class GradVac(Sharing):
    """Gradient vaccine (Wang et al. 2021, algorithm 1), with the algorithm of torchjd.

    A pair of contexts whose cosine is below its running mean is brought up to it. The running means are
    kept for all pairs of contexts; a step reads and moves those of the pairs that are present.
    """

    name = "gradvac"
    cosines: Tensor

    def __init__(self, contexts: int, *, seed: int = 0) -> None:
        """Start at cosines of zero, as PCGrad does at each step."""
        super().__init__(contexts)
        self.register_buffer("cosines", torch.zeros(contexts, contexts, dtype=torch.float64))
        self.draws = Draws(seed)

    def combine(self, gradients: Tensor, present: Tensor) -> Tensor:
        """Return the mean of the gradients, each corrected against all others."""
        pairs = (present[:, None], present[None, :])
        aggregator = Aggregator()
        state: Any = aggregator.gramian_weighting  # it numbers contexts by row, and forgets when rows change
        state._phi_t = self.cosines[pairs].to("cpu", gradients.dtype)  # torchjd computes them there
        state._state_key = (len(gradients), gradients.dtype)
        with self.draws.next():
            combined: Tensor = aggregator(gradients)
        self.cosines[pairs] = state._phi_t.to(self.cosines)
        return combined / len(gradients)
