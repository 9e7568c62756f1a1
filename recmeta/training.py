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
from recmeta.device import CPU, device_of, to_device
from recmeta.episodes.newcomers import Newcomers
from recmeta.episodes.rows import Rows
from recmeta.episodes.sampler import EpisodeSampler, MetaBatch
from recmeta.errors import SchemaError
from recmeta.later_data import LaterData, Progress, context_losses
from recmeta.meta.interface import MetaLearner
from recmeta.meta.outer.conflict import gradient_conflict
from recmeta.meta.outer.interface import OuterAggregation
from recmeta.meta.outer.registry import get_outer
from recmeta.model_folder import load_learner, load_model, save_learner, save_model, start_from
from recmeta.models.shared import ID_TABLES, ModelShape, SharedModel
from recmeta.problem import check_choices, learner_of, problem_of
from recmeta.settings import TrainingSettings

WARM_UP = 50
"""Steps in which rates rise from zero, so that the first, noisy estimates of Adam do no harm."""

FINAL_RATE = 0.05
"""Share of the rate that is left at the last step (cosine, Loshchilov & Hutter 2017)."""

PLAIN_OUTER = "per_task"
"""The outer aggregation to which it does not matter which contexts a meta-batch holds."""

CONFLICT_ROWS = 512
"""Query rows a context, the same at every look, whose gradients are compared: fewer are mostly noise."""

CONFLICT_CONTEXTS = 16
"""The largest contexts, at the most, whose gradients are compared: pairs grow with the square."""


