"""Weightings whose formula torchjd has and that remember nothing, or only what is trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call

from recmeta.meta.outer.draws import Draws
from recmeta.meta.outer.weighting import Weighting


class Scalarized(Weighting):
    """A scalarizer of torchjd, over the contexts that are present.

    Parameters that it has, one number a context (log-variances, scales), are learnt by whoever trains
    the model. Those of contexts that are absent get a gradient of zero.
    """

    def __init__(
        self,
        name: str,
        contexts: int,
        scalarizer: nn.Module,
        *,
        length: Callable[[int], float] = lambda present: 1.0,
        seed: int = 0,
    ) -> None:
        """Take the scalarizer; of n equal losses' gradients it makes one ``length(n)`` times as long."""
        super().__init__(contexts)
        self.name = name
        self.scalarizer = scalarizer
        self.length = length
        self.draws = Draws(seed)

    def total(self, losses: Tensor, present: Tensor) -> Tensor:
        """Return the scalar, on the scale of a mean."""
        learnt = {name: value[present] for name, value in self.scalarizer.named_parameters()}
        with self.draws.next():
            total: Tensor = functional_call(self.scalarizer, learnt, (losses,))
        return total / self.length(len(losses))
