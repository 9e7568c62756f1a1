"""Adapters from data: all contexts at once, each stopped where later data likes it best.

This module reads a model and rows; it must never know which adapters deserve to serve.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import grad, vmap

from recmeta.device import CPU, device_of, to_device
from recmeta.episodes.rows import Rows, evenly
from recmeta.errors import InputError
from recmeta.meta.domain_regularization import regularized_direction
from recmeta.meta.interface import Problem
from recmeta.model_folder import load_learner
from recmeta.models.adapters import Adapter, stack, unstack
from recmeta.models.prediction import log_loss
from recmeta.models.shared import SharedModel
from recmeta.problem import check_choices, learner_of, problem_of
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

HELPERS = 3
"""Other contexts that domain regularization tries for a context in one step; each costs two gradients."""


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
    *,
    learner_from: Path | None = None,
) -> dict[int, AdapterFit]:
    """Fit an adapter for each of ``contexts`` in one batched program, and return them by context index.

    With ``adapter_fit = "proximal"`` each step draws rows of every context, takes all gradients under
    ``vmap``, and moves the stacked adapters by Adam, which acts on each number alone, so that contexts
    do not touch one another. The objective is the mean log-loss plus ``adapt_proximal / rows`` times the
    squared distance from the start: few rows move little. The draws of a context depend on ``(seed,
    context)`` only, not on its company.

    With ``"domain_regularization"`` the gradient of the log-loss makes way for the direction of
    `regularized_direction`, with the other ``contexts`` of this call as helpers. So the company matters,
    and with it how many contexts ``adapt_chunk`` puts together.

    With ``"meta_learner"`` the meta-learner adapts as it learnt to, on the latest `ROWS_PER_STEP` training
    rows of each context.

    Later data choose the step; the shared model itself is among the choices.

    All of it runs on ``settings.accelerator``; the adapters returned lie on the CPU.

    Args:
        model: is not changed.
        training: rows to fit; contexts may differ in size by any factor, and may have none.
        validation: later rows; a context without any gets the zero adapter.
        contexts: indices, as in ``Rows.context``.
        settings: how to fit; ``meta_learner`` and ``fast`` as in the training of ``model``.
        learner_from: folder of that training; needed by meta-learners that learn more than weights.

    Raises:
        DeviceError: a GPU is asked for, and torch sees none.
        InputError: a context stands twice, or what the meta-learner learnt is not in ``learner_from``.
    """
    check_choices(settings)
    device = device_of(settings)
    if len(set(contexts)) != len(contexts):
        raise InputError(f"adaptation: expected each context once, found {list(contexts)}")
    own, later = _positions(training, contexts), _positions(validation, contexts)
    fitted = [context for context in contexts if len(own[context]) and len(later[context])]
    nothing = AdapterFit(model.zero_adapter(), 0, 0, 0.0, 0.0)
    fits = {context: nothing for context in contexts if context not in fitted}
    if fitted:
        if device != CPU:
            model = copy.deepcopy(model).to(device)
        before = model.training, torch.get_num_threads()
        model.eval()
        torch.set_num_threads(settings.threads)
        try:
            judge = _Judge(model, validation, [later[context] for context in fitted])
            rows = [own[context] for context in fitted]
            if settings.adapter_fit == "meta_learner":
                found = _by_learner(judge, model, training, rows, settings, learner_from)
            else:
                found = _fit(_Program(model, training, rows, fitted, settings), judge, model, settings)
            fits |= dict(zip(fitted, found, strict=True))
        finally:
            model.train(before[0])
            torch.set_num_threads(before[1])
    return {context: fits[context] for context in contexts}


def adapt_few(model: SharedModel, rows: Rows, settings: TrainingSettings) -> Adapter:
    """Fit an adapter to a few rows of one surface, without later rows to judge it; always on the CPU.

    The proximal objective of `adapt` on all rows at once, ``adapt_steps`` steps and the running mean of
    the adapter: what keeps it from harm with few rows is the pull to the shared model alone.

    Args:
        model: is not changed.
        rows: at least one with weight; the context's index is read as it stands.
        settings: how to fit.
    """
    positions = [np.flatnonzero((rows.weight > 0).numpy()).astype(np.int64)]
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    training = model.training
    model.eval()
    try:
        program = _Program(model, rows, positions, [0], settings)
        stacked = program.start
        optimizer = torch.optim.Adam(list(stacked.values()), lr=settings.adapt_rate)
        mean = {name: value.clone() for name, value in stacked.items()}
        for step in range(1, settings.adapt_steps + 1):
            _step(program, optimizer, stacked, mean, step)
    finally:
        model.train(training)
        torch.set_num_threads(threads)
    return unstack(mean)[0]


def _positions(rows: Rows, contexts: Sequence[int]) -> dict[int, npt.NDArray[np.int64]]:
    """Where the rows of each context lie, as far as they have weight: one look at the rows for all."""
    counted = np.flatnonzero((rows.weight > 0).numpy()).astype(np.int64)
    context = rows.context.numpy()[counted]
    order = np.argsort(context, kind="stable")
    ends = np.searchsorted(context, [[number, number + 1] for number in contexts], sorter=order)
    return {number: counted[order[start:end]] for number, (start, end) in zip(contexts, ends, strict=True)}


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
        self._gathered: dict[str, Tensor] | None = None
        self._device = model.dense_mean.device
        self._pull = torch.tensor(
            [settings.adapt_proximal / len(position) for position in positions], device=self._device
        )
        self._gradients = vmap(grad(self._objective), in_dims=(0, 0, 0))
        self._helped = settings.adapter_fit == "domain_regularization"
        self._problem = Problem(loss=self._loss)
        self._rate = settings.inner_rate
        self._draw = torch.Generator().manual_seed(settings.seed)

    @property
    def start(self) -> Adapter:
        """Where every context starts, stacked."""
        return stack([self._start] * len(self.positions))

    def gradients(self, stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of each context's objective on its next rows."""
        with torch.no_grad():
            gathered = self._gather()
            if self._helped:
                return self._directions(stacked, gathered)
            found: dict[str, Tensor] = self._gradients(dict(stacked), gathered, self._pull)
        return found

    def _gather(self) -> dict[str, Tensor]:
        """What the shared model reads of the next rows; once for all steps where all rows fit into one."""
        if self._gathered is None:
            index, present = self._next_rows()
            gathered = self._model.gather(to_device(self._rows.take_columns(index), self._device))
            gathered["weight"] = gathered["weight"] * present.to(self._device)
            if max(len(position) for position in self.positions) > ROWS_PER_STEP:
                return gathered
            self._gathered = gathered
        return self._gathered

    def _directions(self, stacked: Mapping[str, Tensor], gathered: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What helpers and own rows agree on; the pull to the start is each context's own affair."""
        directions = regularized_direction(
            self._problem, stacked, gathered, rate=self._rate, helpers=HELPERS, generator=self._draw
        )
        for name, value in stacked.items():
            pull = self._pull.reshape(-1, *[1] * (value.dim() - 1))
            directions[name] = directions[name] + 2.0 * pull * (value.detach() - self._start[name])
        return directions

    def _loss(self, adapter: Mapping[str, Tensor], gathered: Mapping[str, Tensor]) -> Tensor:
        return log_loss(self._model.body(gathered, adapter), gathered["label"], gathered["weight"])

    def _objective(self, adapter: dict[str, Tensor], gathered: dict[str, Tensor], pull: Tensor) -> Tensor:
        distance = sum(
            ((adapter[name] - self._start[name]).square().sum() for name in adapter), torch.zeros_like(pull)
        )
        return self._loss(adapter, gathered) + pull * distance

    def _next_rows(self) -> tuple[Tensor, Tensor]:
        """Each context's next rows in a random order without repetition, padded: [contexts, rows].

        No wider than the largest of them needs: a new surface has a handful of rows.
        """
        width = min(ROWS_PER_STEP, max(len(position) for position in self.positions))
        index = np.zeros((len(self.positions), width), dtype=np.int64)
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
        spread = [position[evenly(len(position), width).numpy()] for position in positions]
        with torch.no_grad():
            self._gathered = _gathered(model, rows, spread)
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
    best_step = torch.zeros(contexts, dtype=torch.int64, device=shared.device)
    best = {name: value.clone() for name, value in stacked.items()}
    for step in range(1, settings.adapt_steps + 1):
        _step(program, optimizer, stacked, mean, step)
        if step % LOOK_EVERY == 0 or step == settings.adapt_steps:
            losses = judge.losses(mean)
            better = losses < best_loss
            best_loss, best_step = torch.where(better, losses, best_loss), best_step.masked_fill(better, step)
            for name, value in mean.items():
                best[name][better] = value[better]
    return _as_fits(model, program.positions, best, best_step, shared, best_loss)


def _step(
    program: _Program, optimizer: torch.optim.Optimizer, stacked: Adapter, mean: Adapter, step: int
) -> None:
    """Move the stacked adapters once, and their running mean after them."""
    for name, gradient in program.gradients(stacked).items():
        stacked[name].grad = gradient
    optimizer.step()
    pace = 1.0 - min(AVERAGE, step / (step + 1))
    for name, value in stacked.items():
        mean[name].lerp_(value, pace)


def _by_learner(
    judge: _Judge,
    model: SharedModel,
    rows: Rows,
    positions: list[npt.NDArray[np.int64]],
    settings: TrainingSettings,
    learner_from: Path | None,
) -> list[AdapterFit]:
    """Adapt all contexts by the meta-learner, in one batched program."""
    learner = learner_of(settings)
    problem, weights = problem_of(model, settings)
    learner.prepare(problem, weights)
    missing = load_learner(learner, learner_from)
    if missing:
        raise InputError(
            f"adaptation by {learner.name}: expected what it learnt in training, found {missing}"
        )
    learner.to(model.dense_mean.device)
    time = rows.time.numpy()
    latest = [position[np.argsort(time[position], kind="stable")[-ROWS_PER_STEP:]] for position in positions]
    start = stack([model.starting_adapter(settings.seed)] * len(positions))
    shared = judge.losses(start)
    with torch.no_grad():
        found = {**start, **learner.adapt(problem, weights, _gathered(model, rows, latest))}
    losses = judge.losses(found)
    steps = torch.where(losses < shared, learner.options.inner_steps, 0)
    return _as_fits(model, positions, found, steps, shared, torch.minimum(losses, shared))


def _gathered(model: SharedModel, rows: Rows, positions: list[npt.NDArray[np.int64]]) -> dict[str, Tensor]:
    """Gather rows, as many as the longest of ``positions`` has; what pads the others weighs nothing."""
    index = np.zeros((len(positions), max(map(len, positions))), dtype=np.int64)
    present = np.zeros(index.shape, dtype=np.float32)
    for row, position in enumerate(positions):
        index[row, : len(position)] = position
        present[row, : len(position)] = 1.0
    device = model.dense_mean.device
    gathered = model.gather(to_device(rows.take_columns(torch.from_numpy(index)), device))
    gathered["weight"] = gathered["weight"] * torch.from_numpy(present).to(device)
    return gathered


def _as_fits(
    model: SharedModel,
    positions: list[npt.NDArray[np.int64]],
    best: Mapping[str, Tensor],
    steps: Tensor,
    shared: Tensor,
    losses: Tensor,
) -> list[AdapterFit]:
    """What was best for each context: ``steps`` of 0 say that nothing beat the shared model."""
    zero = to_device(model.zero_adapter(), CPU)
    best, steps, shared, losses = to_device(best, CPU), steps.cpu(), shared.cpu(), losses.cpu()
    return [
        AdapterFit(
            tensors=tensors if steps[row] else zero,
            steps=int(steps[row]),
            rows=len(positions[row]),
            shared_loss=float(shared[row]),
            gain=float(shared[row] - losses[row]),
        )
        for row, tensors in enumerate(unstack(best))
    ]
