"""Prototypical networks: a class is the mean of its rows."""

from __future__ import annotations

from torch import Tensor
from torch.func import vmap

from recmeta.meta.few_shot.interface import FewShotClassifier, one_hot
from recmeta.meta.prototype_head import class_means


class Prototypical(FewShotClassifier):
    """Prototypical networks (Snell et al. 2017, equations 1 and 2).

    ``log p(y = k | x) = log softmax over k of -|f(x) - c_k|²``, with c_k the mean of f over the support
    rows of class k.
    """

    def answers(self, known: Tensor, label: Tensor, asked: Tensor, ways: int) -> Tensor:
        """Compare each query row with each class's mean."""
        means, _ = vmap(class_means)(known, one_hot(label, ways, known))
        distance = (asked.unsqueeze(2) - means.unsqueeze(1)).square().sum(-1)
        return (-distance).log_softmax(-1)
