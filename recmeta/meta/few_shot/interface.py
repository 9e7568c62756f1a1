"""What a few-shot classifier is: labelled support rows in, log-probabilities of query rows out.

This module knows episodes; it must never know how a classifier decides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from recmeta.errors import InputError


class FewShotClassifier(nn.Module, ABC):
    """Classifies episodes of N ways and K shots, many at a time; learns over episodes, never within one."""

    def __init__(self, embedding: Callable[[Tensor], Tensor]) -> None:
        """Take the embedding, [rows, ...] -> [rows, d]; a module is trained along."""
        super().__init__()
        self.embedding = embedding

    def log_probabilities(self, support: Tensor, label: Tensor, query: Tensor, ways: int) -> Tensor:
        """Return the log-probabilities of each class for the query rows, [tasks, m, ways].

        Args:
            support: [tasks, n, ...], rows whose class is known.
            label: int64 [tasks, n], from 0 to ``ways - 1``; each class has a row.
            query: [tasks, m, ...].
            ways: number of classes.

        Raises:
            InputError: labels of another shape or range, or a class without a row.
        """
        _check(support, label, ways)
        known, asked = self.embed(support, query)
        return self.answers(known, label, asked, ways)

    def loss(self, support: Tensor, label: Tensor, query: Tensor, answer: Tensor, ways: int) -> Tensor:
        """Return what to minimise over episodes, a scalar: here the mean surprise at the right answers.

        Args:
            support: [tasks, n, ...].
            label: int64 [tasks, n].
            query: [tasks, m, ...].
            answer: int64 [tasks, m], the classes of the query rows.
            ways: number of classes.
        """
        found = self.log_probabilities(support, label, query, ways)
        return functional.nll_loss(found.flatten(0, 1), answer.flatten())

    @abstractmethod
    def answers(self, known: Tensor, label: Tensor, asked: Tensor, ways: int) -> Tensor:
        """Return log-probabilities [tasks, m, ways] from features [tasks, n, d] and [tasks, m, d]."""

    def embed(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of both, [tasks, n, d] and [tasks, m, d], by one call of the embedding."""
        rows = torch.cat([support, query], dim=1)
        features = self.embedding(rows.flatten(0, 1)).reshape(*rows.shape[:2], -1)
        return features[:, : support.shape[1]], features[:, support.shape[1] :]


def one_hot(label: Tensor, ways: int, like: Tensor) -> Tensor:
    """Return labels [...] as [..., ways] of the type of ``like``."""
    return functional.one_hot(label, ways).to(like.dtype)


def _check(support: Tensor, label: Tensor, ways: int) -> None:
    if label.shape != support.shape[:2]:
        raise InputError(
            f"few-shot labels: expected {tuple(support.shape[:2])} as in support, found {tuple(label.shape)}"
        )
    inside = bool(((label >= 0) & (label < ways)).all())
    if not inside or not functional.one_hot(label, ways).any(dim=1).all():
        raise InputError(
            f"few-shot labels: expected each of 0 to {ways - 1} in every task and nothing else, found "
            f"{sorted(set(label.flatten().tolist()))} in all"
        )
