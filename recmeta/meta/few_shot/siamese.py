"""A Siamese verification net: are two rows of the same class?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from recmeta.meta.few_shot.interface import FewShotClassifier, one_hot

FIRST_WEIGHT, FIRST_BIAS = -0.3, 3.0
"""Where α and b start: rows without a difference are the same, and each difference counts enough that the
first steps do not turn its sign. With α near 0 the net learnt to tell training classes apart by the signs of
features, and was below chance on digits that it had never met."""


class Siamese(FewShotClassifier):
    """Siamese networks for one-shot recognition (Koch et al. 2015, section 3.1).

    ``p(same | x, z) = sigmoid(Σ_j α_j |f(x)_j - f(z)_j| + b)``, trained on pairs. A query row belongs to
    the class of the support row that it is most probably the same as. For an order of all classes, each
    has the logit of its most alike row, and these are made into probabilities by a softmax.
    """

    def __init__(self, embedding: Callable[[Tensor], Tensor], *, features: int) -> None:
        """Take the embedding and its width; at first every difference speaks against sameness alike."""
        super().__init__(embedding)
        self.weight = nn.Parameter(torch.full((features,), FIRST_WEIGHT))
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS))

    def verify(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the logits of being the same for features [..., d] and [..., d]: [...]."""
        return (left - right).abs() @ self.weight + self.bias

    def loss(self, support: Tensor, label: Tensor, query: Tensor, answer: Tensor, ways: int) -> Tensor:
        """Return the log-loss of sameness over all pairs of a support and a query row.

        Same and different pairs count half each, as there are ``ways - 1`` times as many of the latter.
        """
        known, asked = self.embed(support, query)
        logits = self.verify(asked.unsqueeze(2), known.unsqueeze(1))
        same = answer.unsqueeze(2) == label.unsqueeze(1)
        return 0.5 * (functional.softplus(-logits[same]).mean() + functional.softplus(logits[~same]).mean())

    def answers(self, known: Tensor, label: Tensor, asked: Tensor, ways: int) -> Tensor:
        """Give each class the logit of its most alike row."""
        logits = self.verify(asked.unsqueeze(2), known.unsqueeze(1))
        others = one_hot(label, ways, known).mT.unsqueeze(1) == 0
        return logits.unsqueeze(2).masked_fill(others, -torch.inf).amax(-1).log_softmax(-1)
