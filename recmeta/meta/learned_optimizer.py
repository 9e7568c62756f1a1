"""A learned optimizer: the rule that adapts weights is itself learnt, as a small recurrent net.

It must never know which number of which weight it moves: one rule serves them all.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from recmeta.meta.interface import (
    Data,
    MetaLearner,
    Options,
    Problem,
    Weights,
    count_tasks,
    for_each_task,
    losses_at,
    losses_under,
)

HIDDEN = 20
"""Numbers that each of the two layers remembers of each coordinate (section 3 of the paper)."""

PRECISION = 10.0
"""The paper's p: slopes smaller than e^-10 are told by their size, larger ones by its logarithm."""

KEPT = 3.0
"""What is added to the bias of forget gates at the start: a cell then keeps 95 % from step to step, as a
momentum of 0.95 would, instead of half."""

State = tuple[Tensor, Tensor, Tensor, Tensor]
"""What the two layers remember: output and cell of the first, of the second; [tasks, numbers, HIDDEN]."""


class LearnedOptimizer(MetaLearner):
    """Learning to learn by gradient descent by gradient descent (Andrychowicz et al. 2016).

    ``fast_k = fast_(k-1) + inner_rate * m(slope_k, memory)`` (equation 3), where ``slope_k`` is the
    gradient on support data and m a two-layer LSTM that looks at one number (coordinate) at a time. Its
    weights φ are the same for all numbers of all tasks; each number has a memory of its own, which
    starts empty. ``inner_rate`` is the paper's scale of outputs, 0.1.

    The meta-loss is the mean of the query losses after inner steps 1, 2, ..., the paper's sum divided
    by the number of steps so that its size does not depend on it; ``step_weights`` give other shares.
    θ (where tasks start) and φ both learn from it. With ``second_order`` the slopes depend on θ and on
    earlier steps; without, they are constants, as in the paper.

    φ does not depend on the shapes of weights nor on the number of steps: what was learnt with few steps
    can be loaded into a learner with more. A new one has an output of zero, so that it does not move,
    and training starts from joint training.
    """

    name: ClassVar[str] = "learned_optimizer"

    def __init__(self, options: Options | None = None) -> None:
        """Make φ, always the same."""
        super().__init__(options)
        self.first = _Layer(2)
        self.second = _Layer(HIDDEN)
        self.readout = nn.Parameter(torch.zeros(HIDDEN))
        self.bias = nn.Parameter(torch.zeros(()))
        self.draw(torch.Generator().manual_seed(0))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Start φ again, from other random numbers."""
        for layer in (self.first, self.second):
            layer.draw(generator)
        self.readout.zero_()
        self.bias.zero_()

    def meta_losses(
        self,
        problem: Problem,
        weights: Weights,
        support: Data,
        query: Data,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return each task's query loss, its mean along the inner steps on its support data."""
        steps = self.options.inner_steps
        if not steps:
            return losses_at(problem, weights, query)
        narrow, fast = self.narrowed(problem, weights)
        start = for_each_task(narrow, fast, count_tasks(support))
        path, _ = self.walk(narrow, start, support, steps=steps)
        shares = self.options.step_weights or (1.0,) * steps
        counted = zip(path, shares, strict=True)
        losses = torch.stack([share * losses_under(narrow, at, query) for at, share in counted if share])
        return losses.sum(0) / sum(shares)

    def adapt(self, problem: Problem, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return each task's weights after ``inner_steps`` learned steps on its support data."""
        everywhere = for_each_task(problem, weights, count_tasks(support))
        if not self.options.inner_steps:
            return everywhere
        narrow, fast = self.narrowed(problem, weights)
        start = {name: everywhere[name] for name in fast}
        return everywhere | self.walk(narrow, start, support, steps=self.options.inner_steps)[0][-1]

    def walk(
        self, problem: Problem, weights: Weights, support: Data, *, steps: int, state: State | None = None
    ) -> tuple[list[dict[str, Tensor]], State]:
        """Return each task's weights after step 1, 2, ..., ``steps``, and what is remembered then.

        Args:
            problem: the loss of one task.
            weights: each task's own, [tasks, ...].
            support: the data that give slopes, [tasks, ...].
            steps: from 1.
            state: what was remembered at the end of an earlier walk, to go on from there.
        """
        gradient = vmap(grad(problem.loss))
        sizes = [value[0].numel() for value in weights.values()]
        at, path = dict(weights), []
        for _ in range(steps):
            if self.options.second_order:
                slopes = gradient(at, dict(support))
            else:
                with torch.no_grad():
                    slopes = gradient({name: value.detach() for name, value in at.items()}, dict(support))
            flat = torch.cat([slopes[name].flatten(1) for name in at], 1)
            moves, state = self.moves(flat, state)
            parts = zip(at.items(), torch.split(moves, sizes, 1), strict=True)
            at = {name: value + move.reshape(value.shape).to(value.dtype) for (name, value), move in parts}
            path.append(at)
        assert state is not None, "a walk has steps"  # noqa: S101
        return path, state

    def moves(self, slopes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return how far each number moves, and what is remembered; ``slopes`` are [tasks, numbers].

        Half-precision slopes are read in single precision, in which the memory is kept.
        """
        slopes = slopes.to(torch.promote_types(slopes.dtype, torch.float32))
        if state is None:
            empty = slopes.new_zeros(*slopes.shape, HIDDEN)
            state = (empty, empty, empty, empty)
        first = self.first(preprocess(slopes), state[0], state[1])
        second = self.second(first[0], state[2], state[3])
        output = second[0] @ self.readout.to(slopes.dtype) + self.bias.to(slopes.dtype)
        return self.options.inner_rate * output, (*first, *second)


def preprocess(slopes: Tensor) -> Tensor:
    """Return two numbers for each slope, both about between -1 and 1: [...] to [..., 2].

    ``(log|slope| / p, sign)`` where ``|slope| >= e^-p``, else ``(-1, e^p * slope)`` (appendix A): slopes
    differ by orders of magnitude, and both their size and their direction count.
    """
    least = math.exp(-PRECISION)
    size = slopes.abs()
    large = size >= least
    logarithm = size.clamp(min=least).log() / PRECISION  # -1 where the slope is small
    direction = torch.where(large, slopes.sign(), slopes / least)
    return torch.stack([logarithm, direction], -1)


class _Layer(nn.Module):
    """One LSTM layer in plain tensor operations, because torch's own cannot be differentiated twice under
    vmap. Gates stand in the order input, forget, output, candidate."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.read = nn.Parameter(torch.empty(inputs, 4 * HIDDEN))
        self.recur = nn.Parameter(torch.empty(HIDDEN, 4 * HIDDEN))
        self.bias = nn.Parameter(torch.empty(4 * HIDDEN))

    def draw(self, generator: torch.Generator) -> None:
        for weight in (self.read, self.recur, self.bias):
            weight.uniform_(-(HIDDEN**-0.5), HIDDEN**-0.5, generator=generator)
        self.bias[HIDDEN : 2 * HIDDEN] += KEPT

    def forward(self, read: Tensor, output: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        like = read.dtype
        gates = read @ self.read.to(like) + output @ self.recur.to(like) + self.bias.to(like)
        enter, keep, leave = gates[..., : 3 * HIDDEN].sigmoid().chunk(3, -1)
        cell = keep * cell + enter * gates[..., 3 * HIDDEN :].tanh()
        return leave * cell.tanh(), cell
