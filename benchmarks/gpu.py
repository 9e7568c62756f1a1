"""Meta-training and adapters on a GPU: whether all of it runs there, ends where a CPU ends, and pays.

    python benchmarks/gpu.py --checks                      # needs a CUDA device; exit code 1 if a check fails
    python benchmarks/gpu.py --timings --out benchmarks/gpu.md

Checks, on a tiny model, in ``--workers`` processes that share the GPU:

- every pair of a meta-learner and an outer aggregation, of a meta-learner and a backbone, and of an outer
  aggregation and a backbone (the third by its default) is trained some steps;
- every meta-learner, outer aggregation, backbone and way to fit adapters ends near where a CPU ends: without
  dropout and hidden ids, whose draws differ between devices, losses differ by less than ``CLOSE``; two
  outer aggregations that draw are left out;
- each of these, and draws too, twice on the GPU, the second time killed and resumed, ends in the same bytes.

Timings: wall seconds of a whole training step (batch, its way to the device, forward, backward, optimizers)
with one CPU thread, the setting's default, with all cores, and on the GPU, side by side in one process;
median over steps after the first; and how long of a step on the GPU is the batch, made on the CPU, and its
way. The same for fitting adapters, a whole call.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from recmeta.adaptation import AdapterFit, adapt
from recmeta.device import device_of
from recmeta.episodes.rows import Rows
from recmeta.episodes.sampler import EpisodeSampler
from recmeta.meta.outer.registry import OUTER, get_outer
from recmeta.meta.registry import META_LEARNERS
from recmeta.model_folder import load_model
from recmeta.models.backbones.registry import BACKBONES
from recmeta.models.shared import ModelShape, SharedModel
from recmeta.problem import learner_of
from recmeta.settings import TrainingSettings
from recmeta.training import MetaTraining, TrainingReport, train

CLOSE = 2e-3
"""Log-loss: rounding grows along a training; a wrong device or a wrong number is far beyond."""

DRAWS = ("graddrop", "random")
"""Outer aggregations that draw on the device: no two devices draw the same."""

DAY = 86_400_000_000

TINY_SHAPE = ModelShape(
    features=6, users=21, items=31, categories=4, contexts=4, history_length=5,
    embedding_size=2, context_size=2, hidden=(8, 4), rank=2,
)  # fmt: skip
TINY = TrainingSettings(
    hidden=(8, 4), embedding_size=2, adapter_rank=2, tasks=4, support=8, query=8, rows_per_task=16,
    inner_steps=2, max_steps=3, check_every=3, patience=100, adapt_steps=10, rate=3e-2, table_rate=1e-2,
)  # fmt: skip

NIGHT = ModelShape(features=85, users=5000, items=5000, categories=500, contexts=6, history_length=20)
MANY = {"tasks": 1000}
LARGE = {"embedding_size": 64, "hidden": (1024, 512)}


def make_rows(shape: ModelShape, each: int, *, seed: int) -> Rows:
    """``each`` rows of every context, whose labels follow two dense features."""
    draw = np.random.default_rng(seed)
    n = each * (shape.contexts - 1)
    dense = draw.standard_normal((n, shape.features), dtype=np.float32)
    chance = 1 / (1 + np.exp(1.0 - 2.0 * dense[:, 0] + dense[:, 1]))
    ids = {
        name: torch.from_numpy(draw.integers(0, size, (n, *more)))
        for name, size, more in (
            ("user", shape.users, ()),
            ("item", shape.items, ()),
            ("categories", shape.categories, (shape.categories_per_item,)),
            ("history", shape.items, (shape.history_length,)),
        )
    }
    return Rows(
        dense=torch.from_numpy(dense),
        **ids,
        context=torch.arange(n) % (shape.contexts - 1) + 1,
        label=torch.from_numpy((draw.random(n) < chance).astype(np.float32)),
        weight=torch.ones(n),
        time=torch.from_numpy(draw.integers(30 * seed * DAY, (30 * seed + 30) * DAY, n)),
        group=torch.arange(n),
    )


# Checks.


class _KilledError(Exception):
    pass


def _trained(given: TrainingSettings, folder: Path, kill_at: int | None = None) -> TrainingReport:
    shape = replace(TINY_SHAPE, backbone=given.backbone)
    rows, later = make_rows(shape, 150, seed=0), make_rows(shape, 60, seed=2)

    def kill(what: str, done: int, total: int) -> None:
        if done == kill_at:
            raise _KilledError

    try:
        return train(rows, later, shape, given, folder, progress=kill)
    except _KilledError:
        return train(rows, later, shape, given, folder)


def _adapted(given: TrainingSettings, folder: Path) -> dict[int, AdapterFit]:
    model = load_model(folder)
    rows, later = make_rows(model.shape, 150, seed=0), make_rows(model.shape, 60, seed=2)
    return adapt(model, rows, later, [1, 3], given, learner_from=folder)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _runs(changes: dict[str, Any]) -> str:
    given = TINY.model_copy(update={**changes, "accelerator": "gpu"})
    with tempfile.TemporaryDirectory() as name:
        loss = _trained(given, Path(name)).validation_loss
    assert np.isfinite(loss), f"validation loss {loss}"
    return ""


def _agrees(changes: dict[str, Any]) -> str:
    """Train where a CPU does, and again; return how far losses are from the CPU's."""
    # Looks fall on steps 5, 10, ...: a checkpoint is written at 15, and the run is killed at 20.
    long = {"max_steps": 30, "check_every": 5, "dropout": 0.0, "unknown_share": 0.0, **changes}
    with tempfile.TemporaryDirectory() as name:
        folders = {who: Path(name) / who for who in ("cpu", "gpu", "again")}
        found = {}
        for who, folder in folders.items():
            given = TINY.model_copy(update={**long, "accelerator": "cpu" if who == "cpu" else "gpu"})
            report = _trained(given, folder, kill_at=20 if who == "again" else None)
            found[who] = report, _adapted(given, folder)
        assert _bytes(folders["gpu"]) == _bytes(folders["again"]), "killed and resumed it ended elsewhere"
        for context, fit in found["gpu"][1].items():
            again = found["again"][1][context].tensors
            assert all(value.device.type == "cpu" for value in fit.tensors.values()), "adapters left there"
            same = all(torch.equal(value, again[name]) for name, value in fit.tensors.items())
            assert same, "adapters differ between two runs"
    if changes.get("outer") in DRAWS or "dropout" in changes:
        return ""
    (cpu, cpu_fits), (gpu, gpu_fits) = found["cpu"], found["gpu"]
    apart = [abs(cpu.validation_loss - gpu.validation_loss)]
    apart += [abs(loss - gpu.context_losses[context]) for context, loss in cpu.context_losses.items()]
    apart += [abs(fit.gain - gpu_fits[context].gain) for context, fit in cpu_fits.items()]
    assert max(apart) < CLOSE, f"losses differ by {max(apart):.2g}"
    return f"{max(apart):.2g}"


