"""Looks at later data while a model is trained: keep the best weights, stop in time, save for a resume.

This module judges; it must never know how a training step is made.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from recmeta.device import copied_to_cpu
from recmeta.episodes.rows import Rows, evenly
from recmeta.models.prediction import log_loss, predict_logits
from recmeta.models.shared import SharedModel
from recmeta.settings import TrainingSettings

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

LOOK_ROWS = {"training": 2_000, "validation": 10_000}
"""Rows a context that a look scores, at the most: training data only show overfitting, later data decide."""

LOOKS_PER_CHECKPOINT = 4
"""A killed run repeats at most this many looks' worth of steps."""

PROGRESS_EVERY = 10
"""Steps between two calls of a progress function."""


class Judged(Protocol):
    """What this callback needs of the module that is trained."""

    averaged: SharedModel
    learner: nn.Module
    steps: int

    def follow_tables(self) -> None:
        """Bring the tables of ``averaged`` up to date."""

    def conflicts(self) -> list[tuple[int, int, float]]:
        """Pairs of contexts, and the cosine between what their losses want of the dense weights."""


class LaterData(Callback):
    """Looks at later data now and then: keeps the best weights, and stops when patience ends."""

    def __init__(
        self,
        training: Rows,
        validation: Rows,
        settings: TrainingSettings,
        checkpoint: Path,
        progress: Progress | None,
    ) -> None:
        """Take the rows to look at; ``checkpoint`` is where a killed run will find its state."""
        given = {"training": training, "validation": validation}
        self.parts = {part: _sample(rows, LOOK_ROWS[part]) for part, rows in given.items()}
        self.settings = settings
        self.checkpoint = checkpoint
        self.progress = progress
        self.best: dict[str, Tensor] = {}
        self.best_learner: dict[str, Tensor] = {}
        self.best_loss = math.inf
        self.best_step = 0
        self.stale = 0
        self.looks: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the first weights: a night that learns nothing better keeps what it started from."""
        if not self.looks:  # a resumed run has looked already
            self.look(cast(Judged, pl_module), 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report, look and save, each at its own pace."""
        module = cast(Judged, pl_module)
        step = trainer.global_step
        if step % self.settings.check_every == 0 or step == module.steps:
            self.look(module, step)
            if self.stale >= self.settings.patience:
                trainer.should_stop = True
            elif len(self.looks) % LOOKS_PER_CHECKPOINT == 0:
                trainer.save_checkpoint(self.checkpoint)
        if self.progress and (step % PROGRESS_EVERY == 0 or step == module.steps):
            self.progress("train", step, module.steps)

    def look(self, module: Judged, step: int) -> None:
        """Judge the running mean of the weights on later data."""
        module.follow_tables()
        losses = {part: context_losses(module.averaged, rows) for part, rows in self.parts.items()}
        judged = losses["validation"] or losses["training"]
        loss = sum(judged.values()) / len(judged)
        self.looks.append(
            {
                "step": step,
                "losses": {part: list(by.items()) for part, by in losses.items()},
                "conflicts": module.conflicts(),
            }
        )
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.stale = loss, step, 0
            self.best = copied_to_cpu(module.averaged.state_dict())
            self.best_learner = copied_to_cpu(module.learner.state_dict())
        else:
            self.stale += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        names = ("best", "best_learner", "best_loss", "best_step", "stale", "looks")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def metrics_csv(self) -> str:
        """Every look as CSV: step, part, context, log_loss. Training far below validation is overfitting."""
        return _csv(
            ("step", "part", "context", "log_loss"),
            (
                (look["step"], part, context, f"{loss:.6f}")
                for look in self.looks
                for part, losses in look["losses"].items()
                for context, loss in losses
            ),
        )

    def gradients_csv(self) -> str:
        """Every look as CSV: step, context_a, context_b, cosine. Below zero two contexts pull apart."""
        return _csv(
            ("step", "context_a", "context_b", "cosine"),
            (
                (look["step"], first, second, f"{cosine:.6f}")
                for look in self.looks
                for first, second, cosine in look["conflicts"]
            ),
        )

    def conflict(self) -> tuple[float, float] | None:
        """Mean cosine, and share of cosines below zero, over pairs and all looks after the first step."""
        found = [cosine for look in self.looks if look["step"] for *_, cosine in look["conflicts"]]
        if not found:
            return None
        return sum(found) / len(found), sum(cosine < 0 for cosine in found) / len(found)


def context_losses(model: SharedModel, rows: Rows) -> dict[int, float]:
    """Return the log-loss of each context that has rows, by context index."""
    logits = torch.from_numpy(predict_logits(model, rows))
    losses = {}
    for context in torch.unique(rows.context).tolist():
        of = rows.context == context
        losses[int(context)] = float(log_loss(logits[of], rows.label[of].double(), rows.weight[of].double()))
    return losses


def _sample(rows: Rows, most: int) -> Rows:
    """At most ``most`` rows a context, evenly spread over the rows as they come."""
    kept = []
    for context in torch.unique(rows.context).tolist():
        of = torch.nonzero(rows.context == context).flatten()
        kept.append(of[evenly(len(of), most)])
    return rows.take(torch.cat(kept)) if kept else rows


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
