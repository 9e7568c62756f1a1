"""Which way to learn the shared model helps, on real logs: methods x backbones x contexts x paired seeds.

    python benchmarks/meta_learners.py --source deskdrop PATH --out benchmarks/meta_learners_deskdrop.md

Rows, split, features and stopping rule are those of `recmeta nightly`, and the budget of steps is the same
for every method; with one seed all methods start from the same weights. Each row of a table is a whole
method: how the shared model is learnt, and what is done for a context afterwards. Nothing is chosen on
test rows. What is known may be kept (``--keep DIR``) and is not computed again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recmeta.adaptation import adapt
from recmeta.contexts import Contexts
from recmeta.dataset import (
    CATEGORIES_PER_ITEM,
    TEST,
    TRAIN,
    VALIDATION,
    Part,
    build_vocabularies,
    item_content,
    tensors,
)
from recmeta.evaluation.baselines import fit_bias_only, fit_trees, popularity
from recmeta.evaluation.metrics import auc
from recmeta.evaluation.resampling import resample
from recmeta.features.assembly import FeatureSpace
from recmeta.model_folder import load_model
from recmeta.models.prediction import predict_logits, predict_under_each
from recmeta.models.shared import ModelShape
from recmeta.pipeline import ingest, run_stage
from recmeta.settings import Settings, load_settings
from recmeta.stages.night import Night, catalogue, labelled_rows
from recmeta.training import train

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Method:
    """How the shared model is learnt, and how a context's adapter is fitted to it (None: not at all)."""

    learnt: Mapping[str, Any]
    fitted: str | None = None


def _learner(name: str, fitted: str | None = "proximal", **more: Any) -> Method:
    return Method({"meta_learner": name, **more}, fitted)


MAMDR = {
    "joint": Method({}),
    "joint + fine-tune": Method({}, "proximal"),
    "MAML + fine-tune": _learner("maml"),
    "Reptile + fine-tune": _learner("reptile", fast="dense"),
    "MLDG": _learner("mldg", None, fast="dense", inner_steps=1),
    "DN": _learner("domain_negotiation", None, fast="dense", inner_steps=1),
    "DR": Method({}, "domain_regularization"),
    "DN + DR (MAMDR)": _learner("domain_negotiation", "domain_regularization", fast="dense", inner_steps=1),
}
"""The methods that MAMDR (Luo et al. 2023) compares."""

OTHERS = {
    f"{name} + fine-tune": _learner(name)
    for name in (
        "first_order_maml",
        "anil",
        "meta_sgd",
        "implicit_maml",
        "learned_optimizer",
        "ridge_head",
        "logistic_head",
        "prototype_head",
    )
}
"""The other meta-learners."""

OUTER = {
    f"joint, {name}": Method({"outer": name})
    for name in (
        "by_size",
        "uncertainty",
        "dwa",
        "grad_norm",
        "famo",
        "pcgrad",
        "cagrad",
        "mgda",
        "nash_mtl",
        "upgrad",
    )
}
"""Joint training with other weights of contexts, or other ways to share gradients."""

DENSE = {"MAML, all dense fast, + fine-tune": _learner("maml", fast="dense")}
"""What the others of MAMDR's comparison move, for MAML too; ours moves the adapter."""

GROUPS = {"mamdr": MAMDR, "dense": DENSE, "learners": OTHERS, "outer": OUTER}
BASELINES = ("popularity", "bias only", "LightGBM, single context")
ALONE = "network, single context"
ALONE_BACKBONE = "mlp"
"""With one context backbones hardly differ."""

REFERENCE = "joint + fine-tune"


@dataclass(frozen=True)
class Log:
    """One log as tensors, and what a model of it looks like."""

    settings: Settings
    contexts: Contexts
    parts: dict[int, Part]
    content: torch.Tensor
    shape: dict[str, int]
    popularity_column: int


def load(workspace: Path) -> Log:
    """Turn a workspace's labelled rows into tensors."""
    settings = load_settings(workspace)
    night = Night.plan(settings)
    frames, items = labelled_rows(night), catalogue(night)
    vocabularies = build_vocabularies(frames, items, None)
    space = FeatureSpace(night.contexts, settings.features.half_lives, settings.features.history_length)
    return Log(
        settings,
        night.contexts,
        tensors(frames, night.contexts, vocabularies, settings.features.history_length),
        item_content(items, vocabularies),
        {
            "features": space.size,
            "users": len(vocabularies.users) + 1,
            "items": len(vocabularies.items) + 1,
            "categories": len(vocabularies.categories) + 1,
            "contexts": len(night.contexts.names) + 1,
            "history_length": settings.features.history_length,
            "categories_per_item": CATEGORIES_PER_ITEM,
        },
        space.index(space.popularity_column()),
    )


