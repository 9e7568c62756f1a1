"""Score every candidate on later, unseen rows and let the gates say what each context serves.

The result is one JSON file in the night's folder. This module must never write a bundle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

from recmeta import artifacts
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.dataset import TEST, TRAIN, VALIDATION, Frames, Part
from recmeta.episodes.rows import Rows
from recmeta.evaluation.baselines import Trees, fit_bias_only, popularity
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
            candidates["incumbent"] = _incumbent_candidate(night, incumbent[1], name, frames, of_context)
        decision = decide(
            name,
            scored(of_context[VALIDATION], {key: found.validation for key, found in candidates.items()}),
            scored(
                of_context[TEST],
                {key: found.test for key, found in candidates.items()},
                {key: found.lists for key, found in candidates.items()},
            ),
            night.settings.gate,
            seed=night.settings.training.seed,
        )
        report[name] = _as_json(decision, candidates)
    if progress is not None:
        progress("evaluate", len(night.contexts.names), len(night.contexts.names))
    artifacts.write_json(done, report)
    return report


def _candidates(night: Night, name: str, model: SharedModel, parts: dict[int, Part]) -> dict[str, Candidate]:
    labelled = parts[VALIDATION]
    space = feature_space(night)
    lists = parts[TEST].as_lists(space.request_columns())
    column = space.index(space.popularity_column())

    def candidate(logits: Callable[[Rows], Floats]) -> Candidate:
        return calibrated(logits(labelled.rows), logits(parts[TEST].rows), logits(lists.rows), labelled)

    found = {
        "shared": candidate(lambda rows: predict_logits(model, rows)),
        "popularity": candidate(lambda rows: popularity(rows.dense.numpy(), column)),
        "bias_only": candidate(_bias_only(parts)),
    }
    adapter = load_file(night.folder / "adapters" / f"{name}.safetensors")
    if not is_zero(adapter):
        found["adapter"] = candidate(lambda rows: predict_logits(model, rows, adapter))
    trees = night.folder / "trees" / f"{name}.txt"
    if trees.exists():
        booster = lightgbm.Booster(model_file=str(trees))
        boosted = Trees(booster, booster.current_iteration())
        found["trees"] = candidate(lambda rows: boosted.logits(rows.dense.numpy()))
        found["blend"] = blended(found.get("adapter", found["shared"]), found["trees"], labelled)
    return found


def _bias_only(parts: dict[int, Part]) -> Callable[[Rows], Floats]:
    train, later = parts[TRAIN].rows, parts[VALIDATION].rows
    fitted = fit_bias_only(
        train.user.numpy(),
        train.item.numpy(),
        train.label.numpy(),
        train.weight.numpy(),
        validation=(later.user.numpy(), later.item.numpy(), later.label.numpy(), later.weight.numpy()),
    )
    return lambda rows: fitted.logits(rows.user.numpy(), rows.item.numpy())


def _incumbent(night: Night) -> tuple[Bundle, Scorer] | None:
    """The parent with its scorer; None where there is none, or its features are not tonight's."""
    if night.parent is None:
        return None
    bundle = BundleStore(night.settings.bundles_folder).open(night.parent)
    if bundle.manifest.features.digest != feature_space(night).digest:
        return None
    return bundle, Scorer(bundle)


def _incumbent_candidate(
    night: Night, scorer: Scorer, name: str, frames: Frames, parts: dict[int, Part]
) -> Candidate:
    """What serves now, on tonight's rows: it is not calibrated anew, it serves as it is."""
    in_context = (frames.table["context"] == name).to_numpy()

    def logits(part: int, rows: Rows, starts: npt.NDArray[np.int64] | None = None) -> Floats:
        table = frames.table[np.flatnonzero((frames.part == part) & in_context)]
        histories = table["history"] if starts is None else table["history"][starts]
        return scorer.logits(
            name,
            users=table["user_id"].to_list(),
            items=table["item_id"].to_list(),
            categories=table["categories"].to_list(),
            histories=histories.to_list(),
            dense=rows.dense.numpy(),
        )

    lists = parts[TEST].as_lists(feature_space(night).request_columns())
    return Candidate(
        Calibration(),
        logits(VALIDATION, parts[VALIDATION].rows),
        logits(TEST, parts[TEST].rows),
        logits(TEST, lists.rows, parts[TEST].list_starts()),
    )


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
