"""Fit what could serve: the shared model, an adapter for each context, trees.

All of it goes to the night's own folder. This module must never look at a test row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from recmeta import artifacts
from recmeta.adaptation import adapt as fit_adapters
from recmeta.bundle.store import BundleStore
from recmeta.bundle.unit import read_ids
from recmeta.dataset import (
    CATEGORIES_PER_ITEM,
    TRAIN,
    VALIDATION,
    Frames,
    Part,
    Vocabularies,
    build_vocabularies,
    item_content,
    newcomers,
    thinned_logs,
)
from recmeta.episodes.newcomers import Newcomers
from recmeta.episodes.vocabulary import Vocabulary
from recmeta.errors import InputError
from recmeta.evaluation.baselines import fit_trees_to_rows
from recmeta.features.assembly import FeatureSpace
from recmeta.model_folder import load_model
from recmeta.models.shared import ModelShape
from recmeta.stages.night import Night, Progress, catalogue, labelled_rows, labelled_tensors
from recmeta.training import train as meta_train


def feature_space(night: Night) -> FeatureSpace:
    """The dense features of this night's rows."""
    chosen = night.settings.features
    return FeatureSpace(night.contexts, chosen.half_lives, chosen.history_length)


def train(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Meta-train the shared model, from the champion's weights where they fit."""
    folder = night.folder / "train"
    done = night.folder / "train.json"
    if done.exists():
        return dict(artifacts.read_json(done))
    frames = labelled_rows(night)
    warm = _earlier_model(night)
    items = catalogue(night)
    vocabularies = build_vocabularies(frames, items, None if warm is None else _vocabularies_of(warm.folder))
    vocabularies.save(folder)
    parts = labelled_tensors(night)
    settings = night.settings.training
    shape = ModelShape(
        features=feature_space(night).size,
        users=len(vocabularies.users) + 1,
        items=len(vocabularies.items) + 1,
        categories=len(vocabularies.categories) + 1,
        contexts=len(night.contexts.names) + 1,
        history_length=night.settings.features.history_length,
        categories_per_item=CATEGORIES_PER_ITEM,
        embedding_size=settings.embedding_size,
        hidden=settings.hidden,
        rank=settings.adapter_rank,
        backbone=settings.backbone,
    )
    report = meta_train(
        parts[TRAIN].rows,
        parts[VALIDATION].rows,
        shape,
        settings,
        folder,
        warm_from=None if warm is None else warm.folder,
        warm_contexts=None if warm is None else _earlier_indices(warm.contexts, night.contexts.names),
        newcomers=_newcomers(night, frames) if settings.newcomer_share else None,
        content=item_content(items, vocabularies),
        progress=progress,
    ).to_json()
    report |= {"warm": warm is not None, "rows": len(parts[TRAIN].rows)}
    artifacts.write_json(done, report)
    return report


def _vocabularies_of(unit: Path) -> Vocabularies:
    users, items, categories = (
        Vocabulary(tuple(read_ids(unit / f"{kind}.txt"))) for kind in ("users", "items", "categories")
    )
    return Vocabularies(users, items, categories)


def _newcomers(night: Night, frames: Frames) -> Newcomers:
    space = feature_space(night)
    return newcomers(frames, space, thinned_logs(frames, night.settings, space, night.until))


@dataclass(frozen=True)
class _Earlier:
    """The parent's newest network: its folder in the bundle, and its contexts in the order of their index."""

    folder: Path
    contexts: tuple[str, ...]


def _earlier_indices(earlier: Sequence[str], names: Sequence[str]) -> Tensor:
    """For each context index of tonight the one that it had, 0 for a context that is new."""
    return torch.tensor([0, *(earlier.index(name) + 1 if name in earlier else 0 for name in names)])


def _earlier_model(night: Night) -> _Earlier | None:
    """The parent's newest network, where this night's model can start from its weights."""
    if night.parent is None:
        return None
    bundle = BundleStore(night.settings.bundles_folder).open(night.parent)
    manifest = bundle.manifest
    settings = night.settings.training
    same_features = manifest.features.digest == feature_space(night).digest
    if not same_features or manifest.trained is None:
        return None
    folder = bundle.folder / "units" / manifest.trained
    shape = ModelShape.from_json(artifacts.read_json(folder / "model.json")["shape"])
    fits = (shape.embedding_size, shape.hidden, shape.rank, shape.backbone) == (
        settings.embedding_size,
        settings.hidden,
        settings.adapter_rank,
        settings.backbone,
    )
    return _Earlier(folder, manifest.units[manifest.trained].contexts) if fits else None


def challengers(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Fit boosted trees for each context on the same dense features, or take recent ones along."""
    done = night.folder / "challengers.json"
    if done.exists():
        return dict(artifacts.read_json(done))
    parts = labelled_tensors(night)
    counts = {
        name: len(parts[TRAIN].of_context(number).rows)
        for number, name in enumerate(night.contexts.names, start=1)
    }
    inputs = artifacts.digest_of(
        feature_space(night).digest,
        night.settings.trees.model_dump(mode="json"),
        night.settings.training.seed,
        list(counts),
        *([clip] if (clip := night.settings.training.propensity_clip) is not None else []),
    )
    earlier = _recent_trees(night, inputs, counts)
    rounds: dict[str, int | None] = {}
    for number, name in enumerate(counts, start=1):
        if progress is not None:
            progress("challengers", number - 1, len(counts))
        if earlier is None:
            rounds[name] = _fit_trees(
                night, name, [parts[part].of_context(number) for part in (TRAIN, VALIDATION)]
            )
        else:
            rounds[name] = earlier[1]["rounds"][name]
            if rounds[name] is not None:
                file = Path("trees") / f"{name}.txt"
                artifacts.write_text(night.folder / file, (earlier[0] / file).read_text(encoding="utf-8"))
    if progress is not None:
        progress("challengers", len(counts), len(counts))
    report = {
        "rounds": rounds,
        "inputs": inputs,
        "rows": counts if earlier is None else earlier[1]["rows"],
        "fitted": night.folder.name if earlier is None else earlier[1]["fitted"],
    }
    artifacts.write_json(done, report)
    return report


def _fit_trees(night: Night, name: str, parts: list[Part]) -> int | None:
    """Fit and write one context's trees; return their rounds, None where there was too little to learn."""
    learnt, later = (part.rows for part in parts)
    trees = fit_trees_to_rows(learnt, later, night.settings)
    if trees is None:
        return None
    artifacts.write_text(night.folder / "trees" / f"{name}.txt", trees.text())
    return trees.rounds


def _recent_trees(night: Night, inputs: str, counts: dict[str, int]) -> tuple[Path, dict[str, Any]] | None:
    """The folder and report of the latest earlier night whose trees these rows would hardly change."""
    for folder in sorted(night.settings.runs_folder.glob("*"), reverse=True):
        done = folder / "challengers.json"
        if folder.name[:8] >= night.folder.name[:8] or not done.exists():
            continue
        report = artifacts.read_json(done)
        if report["inputs"] == inputs and all(
            abs(counts[name] - rows) <= night.settings.trees.refit_growth * rows
            for name, rows in report["rows"].items()
        ):
            return folder, report
    return None


def chunks(night: Night) -> list[tuple[int, ...]]:
    """Groups of context indices (1-based) whose adapters are fitted in one batched program each."""
    size = night.settings.training.adapt_chunk
    indices = range(1, len(night.contexts.names) + 1)
    return [tuple(indices[start : start + size]) for start in range(0, len(indices), size)]


def adapt(night: Night, chunk: int) -> dict[str, Any]:
    """Fit the adapters of one group of contexts.

    Raises:
        InputError: there is no such group.
    """
    groups = chunks(night)
    if not 0 <= chunk < len(groups):
        raise InputError(f"adapt: expected a chunk from 0 to {len(groups) - 1}, found {chunk}")
    done = night.folder / f"adapt-{chunk}.json"
    if done.exists():
        return dict(artifacts.read_json(done))
    parts = labelled_tensors(night)
    trained = night.folder / "train"
    fits = fit_adapters(
        load_model(trained),
        parts[TRAIN].rows,
        parts[VALIDATION].rows,
        groups[chunk],
        night.settings.training,
        learner_from=trained,
    )
    report: dict[str, Any] = {}
    for index, fit in fits.items():
        name = night.contexts.names[index - 1]
        with artifacts.replacing(night.folder / "adapters" / f"{name}.safetensors") as file:
            save_file(fit.tensors, file)
        report[name] = {"steps": fit.steps, "gain": fit.gain}
    artifacts.write_json(done, report)
    return report
