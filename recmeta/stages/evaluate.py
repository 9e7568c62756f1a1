"""Score every candidate on later, unseen rows and let the gates say what each context serves.

The result is one JSON file in the night's folder. This module must never write a bundle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from recmeta import artifacts
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.dataset import TEST, TRAIN, VALIDATION, Frames, Part
from recmeta.episodes.rows import Rows, evenly
from recmeta.evaluation.baselines import Trees, fit_bias_only, popularity
from recmeta.evaluation.gates import Decision, decide
from recmeta.model_folder import load_model
from recmeta.models.adapters import is_zero
from recmeta.models.calibration import Calibration
from recmeta.models.prediction import predict_under_each
from recmeta.models.shared import SharedModel
from recmeta.report.reliability import reliability
from recmeta.serving.scorer import Scorer
from recmeta.stages.candidates import Candidate, blended, calibrated, scored
from recmeta.stages.learn import feature_space
from recmeta.stages.night import Night, Progress, labelled_rows, labelled_tensors
from recmeta.stages.refitted import refit

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Scores = TypeVar("Scores")


def evaluate(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Decide what each context serves; the bundle as a whole is decided when it is published."""
    done = night.folder / "evaluate.json"
    if done.exists():
        return dict(artifacts.read_json(done))
    frames, parts = labelled_rows(night), labelled_tensors(night)
    model = load_model(night.folder / "train")
    incumbent = _incumbent(night)
    report: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    for index, name in enumerate(night.contexts.names, start=1):
        if progress is not None:
            progress("evaluate", index - 1, len(night.contexts.names))
        of_context = {part: rows.of_context(index) for part, rows in parts.items()}
        candidates = _candidates(night, name, model, of_context)
        if incumbent is not None and name in incumbent[0].manifest.contexts:
            serving = _Serving(night, *incumbent, name, frames, of_context)
            candidates["incumbent"] = serving.incumbent()
            stack = serving.stack()
            if stack is not None:
                candidates["stack"] = stack
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
        served = candidates["popularity" if decision.serves == "nothing" else decision.serves]
        rows = of_context[TEST].rows
        calibration[name] = reliability(
            rows.label.numpy(),
            0.5 * (1.0 + np.tanh(0.5 * served.test)),
            rows.weight.numpy(),
            user=of_context[TEST].clusters,
        )
    if progress is not None:
        progress("evaluate", len(night.contexts.names), len(night.contexts.names))
    artifacts.write_json(night.folder / "calibration.json", calibration)
    artifacts.write_json(done, report)
    return report


def _candidates(night: Night, name: str, model: SharedModel, parts: dict[int, Part]) -> dict[str, Candidate]:
    labelled = parts[VALIDATION]
    looked_at = _looked_at(night, parts)
    space = feature_space(night)
    column = space.index(space.popularity_column())

    def candidate(logits: Callable[[Rows], Floats]) -> Candidate:
        return calibrated(_in_order(looked_at, logits), labelled)

    adapter = load_file(night.folder / "adapters" / f"{name}.safetensors")
    networks = {"shared": None} if is_zero(adapter) else {"shared": None, "adapter": adapter}
    later, test, lists = _in_order(
        looked_at, lambda rows: predict_under_each(model, rows, list(networks.values()))
    )
    found = {
        network: calibrated(logits, labelled)
        for network, logits in zip(networks, zip(later, test, lists, strict=True), strict=True)
    }
    found["popularity"] = candidate(lambda rows: popularity(rows.dense.numpy(), column))
    found["bias_only"] = candidate(_bias_only(parts))
    trees = night.folder / "trees" / f"{name}.txt"
    if trees.exists():
        boosted = Trees.from_text(trees.read_text(encoding="utf-8"))
        found["trees"] = candidate(lambda rows: boosted.logits(rows.dense.numpy()))
        found["blend"] = blended(found.get("adapter", found["shared"]), found["trees"], labelled)
    return found


@dataclass(frozen=True)
class _LookedAt:
    """Rows that every candidate scores."""

    validation: Rows
    test: Rows
    lists: Rows
    """The test rows as ranking lists; the same object as ``test`` where lists have one instant anyway."""


