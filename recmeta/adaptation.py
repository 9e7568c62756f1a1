"""Adapters from data: all contexts at once, each stopped where later data likes it best.

This module reads a model and rows; it must never know which adapters deserve to serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import grad, vmap

from recmeta.episodes.rows import Rows
from recmeta.errors import InputError
from recmeta.models.adapters import Adapter, stack, unstack
from recmeta.models.prediction import log_loss
from recmeta.models.shared import SharedModel
from recmeta.settings import TrainingSettings

ROWS_PER_STEP = 512
"""Training rows of a context in one step; a context with fewer gives all of them in every step."""

LOOK_EVERY = 10
"""Steps between two looks at later data."""

LOOK_BUDGET = 32_768
"""Later rows of all contexts together that a look scores, at the most; it bounds memory."""

LEAST_LOOK = 1024
"""Later rows of a context that a look may always score."""

AVERAGE = 0.9
"""Decay of the running mean of an adapter that is judged and kept: single steps are noisy."""


@dataclass(frozen=True)
class AdapterFit:
    """What adaptation came to for one context."""

    tensors: Adapter
    """All zeros where nothing was better on later data."""
    steps: int
    """Steps until the adapter that was kept; 0 for the zero adapter."""
    rows: int
    """Training rows of the context."""
    shared_loss: float
    """Log-loss of the shared model on later data; NaN-free: 0 where there are no later rows."""
    gain: float
    """How much lower the adapter's log-loss is, on the data that chose it: an optimistic figure."""


def adapt(
    model: SharedModel,
    training: Rows,
    validation: Rows,
    contexts: Sequence[int],
    settings: TrainingSettings,
) -> dict[int, AdapterFit]:
    """Fit an adapter for each of ``contexts`` in one batched program, and return them by context index.

    Each step draws rows of every context, takes all gradients under ``vmap``, and moves the stacked
    adapters by Adam, which acts on each number alone, so that contexts do not touch one another. The
    objective is the mean log-loss plus ``adapt_proximal / rows`` times the squared distance from the
    start: few rows move little. Later data choose the step; the shared model itself is among the
    choices. The draws of a context depend on ``(seed, context)`` only, not on its company.

    Args:
        model: is not changed.
        training: rows to fit; contexts may differ in size by any factor, and may have none.
        validation: later rows; a context without any gets the zero adapter.
        contexts: indices, as in ``Rows.context``.

    Raises:
        InputError: a context stands twice.
    """
    if len(set(contexts)) != len(contexts):
        raise InputError(f"adaptation: expected each context once, found {list(contexts)}")
    own = {context: _positions(training, context) for context in contexts}
    later = {context: _positions(validation, context) for context in contexts}
    fitted = [context for context in contexts if len(own[context]) and len(later[context])]
    nothing = AdapterFit(model.zero_adapter(), 0, 0, 0.0, 0.0)
    fits = {context: nothing for context in contexts if context not in fitted}
    if fitted:
        before = model.training, torch.get_num_threads()
        model.eval()
        torch.set_num_threads(settings.threads)
        try:
            program = _Program(model, training, [own[context] for context in fitted], fitted, settings)
            judge = _Judge(model, validation, [later[context] for context in fitted])
            fits |= dict(zip(fitted, _fit(program, judge, model, settings), strict=True))
        finally:
            model.train(before[0])
            torch.set_num_threads(before[1])
    return {context: fits[context] for context in contexts}


def _positions(rows: Rows, context: int) -> npt.NDArray[np.int64]:
    return np.flatnonzero((rows.context == context).numpy() & (rows.weight > 0).numpy()).astype(np.int64)


