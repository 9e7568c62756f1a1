"""Implicit MAML: the outer gradient from where the inner loop ends, whichever way it went there.

It must never keep the path of the inner loop: memory does not depend on the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad, vmap

from recmeta.meta.interface import (
    Data,
    MetaLearner,
    Problem,
    Weights,
    count_tasks,
    for_each_task,
    losses_at,
    losses_under,
)

Point = dict[str, Tensor]


class ImplicitMaml(MetaLearner):
    """Meta-learning with implicit gradients (Rajeswaran et al. 2019, algorithms 1 and 2).

    A task's weights are ``φ = argmin of loss(φ, support) + λ / 2 |φ - θ|²``, with λ = ``proximal``,
    approached by ``inner_steps`` gradient steps of ``inner_rate`` from θ. At the minimum its gradient is
    zero, which tells how it moves with all that it depends on, without a look at the steps. With H the
    second derivatives of ``loss(φ, support)`` and g the gradient of ``loss(φ, query)`` ::

        v = (I + H / λ)⁻¹ g

    is the outer gradient in θ (equation 6), and parameters that the loss closes over receive, beside
    that of the query loss, the gradient of ``-<v, gradient of loss(φ, support)> / λ``, v constant.

    v is found by ``conjugate_steps`` steps of the conjugate gradient from g. The result is as exact as
    the two solvers: too few inner steps, and φ is no minimum. Steps are stable where ``inner_rate`` times
    the largest of H, plus λ, stays below 2.
    """

    name: ClassVar[str] = "implicit_maml"

    def meta_losses(
        self,
        problem: Problem,
        weights: Weights,
        support: Data,
        query: Data,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return each task's query loss at φ; its gradient is the implicit one."""
        if not self.options.inner_steps:
            return losses_at(problem, weights, query)
        narrow, fast = self.narrowed(problem, weights)
        start = for_each_task(narrow, fast, count_tasks(support))
        solved = self._solve(narrow, start, support)
        outer = self._outer_gradient(narrow, solved, support, query)
        slopes = vmap(grad(narrow.loss))(solved, dict(support))
        # Its gradient is wanted, in θ and in what the loss closes over; its value is not.
        carrier = vmap(_dot)(outer, start) - vmap(_dot)(outer, slopes) / self.options.proximal
        losses = losses_under(narrow, solved, query)
        return losses + (carrier - carrier.detach()).to(losses.dtype)

    def adapt(self, problem: Problem, weights: Weights, support: Data) -> dict[str, Tensor]:
        """Return each task's weights after the inner steps; no graph leads back from the fast ones."""
        everywhere = for_each_task(problem, weights, count_tasks(support))
        if not self.options.inner_steps:
            return everywhere
        narrow, fast = self.narrowed(problem, weights)
        return everywhere | self._solve(narrow, {name: everywhere[name] for name in fast}, support)

    @torch.no_grad()
    def _solve(self, problem: Problem, start: Point, support: Data) -> Point:
        """Descend on the loss and the pull back to where the task started."""
        gradient = vmap(grad(problem.loss))
        rate, pull = self.options.inner_rate, self.options.proximal
        at = start
        for _ in range(self.options.inner_steps):
            slopes = gradient(at, dict(support))
            at = {
                name: value - rate * (slopes[name] + pull * (value - start[name]))
                for name, value in at.items()
            }
        return at

    @torch.no_grad()
    def _outer_gradient(self, problem: Problem, solved: Point, support: Data, query: Data) -> Point:
        """Return v for each task, [tasks, ...]."""
        gradient = grad(problem.loss)

        def one_task(at: Point, near: Point, later: Point) -> Point:
            def curve(direction: Point) -> Point:
                # Backward twice: forward mode, which costs less, is not known to all operations.
                bend: Point = grad(lambda moved: _dot(gradient(moved, near), direction))(at)
                return {name: value + bend[name] / self.options.proximal for name, value in direction.items()}

            return conjugate_gradient(curve, gradient(at, later), steps=self.options.conjugate_steps)

        outer: Point = vmap(one_task)(solved, dict(support), dict(query))
        return outer


def conjugate_gradient(product: Callable[[Point], Point], target: Point, *, steps: int) -> Point:
    """Solve ``product(x) = target`` for a symmetric product by the conjugate gradient method from target.

    The number of steps is fixed, so that it runs under vmap: a problem that is solved stays where it is
    (Hestenes & Stiefel 1952). So does one where a direction of negative curvature is met, for which the
    method has no answer (Steihaug 1983); at worst the result is the target itself, as if the product
    were the identity, which is the first-order approximation.
    """
    found = target
    image = product(found)
    residual = {name: value - image[name] for name, value in target.items()}
    direction, size = residual, _dot(residual, residual)
    for _ in range(steps):
        image = product(direction)
        curvature = _dot(direction, image)
        goes_on = curvature > 0
        length = torch.where(goes_on, size / torch.where(goes_on, curvature, 1.0), 0.0)
        found = _add(found, length, direction)
        residual = _add(residual, -length, image)
        before, size = size, _dot(residual, residual)
        kept = size / torch.where(goes_on, before, 1.0)
        direction = {
            name: torch.where(goes_on, value, 0.0) for name, value in _add(residual, kept, direction).items()
        }
    return found


def _dot(left: Point, right: Point) -> Tensor:
    """Sum in single precision or better: squares of half-precision numbers overflow early."""
    products = []
    for name, value in left.items():
        exact = torch.promote_types(value.dtype, torch.float32)
        products.append((value.to(exact) * right[name].to(exact)).sum())
    return torch.stack(products).sum()


def _add(to: Point, length: Tensor, direction: Point) -> Point:
    return {name: value + length.to(value.dtype) * direction[name] for name, value in to.items()}
