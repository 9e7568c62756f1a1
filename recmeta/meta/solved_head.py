"""What heads that are solved for, instead of descended to, share: where they read and what they write.

This module knows features, scores and labels of rows; it must never know what computed them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap

from recmeta.errors import InputError
from recmeta.meta.interface import (
    Data,
    MetaLearner,
    Problem,
    Weights,
    count_tasks,
    for_each_task,
    losses_at,
)

WEIGHT, BIAS = "head_weight", "head_bias"


class SolvedHead(MetaLearner):
    """A linear head found in closed form on a task's support rows, differentiated through.

    ``problem.embed`` gives each row's features [rows, d] and the scores that are there already, to
    which ``features @ head_weight + head_bias`` is added. Two forms are understood:

    - one output: scores [rows], ``head_weight`` [d], ``head_bias`` [1]; the score is the logit of
      ``label`` 1 against 0;
    - several: scores [rows, ways], ``head_weight`` [ways, d], ``head_bias`` [ways]; a score is the logit
      of a class, and ``label`` is the number of the class.

    ``weight`` among the data says how much a row counts; only proportions matter, and a row of weight 0
    is not there. All other weights stay as they are. What is behind ``embed`` learns from the query loss
    through the solution. Systems are solved in float32 or better, whatever the type of the data. With
    zero inner steps the head too stays as it is, and this is joint training.
    """

    def prepare(self, problem: Problem, weights: Weights) -> None:
        """Check that there is a head, and rows to solve it from.

        Raises:
            InputError: the problem has no ``embed``, or the weights no head of a known form.
        """
        head, bias = (tuple(weights[name].shape) if name in weights else None for name in (WEIGHT, BIAS))
        known = head is not None and len(head) in (1, 2) and bias == (*head[:-1], 1)[:1]
        if problem.embed is None or not known:
            raise InputError(
                f"meta-learner {self.name}: expected a problem with embed, and {WEIGHT} [d] with {BIAS} [1] "
                f"or [ways, d] with [ways], found embed {problem.embed}, {WEIGHT} {head} and {BIAS} {bias}"
            )

    def meta_losses(
        self,
        problem: Problem,
        weights: Weights,
        support: Data,
        query: Data,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return each task's query loss under the head solved on its support data."""
        if not self.options.inner_steps:
            return losses_at(problem, weights, query)
        own = replace(problem, per_task=problem.per_task | {WEIGHT, BIAS})
        return losses_at(own, {**weights, **self._heads(problem, weights, support)}, query)

    def adapt(self, problem: Problem, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return each task's weights, with the head solved on its support data."""
        everywhere = for_each_task(problem, weights, count_tasks(support))
        if not self.options.inner_steps:
            return everywhere
        return everywhere | self._heads(problem, weights, support)

    @abstractmethod
    def solve(
        self, features: Tensor, offsets: Tensor, targets: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what one task adds to the head, weights [outputs, d] and bias [outputs].

        Args:
            features: [rows, d].
            offsets: [rows, outputs], the scores under the head as it is.
            targets: [rows, outputs], the label itself for one output, one-hot for several.
            weight: [rows], zero or above, one on average over the rows that count.
        """

    def _heads(self, problem: Problem, weights: Weights, support: Data) -> dict[str, Tensor]:
        embed = problem.embed
        if embed is None:
            raise InputError(f"meta-learner {self.name}: expected a problem with embed, found none")

        def one_task(head: Tensor, bias: Tensor, data: dict[str, Tensor]) -> dict[str, Tensor]:
            features, scores = embed(data)
            exact = torch.promote_types(features.dtype, torch.float32)
            shared = head.to(exact).reshape(bias.shape[0], -1)
            features = features.to(exact)
            offsets = scores.to(exact).reshape(len(features), -1) + features @ shared.T + bias.to(exact)
            label = data["label"].unsqueeze(-1)
            if head.dim() == 2:
                label = label == torch.arange(len(head), device=label.device)
            weight = _evened(data["weight"].to(exact)) if "weight" in data else features.new_ones(len(label))
            slope, intercept = self.solve(features, offsets, label.to(exact), weight)
            return {
                WEIGHT: (shared + slope).reshape(head.shape).to(head.dtype),
                BIAS: (bias + intercept).to(bias.dtype),
            }

        axes = tuple(0 if name in problem.per_task else None for name in (WEIGHT, BIAS))
        heads: dict[str, Tensor] = vmap(one_task, in_dims=(*axes, 0))(
            weights[WEIGHT], weights[BIAS], dict(support)
        )
        return heads


def _evened(weight: Tensor) -> Tensor:
    """Weights whose mean is one over the rows that count; all zero where none does."""
    return weight * ((weight > 0).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny))