class _Program:
    """Draws rows of every context and gives the gradients of all adapters at once."""

    def __init__(
        self,
        model: SharedModel,
        rows: Rows,
        positions: list[npt.NDArray[np.int64]],
        contexts: Sequence[int],
        settings: TrainingSettings,
    ) -> None:
        self._model, self._rows, self.positions = model, rows, positions
        self._draws = [np.random.default_rng([settings.seed, context]) for context in contexts]
        self._left: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64) for _ in contexts]
        self._start = model.starting_adapter(settings.seed)
        self._pull = torch.tensor([settings.adapt_proximal / len(position) for position in positions])
        self._gradients = vmap(grad(self._objective), in_dims=(0, 0, 0))

    @property
    def start(self) -> Adapter:
        """Where every context starts, stacked."""
        return stack([self._start] * len(self.positions))

    def gradients(self, stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of each context's objective on its next rows."""
        index, present = self._next_rows()
        with torch.no_grad():
            gathered = self._model.gather(self._rows.take_columns(index))
            gathered["weight"] = gathered["weight"] * present
            found: dict[str, Tensor] = self._gradients(dict(stacked), gathered, self._pull)
        return found

    def _objective(self, adapter: dict[str, Tensor], gathered: dict[str, Tensor], pull: Tensor) -> Tensor:
        loss = log_loss(self._model.body(gathered, adapter), gathered["label"], gathered["weight"])
        distance = sum(
            ((adapter[name] - self._start[name]).square().sum() for name in adapter), torch.zeros(())
        )
        return loss + pull * distance

    def _next_rows(self) -> tuple[Tensor, Tensor]:
        """Each context's next rows in a random order without repetition, padded: [contexts, rows]."""
        index = np.zeros((len(self.positions), ROWS_PER_STEP), dtype=np.int64)
        present = np.zeros(index.shape, dtype=np.float32)
        for row, position in enumerate(self.positions):
            if len(position) <= ROWS_PER_STEP:
                chosen = position
            else:
                if len(self._left[row]) < ROWS_PER_STEP:
                    self._left[row] = self._draws[row].permutation(position)
                chosen, self._left[row] = np.split(self._left[row], [ROWS_PER_STEP])
            index[row, : len(chosen)] = chosen
            present[row, : len(chosen)] = 1.0
        return torch.from_numpy(index), torch.from_numpy(present)


class _Judge:
    """Scores stacked adapters on later rows, which are gathered once."""

    def __init__(self, model: SharedModel, rows: Rows, positions: list[npt.NDArray[np.int64]]) -> None:
        most = max(LEAST_LOOK, LOOK_BUDGET // len(positions))
        width = min(most, max(len(position) for position in positions))
        index = np.zeros((len(positions), width), dtype=np.int64)
        present = np.zeros(index.shape, dtype=np.float32)
        for row, position in enumerate(positions):
            count = min(width, len(position))
            index[row, :count] = position[np.arange(count) * len(position) // count]
            present[row, :count] = 1.0
        with torch.no_grad():
            self._gathered = model.gather(rows.take_columns(torch.from_numpy(index)))
        self._gathered["weight"] = self._gathered["weight"] * torch.from_numpy(present)
        self._model = model

    @torch.no_grad()
    def losses(self, stacked: Mapping[str, Tensor]) -> Tensor:
        """Log-loss of each context, [contexts]."""

        def one(adapter: dict[str, Tensor], gathered: dict[str, Tensor]) -> Tensor:
            return log_loss(self._model.body(gathered, adapter), gathered["label"], gathered["weight"])

        found: Tensor = vmap(one)(dict(stacked), self._gathered)
        return found


def _fit(
    program: _Program, judge: _Judge, model: SharedModel, settings: TrainingSettings
) -> list[AdapterFit]:
    stacked = program.start
    optimizer = torch.optim.Adam(list(stacked.values()), lr=settings.adapt_rate)
    mean = {name: value.clone() for name, value in stacked.items()}
    contexts = len(program.positions)
    shared = best_loss = judge.losses(stacked)
    best_step = torch.zeros(contexts, dtype=torch.int64)
    best = {name: value.clone() for name, value in stacked.items()}
    for step in range(1, settings.adapt_steps + 1):
        for name, gradient in program.gradients(stacked).items():
            stacked[name].grad = gradient
        optimizer.step()
        pace = 1.0 - min(AVERAGE, step / (step + 1))
        for name, value in stacked.items():
            mean[name].lerp_(value, pace)
        if step % LOOK_EVERY == 0 or step == settings.adapt_steps:
            losses = judge.losses(mean)
            better = losses < best_loss
            best_loss, best_step = torch.where(better, losses, best_loss), best_step.masked_fill(better, step)
            for name, value in mean.items():
                best[name][better] = value[better]
    zero = model.zero_adapter()
    return [
        AdapterFit(
            tensors=tensors if best_step[row] else zero,
            steps=int(best_step[row]),
            rows=len(program.positions[row]),
            shared_loss=float(shared[row]),
            gain=float(shared[row] - best_loss[row]),
        )
        for row, tensors in enumerate(unstack(best))
    ]
