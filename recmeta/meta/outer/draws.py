"""Random numbers for libraries that draw from torch's global generator, without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Draws(nn.Module):
    """Seeds torch's generator by (seed, how many times before). That count is all its state."""

    times: Tensor

    def __init__(self, seed: int) -> None:
        """Start at the first time."""
        super().__init__()
        self.seed = seed
        self.register_buffer("times", torch.zeros((), dtype=torch.int64))

    @contextmanager
    def next(self) -> Iterator[None]:
        """Within it the generator is in the next state of ours; afterwards in the one that it was in."""
        devices = [self.times.device] if self.times.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed * 7_368_787 + int(self.times))
            yield
        self.times += 1