def _looked_at(night: Night, parts: dict[int, Part]) -> _LookedAt:
    test = parts[TEST].rows
    lists = parts[TEST].as_lists(feature_space(night).split.request.tolist()).rows
    same = torch.equal(lists.dense, test.dense) and torch.equal(lists.history, test.history)
    return _LookedAt(parts[VALIDATION].rows, test, test if same else lists)


def _in_order(looked_at: _LookedAt, score: Callable[[Rows], Scores]) -> tuple[Scores, Scores, Scores]:
    """Score validation rows, test rows and lists; what is the same is scored once."""
    test = score(looked_at.test)
    lists = test if looked_at.lists is looked_at.test else score(looked_at.lists)
    return score(looked_at.validation), test, lists


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
    """The parent with its scorer; None where there is none, or its features or graphs are not tonight's."""
    if night.parent is None:
        return None
    bundle = BundleStore(night.settings.bundles_folder).open(night.parent)
    manifest = bundle.manifest
    of_old = not manifest.wanted_files() <= set(manifest.files)  # as an earlier recmeta exported networks
    if of_old or manifest.features.digest != feature_space(night).digest:
        return None
    return bundle, Scorer(bundle)


@dataclass(frozen=True)
class _Serving:
    """One context as the parent serves it, on tonight's rows."""

    night: Night
    parent: Bundle
    scorer: Scorer
    name: str
    frames: Frames
    parts: dict[int, Part]

    def incumbent(self) -> Candidate:
        """What serves now: it is not calibrated anew, it serves as it is."""

        def logits(part: int, rows: Rows, starts: Integers | None = None) -> Floats:
            return self.scorer.logits(self.name, **self._asked(part, rows, starts))

        return self._candidate(logits)

    def stack(self) -> Candidate | None:
        """The stack that serves now, climbed anew with tonight's training rows; None where there is none."""
        learnt = self.parts[TRAIN].rows
        spread = evenly(len(learnt), self.night.settings.transfer.rows)
        learnt = learnt.take(spread)
        entry = self.parent.manifest.contexts[self.name].stack
        refitted = refit(
            self.parent,
            self.night.contexts[self.name],
            self.night.settings,
            lambda: self._experts(TRAIN, learnt, taken=spread.numpy()),
            learnt.dense.numpy(),
            learnt.label.double().numpy(),
            learnt.weight.double().numpy(),
        )
        if refitted is None or entry is None:
            return None
        refitted.write(self.night.folder, self.name)
        bank = self.parent.manifest.banks[refitted.bank]

        def logits(part: int, rows: Rows, starts: Integers | None = None) -> Floats:
            scaled = bank.scaled(self._experts(part, rows, starts))
            return refitted.climbed.logits(scaled, rows.dense.numpy())

        return self._candidate(logits)

    def _candidate(self, logits: Callable[..., Floats]) -> Candidate:
        looked_at = _looked_at(self.night, self.parts)
        test = logits(TEST, looked_at.test)
        lists = test
        if looked_at.lists is not looked_at.test:
            lists = logits(TEST, looked_at.lists, self.parts[TEST].list_starts())
        return Candidate(Calibration(), logits(VALIDATION, looked_at.validation), test, lists)

    def _experts(
        self, part: int, rows: Rows, starts: Integers | None = None, *, taken: Integers | None = None
    ) -> Floats:
        stack = self.parent.manifest.contexts[self.name].stack
        assert stack is not None  # noqa: S101  (who asks for experts serves a stack)
        return self.scorer.experts(stack.bank, self.name, **self._asked(part, rows, starts, taken))

    def _asked(
        self, part: int, rows: Rows, starts: Integers | None = None, taken: Integers | None = None
    ) -> dict[str, Any]:
        """The rows of a part (all, or those ``taken``) in the words of the log, as the scorer reads them."""
        in_context = (self.frames.table["context"] == self.name).to_numpy()
        table = self.frames.table[np.flatnonzero((self.frames.part == part) & in_context)]
        table = table if taken is None else table[taken]
        histories = table["history"] if starts is None else table["history"][starts]
        return {
            "users": table["user_id"].to_list(),
            "items": table["item_id"].to_list(),
            "categories": table["categories"].to_list(),
            "histories": histories.to_list(),
            "dense": rows.dense.numpy(),
        }


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
