"""Score every candidate on later, unseen rows and let the gates say what each context serves.

The result is one JSON file in the night's folder. This module must never write a bundle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

from recmeta import artifacts
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.dataset import TEST, TRAIN, VALIDATION, Frames, Part
from recmeta.evaluation.baselines import fit_bias_only, popularity
from recmeta.evaluation.gates import Decision, decide
from recmeta.model_folder import load_model
from recmeta.models.adapters import is_zero
from recmeta.models.calibration import Calibration
from recmeta.models.prediction import predict_logits
from recmeta.models.shared import SharedModel
from recmeta.serving.scorer import Scorer
from recmeta.stages.candidates import Candidate, blended, calibrated, scored
from recmeta.stages.learn import feature_space
from recmeta.stages.night import Night, labelled_rows, labelled_tensors

Progress = Callable[[str, int, int], None]
Floats = npt.NDArray[np.float64]


def evaluate(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Decide what each context serves; the bundle as a whole is decided when it is published."""
    done = night.folder / "evaluate.json"
    if done.exists():
        return dict(artifacts.read_json(done))
    frames, parts = labelled_rows(night), labelled_tensors(night)
    model = load_model(night.folder / "train")
    incumbent = _incumbent(night)
    report: dict[str, Any] = {}
    for index, name in enumerate(night.contexts.names, start=1):
        if progress is not None:
            progress("evaluate", index - 1, len(night.contexts.names))
        of_context = {part: rows.of_context(index) for part, rows in parts.items()}
        candidates = _candidates(night, name, model, of_context)
        if incumbent is not None and name in incumbent[0].manifest.contexts:
            candidates["incumbent"] = _incumbent_candidate(incumbent[1], name, frames)
        decision = decide(
            name,
            scored(of_context[VALIDATION], {key: found.validation for key, found in candidates.items()}),
            scored(of_context[TEST], {key: found.test for key, found in candidates.items()}),
            night.settings.gate,
            seed=night.settings.training.seed,
        )
        report[name] = _as_json(decision, candidates)
    if progress is not None:
        progress("evaluate", len(night.contexts.names), len(night.contexts.names))
    artifacts.write_json(done, report)
    return report


def _candidates(night: Night, name: str, model: SharedModel, parts: dict[int, Part]) -> dict[str, Candidate]:
    later, test = parts[VALIDATION].rows, parts[TEST].rows
    labelled = parts[VALIDATION]
    space = feature_space(night)
    column = space.index(space.popularity_column())
    found = {
        "shared": calibrated(predict_logits(model, later), predict_logits(model, test), labelled),
        "popularity": calibrated(
            popularity(later.dense.numpy(), column), popularity(test.dense.numpy(), column), labelled
        ),
        "bias_only": _bias_only(parts),
    }
    adapter = load_file(night.folder / "adapters" / f"{name}.safetensors")
    if not is_zero(adapter):
        found["adapter"] = calibrated(
            predict_logits(model, later, adapter), predict_logits(model, test, adapter), labelled
        )
    trees = night.folder / "trees" / f"{name}.txt"
    if trees.exists():
        found["trees"] = calibrated(
            _tree_logits(trees, later.dense.numpy()), _tree_logits(trees, test.dense.numpy()), labelled
        )
        found["blend"] = blended(found.get("adapter", found["shared"]), found["trees"], labelled)
    return found


def _bias_only(parts: dict[int, Part]) -> Candidate:
    rows = {part: parts[part].rows for part in (TRAIN, VALIDATION, TEST)}
    train, later, test = rows[TRAIN], rows[VALIDATION], rows[TEST]
    fitted = fit_bias_only(
        train.user.numpy(),
        train.item.numpy(),
        train.label.numpy(),
        train.weight.numpy(),
        validation=(later.user.numpy(), later.item.numpy(), later.label.numpy(), later.weight.numpy()),
    )
    return calibrated(
        fitted.logits(later.user.numpy(), later.item.numpy()),
        fitted.logits(test.user.numpy(), test.item.numpy()),
        parts[VALIDATION],
    )


def _tree_logits(file: Path, dense: npt.NDArray[np.float32]) -> Floats:
    if not len(dense):
        return np.empty(0)
    booster = lightgbm.Booster(model_file=str(file))
    logits: Floats = booster.predict(dense, raw_score=True)
    return logits


def _incumbent(night: Night) -> tuple[Bundle, Scorer] | None:
    """The parent with its scorer; None where there is none, or its features are not tonight's."""
    if night.parent is None:
        return None
    bundle = BundleStore(night.settings.bundles_folder).open(night.parent)
    if bundle.manifest.features.digest != feature_space(night).digest:
        return None
    return bundle, Scorer(bundle)


def _incumbent_candidate(scorer: Scorer, name: str, frames: Frames) -> Candidate:
    """What serves now, on tonight's rows: it is not calibrated anew, it serves as it is."""
    in_context = (frames.table["context"] == name).to_numpy()

    def logits(part: int) -> Floats:
        chosen = np.flatnonzero((frames.part == part) & in_context)
        table = frames.table[chosen]
        return scorer.logits(
            name,
            users=table["user_id"].to_list(),
            items=table["item_id"].to_list(),
            categories=table["categories"].to_list(),
            histories=table["history"].to_list(),
            dense=frames.dense[chosen],
        )

    return Candidate(Calibration(), logits(VALIDATION), logits(TEST))


def _as_json(decision: Decision, candidates: dict[str, Candidate]) -> dict[str, Any]:
    return {
        "serves": decision.serves,
        "promoted": decision.promoted,
        "reason": decision.reason,
        "checks": [asdict(check) for check in decision.checks],
        "metrics": decision.metrics,
        "calibration": {name: asdict(found.calibration) for name, found in candidates.items()},
        "tree_weight": candidates["blend"].tree_weight if "blend" in candidates else 0.0,
        "blends": "adapter" if "adapter" in candidates else "shared",
    }
