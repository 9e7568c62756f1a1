"""What a meta-learner is: a way to learn weights over tasks, for any differentiable loss.

A task is data. A loss is a function of weights and data. Nothing here knows recommendation, so the
same meta-learners fit sinusoids, users or surfaces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import vmap

from recmeta.errors import InputError

Weights = Mapping[str, Tensor]
"""The tensors that are learnt over tasks, by name; the inner loop starts from them."""

Data = Mapping[str, Tensor]
"""The tensors of one task; where many tasks are given, each has a leading axis of tasks."""

LossFunction = Callable[[Weights, Data], Tensor]
"""The mean loss of one task's data under given weights, a scalar.

It may close over further parameters that need gradients: the outer loop reaches them, the inner
loop leaves them alone. It is called under ``torch.func.vmap`` and ``torch.func.grad``, so it may not
branch on values, draw random numbers or look up tables with sparse gradients.
"""

Embedding = Callable[[Data], tuple[Tensor, Tensor]]
"""What a head reads of one task's data: features [rows, d], and [rows, ...] the scores that are there
already, to which ``features @ head_weight + head_bias`` is added. It may close over parameters."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a meta-learner is told of the thing that is learnt."""

    loss: LossFunction
    embed: Embedding | None = None
    """Needed by learners that solve for a head instead of descending to it."""
    per_task: frozenset[str] = frozenset()
    """Names of weights that each task brings along, [tasks, ...], such as the rows of a table that its
    data look up: the inner loop moves them, and the gradient goes back to wherever they came from."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How far and how the inner loop goes. Each learner reads what concerns it."""

    inner_steps: int = 3
    inner_rate: float = 0.1
    fast: tuple[str, ...] = ()
    """The inner loop moves the weights whose names start with one of these; all of them, if none."""
    step_weights: tuple[float, ...] = ()
    """Share of the query loss after inner step 1, 2, ... in the meta-loss; none: the last step alone
    (multi-step loss, Antoniou et al. 2019)."""
    second_order: bool = True
    """Whether learners that can do without second derivatives keep them."""
    proximal: float = 1.0
    """Strength of the pull back to where a task started, in learners that have one."""
    conjugate_steps: int = 5
    """Steps of the conjugate gradient, in implicit MAML."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no inner loop."""
        expected = (
            ("inner_steps from 0", self.inner_steps >= 0, self.inner_steps),
            ("inner_rate above 0", self.inner_rate > 0, self.inner_rate),
            ("proximal above 0", self.proximal > 0, self.proximal),
            ("conjugate_steps from 1", self.conjugate_steps >= 1, self.conjugate_steps),
            (
                "step_weights none, or one from 0 for each inner step and not all 0",
                not self.step_weights
                or (
                    len(self.step_weights) == self.inner_steps
                    and min(self.step_weights) >= 0 < max(self.step_weights)
                ),
                f"{self.step_weights} with inner_steps={self.inner_steps}",
            ),
        )
        for text, holds, found in expected:
            if not holds:
                raise InputError(f"meta-learner: expected {text}, found {found}")


class MetaLearner(nn.Module, ABC):
    """A strategy for learning weights over tasks.

    It is a module because some learn more than the weights: rates, an optimizer, a temperature. Those
    are its parameters; they exist after `prepare`.
    """

    name: ClassVar[str]

    def __init__(self, options: Options | None = None) -> None:
        """Set how far the inner loop goes."""
        super().__init__()
        self.options = Options() if options is None else options

    @property
    def uses_support(self) -> bool:
        """Whether support rows are looked at; where not, they are better spent as query rows."""
        return self.options.inner_steps > 0

    def prepare(self, problem: Problem, weights: Weights) -> None:
        """Make the learner's own parameters, for weights of these shapes; call it once, first."""

    @abstractmethod
    def meta_losses(
        self,
        problem: Problem,
        weights: Weights,
        support: Data,
        query: Data,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return one scalar a task, [tasks], whose mean's gradient the outer loop follows.

        Args:
            problem: the loss of one task.
            weights: where every task starts, without an axis of tasks.
            support: data to adapt to, [tasks, ...]; may be empty where `uses_support` is false.
            query: later data to be good at, [tasks, ...].
            generator: source of all that is random; without it tasks are taken in the order given.
        """

    @abstractmethod
    def adapt(self, problem: Problem, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return each task's weights, [tasks, ...], after what the learner does to adapt to its support."""

    def narrowed(self, problem: Problem, weights: Weights) -> tuple[Problem, dict[str, Tensor]]:
        """Return the problem in the fast weights alone, and those; the loss closes over the others.

        Raises:
            InputError: no weight is fast, or a weight that belongs to each task is not.
        """
        fast = {name: value for name, value in weights.items() if self._is_fast(name)}
        slow = {name: value for name, value in weights.items() if name not in fast}
        if not fast or not problem.per_task <= fast.keys():
            raise InputError(
                f"meta-learner {self.name}: expected names that start with one of {self.options.fast}, among "
                f"them all of each task's own, found {list(weights)} and own {sorted(problem.per_task)}"
            )
        if not slow:
            return problem, fast
        loss = problem.loss
        return replace(problem, loss=lambda moved, data: loss({**slow, **moved}, data)), fast

    def _is_fast(self, name: str) -> bool:
        return not self.options.fast or name.startswith(self.options.fast)


def count_tasks(data: Data) -> int:
    """Return the length of the leading axis."""
    return next(iter(data.values())).shape[0]


def losses_at(problem: Problem, weights: Weights, data: Data) -> Tensor:
    """Return each task's loss under the same weights, [tasks]: what multi-task learning minimises."""
    axes = {name: 0 if name in problem.per_task else None for name in weights}
    losses: Tensor = vmap(problem.loss, in_dims=(axes, 0))(dict(weights), dict(data))
    return losses


def losses_under(problem: Problem, fast: Weights, data: Data) -> Tensor:
    """Return each task's loss under its own weights [tasks, ...]: [tasks]."""
    losses: Tensor = vmap(problem.loss)(dict(fast), dict(data))
    return losses


def for_each_task(problem: Problem, weights: Weights, tasks: int) -> dict[str, Tensor]:
    """Return the weights once for each task, [tasks, ...], without copying them."""
    return {
        name: value if name in problem.per_task else value.expand(tasks, *value.shape)
        for name, value in weights.items()
    }
