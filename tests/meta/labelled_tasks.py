"""A task distribution that every meta-learner can learn: yes or no, by a small network over looked-up rows.

`Case` holds everything a learner is given: weights, a table that the loss closes over, support, query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from recmeta.meta.interface import MetaLearner, Options, Problem
from recmeta.meta.registry import get_meta_learner

IDS, WIDTH, HIDDEN = 30, 4, 6


@dataclass(frozen=True)
class Case:
    """Weights, rows of a table that only the outer loop reaches, and the data of some tasks."""

    weights: dict[str, Tensor]
    table: Tensor
    support: dict[str, Tensor]
    query: dict[str, Tensor]

    @property
    def problem(self) -> Problem:
        """The weighted mean log-loss, and what a head reads of a row."""
        return Problem(loss=self.loss, embed=lambda data: self.embed(self.weights, data))

    def embed(self, weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Features [rows, HIDDEN], and the score that is there before the head, [rows]."""
        looked_up = self.table[data["id"]] * data["x"]
        features = torch.tanh(linear(looked_up, weights["body_weight"], weights["body_bias"]))
        return features, looked_up.mean(-1)

    def score(self, weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
        """A logit a row."""
        features, before = self.embed(weights, data)
        return before + features @ weights["head_weight"] + weights["head_bias"]

    def loss(self, weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
        """Weighted mean log-loss of one task."""
        each = binary_cross_entropy_with_logits(self.score(weights, data), data["label"], reduction="none")
        return (each * data["weight"]).sum() / data["weight"].sum()

    def learnt(self, learner: MetaLearner) -> dict[str, Tensor]:
        """All that the outer loop learns, by name."""
        return {**self.weights, "table": self.table, **dict(learner.named_parameters())}


def make_case(
    *, tasks: int = 4, rows: int = 9, seed: int = 0, data_seed: int = 1, dtype: torch.dtype = torch.float32
) -> Case:
    """Weights by ``seed``, data by ``data_seed``. Labels follow a direction that tasks do not share."""
    draw = torch.Generator().manual_seed(seed)
    weights = {
        "body_weight": torch.randn(HIDDEN, WIDTH, generator=draw),
        "body_bias": torch.randn(HIDDEN, generator=draw) * 0.3,
        "head_weight": torch.randn(HIDDEN, generator=draw) * 0.5,
        "head_bias": torch.randn(1, generator=draw) * 0.1,
    }
    table = torch.randn(IDS, WIDTH, generator=draw)
    draw = torch.Generator().manual_seed(data_seed)
    direction = torch.randn(tasks, 1, WIDTH, generator=draw)
    parts = []
    for _ in range(2):
        x = torch.randn(tasks, rows, WIDTH, generator=draw)
        identity = torch.randint(IDS, (tasks, rows), generator=draw)
        parts.append(
            {
                "x": x.to(dtype),
                "id": identity,
                "label": ((x * table[identity] * direction).sum(-1) > 0).to(dtype),
                "weight": (0.5 + torch.rand(tasks, rows, generator=draw)).to(dtype),
            }
        )
    return Case(
        {name: value.to(dtype).requires_grad_() for name, value in weights.items()},
        table.to(dtype).requires_grad_(),
        parts[0],
        parts[1],
    )


def make_learner(name: str, case: Case, **options: object) -> MetaLearner:
    """A learner that is ready for the case; what it draws at random is drawn from the same seed."""
    chosen = Options(**{"inner_steps": 3, "inner_rate": 0.2, "conjugate_steps": 10, **options})  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = get_meta_learner(name, chosen)
        learner.prepare(case.problem, case.weights)
    return learner.to(case.table.dtype)


def stirred(learner: MetaLearner) -> MetaLearner:
    """The learner with its own parameters moved a little: one that starts at zero is no longer there."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in learner.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=draw).to(value.dtype))
    return learner


def losses_of(learner: MetaLearner, case: Case, *, seed: int | None = None) -> Tensor:
    """The learner's meta-losses, [tasks]; with a seed, by what a generator draws."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return learner.meta_losses(case.problem, case.weights, case.support, case.query, generator=generator)


def gradients(value: Tensor, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by name; zeros where there is none."""
    if not learnt:
        return {}
    found = torch.autograd.grad(value, list(learnt.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(at) if slope is None else slope
        for (name, at), slope in zip(learnt.items(), found, strict=True)
    }
