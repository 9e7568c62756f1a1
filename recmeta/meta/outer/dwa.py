"""DWA: weigh a context by how slowly its loss falls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchjd.scalarization import DWA

from recmeta.errors import InputError
from recmeta.meta.outer.weighting import Weighting


class Dwa(Weighting):
    """Dynamic weight average (Liu et al. 2019, equation 7), with the formula and temperature of torchjd.

    ``weight = K softmax(r / T)``, with ``r`` the ratio of a context's mean loss in the last epoch to that
    in the one before; equal weights in the first two. An absent context counts in an epoch's mean with
    the loss that it had last, one never met with the mean of those present.
    """

    name = "dwa"
    last: Tensor

    def __init__(self, contexts: int, *, steps_per_epoch: int) -> None:
        """An epoch is so many steps: training draws tasks, and has no other."""
        super().__init__(contexts)
        if steps_per_epoch < 1:
            raise InputError(f"outer aggregation dwa: expected steps from 1, found {steps_per_epoch}")
        self.steps_per_epoch = steps_per_epoch
        self.register_buffer("last", torch.full((contexts,), torch.nan, dtype=torch.float64))
        self.scalarizer = DWA()

    def total(self, losses: Tensor, present: Tensor) -> Tensor:
        """Return the weighted mean, and end the epoch where its steps are done."""
        self.last[present] = losses.detach().to(self.last.dtype)
        known = torch.where(self.last.isnan(), losses.detach().mean().to(self.last.dtype), self.last)
        filled = known.to(losses.dtype).index_put((present,), losses)
        total: Tensor = self.scalarizer(filled) / len(losses)
        if self.scalarizer._n_batches == self.steps_per_epoch:
            self.scalarizer.step()
        return total

    def get_extra_state(self) -> dict[str, Any]:
        """Return the sums of this epoch and the means of the last two."""
        memory = self.scalarizer
        return {
            "sum": memory._loss_sum,
            "steps": memory._n_batches,
            "averages": list(memory._previous_averages),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_extra_state`."""
        memory, device = self.scalarizer, self.last.device
        total = state["sum"]
        memory._loss_sum = None if total is None else total.to(device)
        memory._n_batches = state["steps"]
        memory._previous_averages = [average.to(device) for average in state["averages"]]
