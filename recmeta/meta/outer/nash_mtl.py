"""Nash-MTL: the step on which contexts would agree if they bargained."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torchjd.aggregation import NashMTL as Aggregator

from recmeta.meta.outer.sharing import Sharing


class NashMtl(Sharing):
    """Multi-task learning as a bargaining game (Navon et al. 2022, algorithm 1), with torchjd's solver.

    Weights α > 0 with ``(G Gᵀ) α = 1 / α``: every context gains the same share of what it could gain.
    The solver starts from the last weights. They are kept for all contexts, and those who are present
    bargain among themselves. The step is at most one long, whatever the gradients' lengths.
    """

    name = "nash_mtl"
    weights: Tensor

    def __init__(self, contexts: int) -> None:
        """Start from equal weights.

        Raises:
            ImportError: the solver is not installed.
        """
        super().__init__(contexts)
        Aggregator(n_tasks=contexts)  # tells now what is missing
        self.register_buffer("weights", torch.ones(contexts, dtype=torch.float64))

    def combine(self, gradients: Tensor, present: Tensor) -> Tensor:
        """Return the weighted sum of the gradients."""
        # A new one each step: its problem is compiled for a number of contexts, and is compiled again
        # for every step in any case (it is not DPP, about which cvxpy warns).
        aggregator = Aggregator(n_tasks=len(present))
        aggregator.weighting.prvs_alpha = self.weights[present].cpu().numpy()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)
            combined: Tensor = aggregator(gradients)
        self.weights[present] = torch.from_numpy(aggregator.weighting.prvs_alpha).to(self.weights)
        return combined