def _checked(check: str, changes: dict[str, Any]) -> tuple[str, dict[str, Any], str, str]:
    _quiet()
    try:
        return check, changes, {"runs": _runs, "agrees": _agrees}[check](changes), ""
    except Exception:  # noqa: BLE001  (reported by the caller, which fails)
        lines = traceback.format_exc(limit=-4).strip().splitlines()
        return check, changes, "", "\n".join(line[:300] for line in lines[-12:])


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every check and what it changes in the settings."""
    learners, outers, backbones = sorted(META_LEARNERS), sorted(OUTER), sorted(BACKBONES)
    for backbone in backbones:
        yield "agrees", {"backbone": backbone, "meta_learner": "maml"}
    for learner, fast in product(learners, ("head", "dense")):
        yield "runs", {"meta_learner": learner, "fast": fast}
    for learner, backbone in product(learners, backbones):
        yield "runs", {"meta_learner": learner, "backbone": backbone}
    for outer, backbone in product(outers, backbones):
        yield "runs", {"outer": outer, "backbone": backbone}
    for learner, outer in product(learners, outers):
        yield "runs", {"meta_learner": learner, "outer": outer}
    for outer in outers:
        yield "agrees", {"outer": outer}
    yield "agrees", {"adapter_fit": "domain_regularization"}
    yield "agrees", {"meta_learner": "maml", "dropout": 0.1, "unknown_share": 0.2}
    for learner in learners:
        yield "agrees", {"meta_learner": learner}
        yield "agrees", {"meta_learner": learner, "adapter_fit": "meta_learner"}


def check(workers: int) -> tuple[str, bool]:
    """Run all checks; return what was found as Markdown, and whether all hold."""
    started = time.monotonic()
    apart: list[float] = []
    seen: dict[str, int] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending = [pool.submit(_checked, *case) for case in cases()]
        for count, done in enumerate(as_completed(pending), start=1):
            if count % 100 == 0:
                print(f"{count} of {len(pending)} checked, {time.monotonic() - started:.0f} s", flush=True)
            name, changes, difference, fault = done.result()
            if difference:
                apart.append(float(difference))
            if fault:
                last = fault.splitlines()[-1]
                seen[last] = seen.get(last, 0) + 1
                print(
                    f"FAILED {name} {changes}" + (f"\n{fault}" if seen[last] == 1 else f": {last}"),
                    flush=True,
                )
    failed = sum(seen.values())
    text = (
        f"{len(pending) - failed} of {len(pending)} checks hold ({time.monotonic() - started:.0f} s, "
        f"{workers} processes). Losses of GPU and CPU after 30 steps differ by {median(apart):.1g} "
        f"(median of {len(apart)}) and {max(apart):.1g} at the most."
        if apart
        else f"{failed} of {len(pending)} checks fail"
    )
    return text, not failed


# Timings.


@dataclass
class Steps(Callback):
    """Stops after ``most`` steps or ``seconds``; keeps the wall seconds of each step after the first, and how
    long of that the step waited for its batch."""

    most: int
    seconds: float

    def __post_init__(self) -> None:
        """Nothing was measured yet."""
        self.spent: list[float] = []
        self.waited: list[float] = []
        self._begun = self._last = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begun = self._last = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the step waited for its batch."""
        if batch_idx:
            self.waited.append(time.perf_counter() - self._last)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the clock once the device is done."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if batch_idx:
            self.spent.append(now - self._last)
        self._last = now
        enough = now - self._begun > self.seconds or len(self.spent) >= self.most
        trainer.should_stop = bool(self.spent) and enough


