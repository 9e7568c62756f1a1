"""R2-D2 as a few-shot classifier: one-hot labels by ridge regression on features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import vmap

from recmeta.meta.few_shot.interface import FewShotClassifier, one_hot
from recmeta.meta.ridge_head import solve_ridge


class RidgeClassifier(FewShotClassifier):
    """R2-D2 (Bertinetto et al. 2019, equations 4 and 6), with a free intercept.

    ``log p = log softmax of α (f(x) W + b)``, where W and b are the ridge regression of one-hot labels on
    the support rows' features, of strength λ > 0; α and λ are learnt. The paper's further bias is
    left out: it is the same for every class, so that a softmax does not see it.
    """

    def __init__(
        self, embedding: Callable[[Tensor], Tensor], *, strength: float = 1.0, scale: float = 10.0
    ) -> None:
        """Take the embedding, and where λ and α start."""
        super().__init__(embedding)
        self.log_strength = nn.Parameter(torch.tensor(strength).log())
        self.scale = nn.Parameter(torch.tensor(scale))

    def answers(self, known: Tensor, label: Tensor, asked: Tensor, ways: int) -> Tensor:
        """Solve each task's regression and score its query rows."""
        solve = partial(solve_ridge, strength=self.log_strength.exp())
        slope, intercept = vmap(solve)(known, one_hot(label, ways, known), known.new_ones(label.shape))
        return (self.scale * (asked @ slope.mT + intercept.unsqueeze(1))).log_softmax(-1)