@dataclass(frozen=True)
class TrainingReport:
    """What a training came to; losses are weighted mean log-losses."""

    steps: int
    best_step: int
    validation_loss: float
    """Mean over contexts, at the best step."""
    context_losses: dict[int, float]
    """By context index, at the best step; a context without later rows is absent."""
    learner_anew: str | None
    """Why a warm start left the meta-learner's own parameters behind; None where it did not."""
    mean_cosine: float | None
    """Between what two contexts' losses want of the dense weights, over pairs and looks; None: no pair."""
    conflicting: float | None
    """Share of those cosines that are below zero."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {**asdict(self), "context_losses": {str(k): v for k, v in self.context_losses.items()}}


class MetaTraining(LightningModule):
    """Meta-trains a `SharedModel`: all of it by the outer loop, what is fast by the inner one too."""

    def __init__(
        self,
        model: SharedModel,
        learner: MetaLearner,
        outer: OuterAggregation,
        settings: TrainingSettings,
        *,
        steps: int,
        look_at: MetaBatch | None = None,
    ) -> None:
        """Take the model to train, in place and on its device; ``averaged`` follows it as a running mean.

        ``look_at`` is a meta-batch with one task a context, whose gradients `conflicts` compares.
        """
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.learner = learner
        self.outer = outer
        self.settings = settings
        self.steps = steps
        self.look_at = look_at
        self.problem, self.start = problem_of(model, settings)
        learner.prepare(self.problem, self.start)
        self.to(model.dense_mean.device)

    def training_step(self, batch: MetaBatch, batch_idx: int) -> None:
        """Make one step of the outer loop. All randomness comes from (seed, step)."""
        step = self.global_step
        both = self.optimizers()
        assert isinstance(both, list)  # noqa: S101  (configure_optimizers gives two)
        dense, tables = both
        self._set_rates(step, dense, tables)
        dense.zero_grad()
        tables.zero_grad()
        losses, size = self._meta_losses(batch, step)
        self.outer.backward(
            losses,
            contexts_of(batch),
            shared=list(self.model.weights.values()),
            others=[*self._tables(), *self.learner.parameters()],
            extra=self.settings.table_decay * size,
        )
        tables.optimizer.step()  # not through Lightning, which would count a second global step
        dense.step()
        if self.outer.looks_back:
            self.outer.after_step(lambda: self._meta_losses(batch, step)[0])
        self._follow(step)

    def _meta_losses(self, batch: MetaBatch, step: int) -> tuple[Tensor, Tensor]:
        """Each task's meta-loss, [tasks], and the mean size of what was looked up: the same if repeated.

        Learners draw on the CPU. A number for each row is drawn where the rows are: on a GPU from another
        sequence, because to bring dropout's masks of a large batch there takes longer than the step.
        """
        draw = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        wide = draw if self.device == CPU else torch.Generator(self.device).manual_seed(draw.initial_seed())
        support = (
            self.model.gather(self._hide_ids(batch["support"], wide)) if self.learner.uses_support else {}
        )
        query = self.model.gather(self._hide_ids(batch["query"], wide))
        losses = self.learner.meta_losses(
            self.problem, self.start, support, query | self._masks(query, wide), generator=draw
        )
        return losses, query["size"].mean()

    def configure_optimizers(self) -> list[Optimizer]:
        """AdamW for all that is dense; for tables an Adam that moves only the rows that a batch looked up."""
        settings = self.settings
        rates = (settings.table_rate if name in ID_TABLES else settings.rate for name in self.model.tables)
        tables = [{"params": [table], "lr": rate} for table, rate in zip(self._tables(), rates, strict=True)]
        dense: list[dict[str, Any]] = [{"params": list(self.model.weights.parameters())}]
        learnt = [*self.learner.parameters(), *self.outer.parameters()]
        if learnt:
            dense.append({"params": learnt, "lr": settings.learner_rate, "weight_decay": 0.0})
        return [
            torch.optim.AdamW(dense, lr=settings.rate, weight_decay=settings.weight_decay),
            torch.optim.SparseAdam(tables),
        ]

    @torch.enable_grad()
    def conflicts(self) -> list[tuple[int, int, float]]:
        """Cosines between contexts' gradients over the dense weights; nothing of the training changes."""
        if self.look_at is None:
            return []
        look_at = {part: to_device(columns, self.device) for part, columns in self.look_at.items()}
        support, query = (
            self.model.gather(look_at[part]) if part == "query" or self.learner.uses_support else {}
            for part in ("support", "query")
        )
        losses = self.learner.meta_losses(
            self.problem, self.start, support, query, generator=torch.Generator().manual_seed(0)
        )
        found = gradient_conflict(losses, contexts_of(look_at), list(self.model.weights.values()))
        return [(first, second, cosine) for (first, second), cosine in found.items()]

    def _tables(self) -> list[Tensor]:
        return [getattr(self.model, name) for name in self.model.tables]

    def _hide_ids(self, columns: dict[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
        """Make a share of ids unknown, so that the unknown's vector is trained on ordinary rows.

        A context that pretends to be new is unknown in all its rows.
        """
        hidden = {}
        for name in ("user", "item", "context"):
            drawn = torch.rand(columns[name].shape, generator=draw, device=draw.device)
            kept = drawn >= self.settings.unknown_share
            hidden[name] = columns[name] * kept
        if "newcomer" in columns:
            hidden["context"] = hidden["context"] * ~columns["newcomer"]
        return columns | hidden

    def _masks(self, gathered: Mapping[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
        """Draw dropout's masks beforehand: nothing random may happen inside vmap."""
        kept = 1.0 - self.settings.dropout
        if kept == 1.0:
            return {}
        leading = gathered["offset"].shape
        return {
            f"mask{layer}": (torch.rand(*leading, size, generator=draw, device=draw.device) < kept) / kept
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


def contexts_of(batch: MetaBatch) -> Tensor:
    """Return each task's context, int64 [tasks], as the rows had it before ids were hidden."""
    return batch["query"]["context"][:, 0]


def train(
    training: Rows,
    validation: Rows,
    shape: ModelShape,
    settings: TrainingSettings,
    folder: Path,
    *,
    warm_from: Path | None = None,
    warm_contexts: Tensor | None = None,
    content: Tensor | None = None,
    newcomers: Newcomers | None = None,
    progress: Progress | None = None,
) -> TrainingReport:
    """Meta-train a shared model and write it to ``folder``.

    Writes ``model.safetensors``, ``model.json`` (the shape and the report), ``metrics.csv`` (losses at every
    look), ``gradients.csv`` (conflicts between contexts at every look) and, where the meta-learner learns
    more than weights, ``learner.safetensors`` (as it was at the step that was kept). The same
    rows, settings and earlier weights end in the same bytes; so does a run that was killed and is
    called again, which goes on from the last checkpoint in ``folder``. With ``settings.accelerator = "gpu"``
    that holds on one kind of GPU; all files are as those of a CPU and can be read without a GPU.

    Args:
        training: rows to learn from.
        validation: strictly later rows; they decide when to stop and which weights are kept. Where
            there are none, the training rows decide.
        warm_from: folder of an earlier model to start from, with ``settings.warm_steps`` instead of
            ``settings.max_steps``; its tables may be smaller, all else must be of the same shape. It may
            have been learnt in another way: only what a meta-learner of the same name and shapes learnt
            of its own is taken along. What an outer aggregation learns starts anew.
        warm_contexts: for each context index (0, the unknown, too) the index it had in the earlier model, 0
            where it had none, int64 [contexts]; left out, all are where they were.
        content: categories of every item, int64 [items, K]; left out, those that training rows tell.
        newcomers: how training rows look if their context is new; ``settings.newcomer_share`` of the tasks
            pretend that. Left out, none do.
        progress: called every few steps with ("train", done, total).

    Raises:
        SchemaError: rows that do not fit the shape, or earlier weights that do not.
        DeviceError: a GPU is asked for, and torch sees none.
        InputError: an unknown name among the settings, settings that do not fit each other, no context
            with enough rows to learn from, or fewer tasks than contexts where every one must be met.
    """
    check_choices(settings)
    device = device_of(settings)
    for part, rows in (("training", training), ("validation", validation)):
        _check_fit(part, rows.check(), shape)
    learner = learner_of(settings)
    outer = get_outer(
        settings.outer,
        contexts=shape.contexts - 1,
        sizes=torch.bincount(training.context, minlength=shape.contexts)[1:],
        steps_per_epoch=settings.check_every,
        seed=settings.seed,
    )
    steps = settings.max_steps if warm_from is None else settings.warm_steps
    sampler = EpisodeSampler(
        training,
        tasks=settings.tasks,
        support=settings.support if learner.uses_support else 0,
        query=settings.query if learner.uses_support else settings.rows_per_task,
        steps=steps,
        seed=settings.seed,
        labels=training.categories[:, 0] if settings.narrow_to == "categories" else None,
        every_context=settings.outer != PLAIN_OUTER,
        newcomers=newcomers,
        newcomer_share=settings.newcomer_share,
    )
    with _deterministic(settings.threads), _quiet():
        model = _initial_model(training, shape, settings, warm_from, warm_contexts, content).to(device)
        look_at = sampler.one_of_each(CONFLICT_ROWS, CONFLICT_CONTEXTS)
        module = MetaTraining(model, learner, outer, settings, steps=steps, look_at=look_at)
        learner_anew = None if warm_from is None else load_learner(learner, warm_from)
        start = {**model.state_dict(), **learner.state_dict()}
        if newcomers is not None:
            start["newcomers"] = newcomers.values
        digest = _digest(start, shape, settings, training, validation)
        checkpoint = folder / f"resume-{digest}.safetensors"
        later = LaterData(training, validation, settings, checkpoint, progress)
        _fit(module, sampler, later, folder)
        model.to(CPU).load_state_dict(later.best)
        _never_met_is_unknown(model, training)
        losses = context_losses(model, validation if len(validation) else training)
    mean_cosine, conflicting = later.conflict() or (None, None)
    report = TrainingReport(
        steps=later.looks[-1]["step"],
        best_step=later.best_step,
        validation_loss=later.best_loss,
        context_losses=losses,
        learner_anew=learner_anew,
        mean_cosine=mean_cosine,
        conflicting=conflicting,
    )
    write_text(folder / "metrics.csv", later.metrics_csv())
    write_text(folder / "gradients.csv", later.gradients_csv())
    save_learner(learner.name, later.best_learner, folder)
    save_model(model, folder, report.to_json())
    for leftover in folder.glob("resume-*.safetensors"):
        leftover.unlink()
    return report


def _fit(module: MetaTraining, sampler: EpisodeSampler, later: LaterData, folder: Path) -> None:
    trainer = Trainer(
        accelerator="cpu" if module.device == CPU else "cuda",
        devices=1 if module.device == CPU else [module.device.index],
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
    warm_contexts: Tensor | None,
    content: Tensor | None,
) -> SharedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = SharedModel(shape)
    model.learn_scales(training.dense)
    if warm_from is not None:
        start_from(model, load_model(warm_from), warm_contexts)
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


def _digest(start: Mapping[str, Tensor], shape: ModelShape, settings: TrainingSettings, *parts: Rows) -> str:
    """Short digest of all that decides a training's result: a checkpoint of another one is not resumed."""
    hashed = hashlib.sha256()
    for part in parts:
        for column in part.columns().values():
            hashed.update(np.ascontiguousarray(column.numpy()).data)
    for value in start.values():
        hashed.update(np.ascontiguousarray(value.cpu().numpy()).data)
    return digest_of(hashed.hexdigest(), shape.to_json(), settings.model_dump(mode="json"))[:16]


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