class Runs:
    """Scores of validation and test rows by (backbone, method, seed), kept in a folder."""

    def __init__(self, log: Log, folder: Path, steps: int) -> None:
        """Keep everything under ``folder``; ``steps`` is the budget of every method."""
        self.log, self.folder, self.steps = log, folder, steps
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, backbone: str, method: str, seed: int) -> Path:
        """Where the scores of one run lie."""
        return self.folder / f"{backbone}; {method}; {seed}.npz"

    def keep(
        self, backbone: str, method: str, seed: int, scores: Mapping[int, Floats], seconds: float
    ) -> None:
        """Write the logits of all validation and test rows."""
        arrays: dict[str, Any] = {str(part): scores[part] for part in (VALIDATION, TEST)}
        np.savez(self.path(backbone, method, seed), seconds=seconds, **arrays)
        print(f"{backbone}, {method}, seed {seed}: {seconds:.0f} s", flush=True)

    def read(self, backbone: str, method: str, seed: int, part: int) -> Floats:
        """Read the logits of one part."""
        with np.load(self.path(backbone, method, seed)) as stored:
            found: Floats = stored[str(part)]
        return found

    def seconds(self, backbone: str, method: str, seed: int) -> float:
        """Read how long learning took."""
        with np.load(self.path(backbone, method, seed)) as stored:
            return float(stored["seconds"])

    def baselines(self, seed: int) -> None:
        """Popularity, bias only, and LightGBM of each context alone."""
        parts, settings = self.log.parts, self.log.settings
        found: dict[str, dict[int, Floats]] = {
            name: {part: np.zeros(len(parts[part].rows)) for part in (VALIDATION, TEST)} for name in BASELINES
        }
        if all(self.path("-", name, seed).exists() for name in BASELINES):
            return
        for context in range(1, len(self.log.contexts.names) + 1):
            own = {part: parts[part].of_context(context).rows for part in parts}
            learnt, later = own[TRAIN], own[VALIDATION]
            bias = fit_bias_only(
                learnt.user.numpy(),
                learnt.item.numpy(),
                learnt.label.numpy(),
                learnt.weight.numpy(),
                validation=(
                    later.user.numpy(),
                    later.item.numpy(),
                    later.label.numpy(),
                    later.weight.numpy(),
                ),
            )
            trees = fit_trees(
                learnt.dense.numpy(),
                learnt.label.numpy(),
                learnt.weight.numpy(),
                later.dense.numpy(),
                later.label.numpy(),
                settings.trees,
                validation_weight=later.weight.numpy(),
                threads=1,
                seed=seed,
            )
            for part in (VALIDATION, TEST):
                of = (parts[part].rows.context == context).numpy()
                rows = own[part]
                found[BASELINES[0]][part][of] = popularity(rows.dense.numpy(), self.log.popularity_column)
                found[BASELINES[1]][part][of] = bias.logits(rows.user.numpy(), rows.item.numpy())
                if trees is not None:
                    found[BASELINES[2]][part][of] = trees.logits(rows.dense.numpy())
        for name in BASELINES:
            self.keep("-", name, seed, found[name], 0.0)

    def network(self, backbone: str, learnt: Mapping[str, Any], seed: int) -> tuple[Path, float]:
        """Train a shared model, or find it trained: its folder, and the seconds it took."""
        tag = ", ".join(f"{key}={value}" for key, value in learnt.items()) or "joint"
        folder = self.folder / "models" / f"{backbone}; {tag}; {seed}"
        if not (folder / "seconds.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            context = learnt.get("alone")
            parts = self.log.parts if context is None else self._of(context)
            settings = self._settings(backbone, {k: v for k, v in learnt.items() if k != "alone"}, seed)
            chosen = settings.training
            shape = ModelShape(
                **self.log.shape,
                embedding_size=chosen.embedding_size,
                hidden=chosen.hidden,
                rank=chosen.adapter_rank,
                backbone=backbone,
            )
            started = time.monotonic()
            train(parts[TRAIN].rows, parts[VALIDATION].rows, shape, chosen, folder, content=self.log.content)
            (folder / "seconds.json").write_text(json.dumps(time.monotonic() - started), encoding="utf-8")
        return folder, float(json.loads((folder / "seconds.json").read_text(encoding="utf-8")))

    def method(self, backbone: str, name: str, method: Method, seed: int) -> None:
        """Learn, fit adapters where the method does, and score."""
        if self.path(backbone, name, seed).exists():
            return
        folder, seconds = self.network(backbone, method.learnt, seed)
        model, parts = load_model(folder), self.log.parts
        scores = {}
        if method.fitted is None:
            scores = {part: predict_logits(model, parts[part].rows) for part in (VALIDATION, TEST)}
        else:
            chosen = self._settings(backbone, {**method.learnt, "adapter_fit": method.fitted}, seed).training
            numbers = list(range(1, len(self.log.contexts.names) + 1))
            started = time.monotonic()
            fits = adapt(model, parts[TRAIN].rows, parts[VALIDATION].rows, numbers, chosen)
            seconds += time.monotonic() - started
            for part in (VALIDATION, TEST):
                rows = parts[part].rows
                scores[part] = np.zeros(len(rows))
                for number in numbers:
                    of = np.flatnonzero((rows.context == number).numpy())
                    own = rows.take(torch.from_numpy(of))
                    scores[part][of] = predict_under_each(model, own, [fits[number].tensors])[0]
        self.keep(backbone, name, seed, scores, seconds)

    def alone(self, backbone: str, seed: int) -> None:
        """A network for each context, on its rows only; each has the whole budget of steps to itself."""
        if self.path(backbone, ALONE, seed).exists():
            return
        parts, seconds = self.log.parts, 0.0
        scores = {part: np.zeros(len(parts[part].rows)) for part in (VALIDATION, TEST)}
        for number in range(1, len(self.log.contexts.names) + 1):
            folder, spent = self.network(backbone, {"alone": number}, seed)
            seconds += spent
            for part in scores:
                of = (parts[part].rows.context == number).numpy()
                scores[part][of] = predict_logits(load_model(folder), self._of(number)[part].rows)
        self.keep(backbone, ALONE, seed, scores, seconds)

    def _of(self, context: int) -> dict[int, Part]:
        return {part: rows.of_context(context) for part, rows in self.log.parts.items()}

    def _settings(self, backbone: str, changes: Mapping[str, Any], seed: int) -> Settings:
        training = {"seed": seed, "backbone": backbone, "max_steps": self.steps, **changes}
        return load_settings(self.log.settings.workspace, training=training)


@dataclass(frozen=True)
class Row:
    """One row of a table: figures of one method on one backbone."""

    backbone: str
    method: str
    seconds: float
    validation: float
    """Mean AUC over contexts and seeds on validation rows, which also decide when training stops."""
    by_context: list[str]
    mean: float
    gap: str


def rows_of(runs: Runs, named: list[tuple[str, str]], seeds: int) -> list[Row]:
    """Measure every (backbone, method) on test rows; gaps are paired by seed, user draw and backbone."""
    names, parts = runs.log.contexts.names, runs.log.parts
    figures: dict[tuple[str, str], list[Floats]] = {pair: [] for pair in named}
    draws: dict[tuple[str, str], list[Floats]] = {pair: [] for pair in named}
    later: dict[tuple[str, str], list[float]] = {pair: [] for pair in named}
    for number in range(1, len(names) + 1):
        part = parts[TEST].of_context(number)
        of = (parts[TEST].rows.context == number).numpy()
        logits = {(*pair, seed): runs.read(*pair, seed, TEST)[of] for pair in named for seed in range(seeds)}
        found = resample(
            part.rows.label.numpy(),
            {"; ".join(map(str, key)): value for key, value in logits.items()},
            part.clusters,
            weight=part.rows.weight.numpy(),
            resamples=500,
        )
        looked = parts[VALIDATION].of_context(number).rows
        later_of = (parts[VALIDATION].rows.context == number).numpy()
        for pair in named:
            own = [found.draws["; ".join((*pair, str(seed)))]["auc"] for seed in range(seeds)]
            figures[pair].append(np.array([np.nan if one.value is None else one.value for one in own]))
            draws[pair].append(np.mean([one.resamples for one in own], axis=0))
            for seed in range(seeds):
                scores = runs.read(*pair, seed, VALIDATION)[later_of]
                value = auc(looked.label.numpy(), scores, looked.weight.numpy())
                later[pair].append(np.nan if value is None else value)
    return [_row(runs, pair, seeds, figures, draws, later) for pair in named]


def _row(
    runs: Runs,
    pair: tuple[str, str],
    seeds: int,
    figures: Mapping[tuple[str, str], list[Floats]],
    draws: Mapping[tuple[str, str], list[Floats]],
    later: Mapping[tuple[str, str], list[float]],
) -> Row:
    backbone, method = pair
    own = np.array(figures[pair])
    spread = own.std(axis=1, ddof=1) if seeds > 1 else np.zeros(len(own))
    gap = "-"
    reference = (backbone, REFERENCE)
    if reference in figures and pair != reference:
        drawn = np.nanmean(np.array(draws[pair]) - np.array(draws[reference]), axis=0)
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        value = np.nanmean(own - np.array(figures[reference]))
        gap = f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
    return Row(
        backbone,
        method,
        float(np.mean([runs.seconds(*pair, seed) for seed in range(seeds)])),
        float(np.nanmean(later[pair])),
        [f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in zip(own.mean(axis=1), spread, strict=True)],
        float(np.nanmean(own)),
        gap,
    )


def table(rows: list[Row], names: tuple[str, ...], command: str, seeds: int) -> str:
    """Everything as Markdown."""
    head = ["backbone", "method", *names, "mean", f"against {REFERENCE}", "validation", "seconds"]
    lines = [
        "# Ways to learn the shared model",
        "",
        f"`{command}`",
        "",
        f"AUC on the last fifth of time, mean ± deviation over {seeds} seeds; 'against {REFERENCE}' is the "
        "mean over contexts of the paired difference on the same backbone, with its 95 % interval by a "
        "bootstrap over users; 'validation' is the mean AUC on the rows before the test rows, on which "
        "defaults may be chosen (they also decide when training stops, alike for all).",
        "",
        "| " + " | ".join(head) + " |",
        "| --- " * len(head) + "|",
    ]
    for row in rows:
        cells = [row.backbone, row.method, *row.by_context, f"{row.mean:.4f}", row.gap]
        cells += [f"{row.validation:.4f}", f"{row.seconds:.0f}" if row.seconds else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", choices=("deskdrop", "cofacts", "simulator"), required=True)
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500, help="of training, at the most, for every method")
    parser.add_argument("--backbones", nargs="+", default=["mlp", "star"])
    parser.add_argument("--groups", nargs="+", choices=tuple(GROUPS), default=["mamdr"])
    parser.add_argument("--workspace", type=Path, default=None, help="kept and used again where given")
    parser.add_argument("--keep", type=Path, default=None, help="folder for models and scores")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    methods = {name: method for group in arguments.groups for name, method in GROUPS[group].items()}
    methods = {REFERENCE: MAMDR[REFERENCE]} | methods
    with tempfile.TemporaryDirectory() as temporary:
        workspace = arguments.workspace or Path(temporary) / "workspace"
        if not (workspace / "contexts.yaml").exists():
            ingest(workspace, arguments.source, arguments.path)
        for stage in ("features", "labels", "rows"):
            run_stage(workspace, stage)
        runs = Runs(load(workspace), arguments.keep or Path(temporary) / "runs", arguments.steps)
        for seed in range(arguments.seeds):
            runs.baselines(seed)
            if ALONE_BACKBONE in arguments.backbones:
                runs.alone(ALONE_BACKBONE, seed)
        for backbone in arguments.backbones:
            for seed in range(arguments.seeds):
                for name, method in methods.items():
                    runs.method(backbone, name, method, seed)
        named = [("-", name) for name in BASELINES]
        if ALONE_BACKBONE in arguments.backbones:
            named.append((ALONE_BACKBONE, ALONE))
        named += [(backbone, name) for backbone in arguments.backbones for name in methods]
        rows = rows_of(runs, named, arguments.seeds)
        groups = " ".join(arguments.groups)
        command = (
            f"python benchmarks/meta_learners.py --source {arguments.source}"
            f"{' PATH' if arguments.path else ''} --seeds {arguments.seeds} "
            f"--steps {arguments.steps} --backbones {' '.join(arguments.backbones)} --groups {groups}"
        )
        text = table(rows, runs.log.contexts.names, command, arguments.seeds)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
