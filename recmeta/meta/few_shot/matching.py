"""Matching networks: attention over the support rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from recmeta.meta.few_shot.interface import FewShotClassifier, one_hot


class Matching(FewShotClassifier):
    """Matching networks (Vinyals et al. 2016, equation 1 and section 2.1.1).

    ``p(y | x) = Σ_i a(x, x_i) y_i`` with ``a = softmax over i of s cos(f(x), f(x_i))``. The paper's
    attention has s = 1, with which no answer can be sure: a cosine ends at 1. Here s is learnt, from
    ``sharpness`` on. Rows are embedded one by one; the paper's full-context embeddings are not here.
    """

    def __init__(self, embedding: Callable[[Tensor], Tensor], *, sharpness: float = 1.0) -> None:
        """Take the embedding, and where s starts."""
        super().__init__(embedding)
        self.log_sharpness = nn.Parameter(torch.tensor(sharpness).log())

    def answers(self, known: Tensor, label: Tensor, asked: Tensor, ways: int) -> Tensor:
        """Sum each class's share of the attention, as logarithms."""
        cosine = functional.normalize(asked, dim=-1) @ functional.normalize(known, dim=-1).mT
        attention = (self.log_sharpness.exp() * cosine).log_softmax(-1)
        others = one_hot(label, ways, known).mT.unsqueeze(1) == 0
        return attention.unsqueeze(2).masked_fill(others, -torch.inf).logsumexp(-1)