def seconds_a_step(
    rows: Rows, shape: ModelShape, given: TrainingSettings, *, most: int, limit: float
) -> tuple[float, float]:
    """Median wall seconds of a training step, and of the wait for its batch."""
    torch.set_num_threads(given.threads)
    device = device_of(given)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(0)
    model = SharedModel(shape)
    model.learn_scales(rows.dense)
    learner = learner_of(given)
    module = MetaTraining(
        model.to(device), learner, get_outer(given.outer, contexts=shape.contexts - 1), given, steps=most + 1
    )
    sampler = EpisodeSampler(
        rows,
        tasks=given.tasks,
        support=given.support if learner.uses_support else 0,
        query=given.query if learner.uses_support else given.rows_per_task,
        steps=most + 1,
        seed=0,
    )
    clock = Steps(most, limit)
    Trainer(
        accelerator=device.type, devices=1, max_epochs=1, callbacks=[clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, train_dataloaders=sampler)  # fmt: skip
    return median(clock.spent), median(clock.waited)


def seconds_to_adapt(
    rows: Rows, later: Rows, shape: ModelShape, contexts: int, given: TrainingSettings
) -> float:
    """Wall seconds of a whole call, the second one: the first one opens the device's libraries."""
    torch.manual_seed(0)
    model = SharedModel(shape).eval()
    model.learn_scales(rows.dense)
    torch.use_deterministic_algorithms(False)
    few = given.model_copy(update={"adapt_steps": 1})
    adapt(model, rows, later, range(1, min(contexts, 5) + 1), few)
    started = time.perf_counter()
    adapt(model, rows, later, range(1, contexts + 1), given)
    return time.perf_counter() - started


def timings() -> str:
    """Measure everything; return the table as Markdown."""
    cores = len(os.sched_getaffinity(0))
    ways = {
        "one thread": {"threads": 1},
        "all cores": {"threads": cores},
        "gpu": {"accelerator": "gpu", "threads": 1},
    }
    many = replace(NIGHT, contexts=MANY["tasks"] + 1)
    shapes: list[tuple[str, ModelShape, int, dict[str, Any], int]] = [
        ("the night's own: default model, 8 tasks", NIGHT, 2000, {}, 40),
        ("default model, 1000 tasks", many, 200, MANY, 8),
        ("embedding 64, hidden 1024 / 512, 1000 tasks", replace(many, **LARGE), 200, MANY | LARGE, 8),
    ]  # fmt: skip
    lines = [
        "| what | one thread | all cores | GPU | one thread / GPU | all cores / GPU | of GPU: batch |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]

    def told(what: str, found: dict[str, float], batch: str = "-") -> None:
        gpu = found["gpu"]
        cells = [f"{1000 * found[way]:,.0f} ms" if way in found else "-" for way in ways]
        cells += [
            f"{found[way] / gpu:,.{1 if found[way] < 10 * gpu else 0}f}" if way in found else "-"
            for way in ways
            if way != "gpu"
        ]
        lines.append(f"| {' | '.join([what, *cells, batch])} |")
        print(lines[-1], flush=True)

    for contexts, steps in ((5, 100), (64, 30), (1000, 5)):
        shape = replace(NIGHT, contexts=contexts + 1)
        rows, later = make_rows(shape, 300, seed=0), make_rows(shape, 100, seed=2)
        found = {}
        for way, how in ways.items():
            given = TrainingSettings.model_validate({"adapt_steps": steps, **how})
            found[way] = seconds_to_adapt(rows, later, shape, contexts, given)
        told(f"adapters of {contexts} contexts in one program, {steps} steps", found)
    for what, shape, each, changes, most in shapes:
        rows = make_rows(shape, each, seed=0)
        for learner in ("joint", "maml"):
            found = {}
            for way, how in ways.items():
                if way == "one thread" and learner == "maml" and shape.hidden == LARGE["hidden"]:
                    continue  # more than half a minute a step
                given = TrainingSettings.model_validate({"meta_learner": learner, **changes, **how})
                found[way], waited = seconds_a_step(rows, shape, given, most=most, limit=8.0)
            told(f"step of `{learner}`, {what}", found, f"{1000 * waited:,.0f} ms")
    return "\n".join(lines)


def _quiet() -> None:
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> int:
    """Do what was asked for, and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checks", action="store_true")
    parser.add_argument("--timings", action="store_true")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    _quiet()
    device = device_of(TrainingSettings(accelerator="gpu"))
    asked = [name for name in ("checks", "timings") if getattr(arguments, name)]
    head = (
        f"`python benchmarks/gpu.py {' '.join('--' + name for name in asked)}`, "
        f"{datetime.now(UTC):%Y-%m-%d}: {torch.cuda.get_device_name(device)}, "
        f"{len(os.sched_getaffinity(0))} CPU cores, torch {torch.__version__}."
    )
    text, holds = ["# Learning on a GPU", "", head, ""], True
    if arguments.checks:
        found, holds = check(arguments.workers)
        print(found, flush=True)
        text += [found, ""]
    if arguments.timings:
        text += [timings(), ""]
    if arguments.out is not None:
        arguments.out.write_text("\n".join(text), encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
