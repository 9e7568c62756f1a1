"""Meta-training of the shared model: a LightningModule, and `train`, which runs it.

The whole training step stands on one screen, in `MetaTraining.training_step`. This module reads
rows and writes one folder; it must never know where rows come from or whether the result deserves
to serve.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from recmeta.artifacts import digest_of, write_text
from recmeta.checkpoints import SafeCheckpoints
from recmeta.episodes.rows import Rows
from recmeta.episodes.sampler import EpisodeSampler, MetaBatch
from recmeta.errors import SchemaError
from recmeta.later_data import LaterData, Progress, context_losses
from recmeta.meta.interface import MetaLearner, Options, Problem
from recmeta.meta.registry import get_meta_learner
from recmeta.model_folder import load_model, save_model, start_from
from recmeta.models.prediction import log_loss
from recmeta.models.shared import ID_TABLES, ModelShape, SharedModel
from recmeta.settings import TrainingSettings

WARM_UP = 50
"""Steps in which rates rise from zero, so that the first, noisy estimates of Adam do no harm."""

FINAL_RATE = 0.05
"""Share of the rate that is left at the last step (cosine, Loshchilov & Hutter 2017)."""


@dataclass(frozen=True)
class TrainingReport:
    """What a training came to; losses are weighted mean log-losses."""

    steps: int
    best_step: int
    validation_loss: float
    """Mean over contexts, at the best step."""
    context_losses: dict[int, float]
    """By context index, at the best step; a context without later rows is absent."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {**asdict(self), "context_losses": {str(k): v for k, v in self.context_losses.items()}}


class MetaTraining(LightningModule):
    """Meta-trains a `SharedModel`: tables and body by the outer loop, adapters by the inner one."""

    def __init__(
        self, model: SharedModel, learner: MetaLearner, settings: TrainingSettings, *, steps: int
    ) -> None:
        """Take the model to train, in place; ``averaged`` follows it as a running mean."""
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.learner = learner
        self.settings = settings
        self.steps = steps
        self.start = model.starting_adapter(settings.seed)
        self.problem = Problem(loss=self._loss)
        learner.prepare(self.problem, self.start)

    def training_step(self, batch: MetaBatch, batch_idx: int) -> None:
        """Make one step of the outer loop. All randomness comes from (seed, step)."""
        step = self.global_step
        draw = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        support = (
            self.model.gather(self._hide_ids(batch["support"], draw)) if self.learner.uses_support else {}
        )
        query = self.model.gather(self._hide_ids(batch["query"], draw))
        losses = self.learner.meta_losses(
            self.problem, self.start, support, query | self._masks(query, draw), generator=draw
        )
        penalty = self.settings.table_decay * query["size"].mean()
        both = self.optimizers()
        assert isinstance(both, list)  # noqa: S101  (configure_optimizers gives two)
        dense, tables = both
        self._set_rates(step, dense, tables)
        dense.zero_grad()
        tables.zero_grad()
        self.manual_backward(losses.mean() + penalty)
        tables.optimizer.step()  # not through Lightning, which would count a second global step
        dense.step()
        self._follow(step)

    def configure_optimizers(self) -> list[Optimizer]:
        """AdamW for the body; for tables an Adam that moves only the rows that a batch looked up."""
        settings = self.settings
        tables = [
            {
                "params": [getattr(self.model, name)],
                "lr": settings.table_rate if name in ID_TABLES else settings.rate,
            }
            for name in self.model.tables
        ]
        return [
            torch.optim.AdamW(
                self.model.weights.parameters(), lr=settings.rate, weight_decay=settings.weight_decay
            ),
            torch.optim.SparseAdam(tables),
        ]

    def _loss(self, adapter: Mapping[str, Tensor], gathered: Mapping[str, Tensor]) -> Tensor:
        return log_loss(self.model.body(gathered, adapter), gathered["label"], gathered["weight"])

    def _hide_ids(self, columns: dict[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
        """Make a share of ids unknown, so that the unknown's vector is trained on ordinary rows."""
        hidden = {}
        for name in ("user", "item", "context"):
            kept = torch.rand(columns[name].shape, generator=draw) >= self.settings.unknown_share
            hidden[name] = columns[name] * kept
        return columns | hidden

    def _masks(self, gathered: Mapping[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
        """Draw dropout's masks beforehand: nothing random may happen inside vmap."""
        kept = 1.0 - self.settings.dropout
        if kept == 1.0:
            return {}
        leading = gathered["offset"].shape
        return {
            f"mask{layer}": (torch.rand(*leading, size, generator=draw) < kept) / kept
            for layer, size in enumerate(self.model.shape.hidden)
        }

    def _set_rates(self, step: int, *optimizers: Any) -> None:
        done = step / self.steps
        cosine = FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * done))
        factor = min(1.0, (step + 1) / WARM_UP) * cosine
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group.setdefault("full_rate", group["lr"]) * factor

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Move the running mean of the body; early on it is short, to forget the first weights."""
        pace = 1.0 - min(self.settings.average, (step + 1) / (step + 10))
        for name, weight in self.model.weights.items():
            self.averaged.weights[name].lerp_(weight, pace)

    @torch.no_grad()
    def follow_tables(self) -> None:
        """Bring the tables of ``averaged`` up to date: before a look, because it reads whole tables."""
        for name in self.model.tables:
            getattr(self.averaged, name).copy_(getattr(self.model, name))


def train(
    training: Rows,
    validation: Rows,
    shape: ModelShape,
    settings: TrainingSettings,
    folder: Path,
    *,
    warm_from: Path | None = None,
    content: Tensor | None = None,
    progress: Progress | None = None,
) -> TrainingReport:
    """Meta-train a shared model and write it to ``folder``.

    Writes ``model.safetensors``, ``model.json`` (the shape and the report) and ``metrics.csv``. The same
    rows, settings and earlier weights end in the same bytes; so does a run that was killed and is
    called again, which goes on from the last checkpoint in ``folder``.

    Args:
        training: rows to learn from.
        validation: strictly later rows; they decide when to stop and which weights are kept. Where
            there are none, the training rows decide.
        warm_from: folder of an earlier model to start from, with ``settings.warm_steps`` instead of
            ``settings.max_steps``; its tables may be smaller, all else must be of the same shape.
        content: categories of every item, int64 [items, K]; left out, those that training rows tell.
        progress: called every few steps with ("train", done, total).

    Raises:
        SchemaError: rows that do not fit the shape, or earlier weights that do not.
        InputError: no context has enough rows to learn from.
    """
    for part, rows in (("training", training), ("validation", validation)):
        _check_fit(part, rows.check(), shape)
    learner = get_meta_learner(
        settings.meta_learner, Options(inner_steps=settings.inner_steps, inner_rate=settings.inner_rate)
    )
    steps = settings.max_steps if warm_from is None else settings.warm_steps
    sampler = EpisodeSampler(
        training,
        tasks=settings.tasks,
        support=settings.support if learner.uses_support else 0,
        query=settings.query if learner.uses_support else settings.rows_per_task,
        steps=steps,
        seed=settings.seed,
    )
    with _deterministic(settings.threads), _quiet():
        model = _initial_model(training, shape, settings, warm_from, content)
        checkpoint = folder / f"resume-{_digest(model, settings, training, validation)}.safetensors"
        later = LaterData(training, validation, settings, checkpoint, progress)
        _fit(MetaTraining(model, learner, settings, steps=steps), sampler, later, folder)
        model.load_state_dict(later.best)
        _never_met_is_unknown(model, training)
        losses = context_losses(model, validation if len(validation) else training)
    report = TrainingReport(
        steps=later.looks[-1]["step"],
        best_step=later.best_step,
        validation_loss=later.best_loss,
        context_losses=losses,
    )
    write_text(folder / "metrics.csv", later.metrics_csv())
    save_model(model, folder, report.to_json())
    for leftover in folder.glob("resume-*.safetensors"):
        leftover.unlink()
    return report


def _fit(module: MetaTraining, sampler: EpisodeSampler, later: LaterData, folder: Path) -> None:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[later],
        plugins=[SafeCheckpoints()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    resume = later.checkpoint if later.checkpoint.exists() else None
    trainer.fit(module, train_dataloaders=sampler, ckpt_path=resume)


def _initial_model(
    training: Rows,
    shape: ModelShape,
    settings: TrainingSettings,
    warm_from: Path | None,
    content: Tensor | None,
) -> SharedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = SharedModel(shape)
    model.learn_scales(training.dense)
    if warm_from is not None:
        start_from(model, load_model(warm_from))
    if content is None:
        model.learn_item_categories(training.item, training.categories)
    else:
        model.learn_item_categories(torch.arange(len(content)), content)
    return model


@torch.no_grad()
def _never_met_is_unknown(model: SharedModel, training: Rows) -> None:
    """Give users and items that no training row holds the unknown's vector, instead of the initial noise.

    They stand in the tables because they will be met: a new item in a history is its content.
    """
    for table, met in (
        (model.user_table, training.user),
        (model.item_table, torch.cat([training.item, training.history.flatten()])),
    ):
        never = torch.ones(len(table), dtype=torch.bool)
        never[met] = False
        table[never] = table[0].clone()


def _check_fit(part: str, rows: Rows, shape: ModelShape) -> None:
    if rows.dense.shape[1] != shape.features:
        raise SchemaError(f"{part} rows: expected {shape.features} features, found {rows.dense.shape[1]}")
    for name, size in (
        ("user", shape.users),
        ("item", shape.items),
        ("history", shape.items),
        ("categories", shape.categories),
        ("context", shape.contexts),
    ):
        column: Tensor = getattr(rows, name)
        if column.numel() and int(column.max()) >= size:
            raise SchemaError(
                f"{part} rows, column {name}: expected indices below {size}, found {int(column.max())}"
            )


def _digest(model: SharedModel, settings: TrainingSettings, *parts: Rows) -> str:
    """Short digest of all that decides a training's result: a checkpoint of another one is not resumed."""
    hashed = hashlib.sha256()
    for part in parts:
        for column in part.columns().values():
            hashed.update(np.ascontiguousarray(column.numpy()).data)
    for value in model.state_dict().values():
        hashed.update(np.ascontiguousarray(value.numpy()).data)
    return digest_of(hashed.hexdigest(), model.shape.to_json(), settings.model_dump(mode="json"))[:16]


@contextmanager
def _deterministic(threads: int) -> Iterator[None]:
    """Within it the same program on the same inputs gives the same bytes."""
    memory: Any = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        memory.fill_uninitialized_memory,
    )
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a debugging aid that writes every new tensor twice
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = before[2]


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's remarks on devices and data loaders do not concern our users."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated", FutureWarning)  # Lightning 2.6
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
