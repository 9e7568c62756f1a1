"""What tonight's contexts know of surfaces to come: the bank, and the evidence of what it is worth.

Both go to the night's own folder: ``bank/`` and ``transfer.json``. They are dear to make and change slowly,
so that those of an earlier night are taken along while rows have hardly grown. This module must never decide
what serves a known context.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recmeta import artifacts
from recmeta.dataset import TEST, TRAIN, VALIDATION, Vocabularies, item_content, thinned_logs
from recmeta.errors import InputError
from recmeta.evaluation.baselines import Trees
from recmeta.model_folder import load_model
from recmeta.stages.learn import feature_space
from recmeta.stages.night import Night, Progress, catalogue, labelled_rows, labelled_tensors
from recmeta.transfer.audit import negative_cells, related_pairs, remedies, transfer_matrix, untried
from recmeta.transfer.bank import Bank, Learnt, fit_bank
from recmeta.transfer.curve import Curves
from recmeta.transfer.evidence import evidence
from recmeta.transfer.held_out import HeldOut, hold_out
from recmeta.transfer.verdict import verdict

BANK = "bank"
EVIDENCE = "transfer.json"
LEAST_TEST_POSITIVES = 30
"""A context with fewer later positives is not held out: its curve would be noise."""


def transfer(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Fit the bank, hold every label family out in turn, and write down what came of it.

    Where transfer is turned off, or no context has named columns and data, nothing is written and the bundle
    has no bank.
    """
    done = night.folder / "transfer-stage.json"
    if done.exists():
        return dict(artifacts.read_json(done))
    report: dict[str, Any] = {"fitted": None}
    if night.settings.transfer.enabled and _sources(night):
        inputs, counts = _inputs(night), _counts(night)
        earlier = _recent(night, inputs, counts)
        if earlier is None:
            _make(night, progress)
            report = {"fitted": night.folder.name, "inputs": inputs, "rows": counts}
        else:
            folder, report = earlier
            _take_along(folder, night.folder)
    artifacts.write_json(done, report)
    return report


def read_bank(night: Night) -> Bank | None:
    """Read the bank that `transfer` left in the night's folder; None where there is none."""
    folder = night.folder / BANK
    if not (folder / "bank.json").exists():
        return None
    told = artifacts.read_json(folder / "bank.json")
    return Bank(
        space=feature_space(night),
        contexts=tuple(told["contexts"]),
        sources=tuple(told["sources"]),
        hidden=(),
        network=load_model(folder),
        trees={
            source: trees for source in told["sources"] if (trees := _read_trees(folder / f"{source}.txt"))
        },
        role_trees=_read_trees(folder / "role-trees.txt"),
        means=np.array(told["means"]),
        scales=np.array(told["scales"]),
    )


def read_evidence(night: Night) -> dict[str, Any] | None:
    """What `transfer` wrote down; None where it wrote nothing."""
    file = night.folder / EVIDENCE
    return dict(artifacts.read_json(file)) if file.exists() else None


def _read_trees(file: Path) -> Trees | None:
    return Trees.from_text(file.read_text(encoding="utf-8")) if file.exists() else None


def _make(night: Night, progress: Progress | None) -> None:
    learnt = _learnt(night)
    families = night.contexts.families()
    scratch = night.folder / "held-out"
    full = fit_bank(learnt, night.folder / BANK, trees=_night_trees(night))
    held: list[HeldOut] = []
    without: dict[str, Bank] = {}
    for number, (family, members) in enumerate(families.items()):
        if progress is not None:
            progress("transfer: hold out", number, len(families))
        try:
            without[family] = fit_bank(learnt, scratch / family, hidden=members)
        except InputError:  # nothing is left without it: one family cannot say anything about a new one
            continue
        held += [
            hold_out(learnt, without[family], name, night.until)
            for name in members
            if _test_positives(night, name) >= LEAST_TEST_POSITIVES
        ]
    if progress is not None:
        progress("transfer: hold out", len(families), len(families))
    curves = Curves(held, families, night.settings, progress)
    found = evidence(curves, families, night.settings)
    found |= _audit(night, learnt, full, without, scratch)
    _write_bank(full, night.folder / BANK)
    Vocabularies.load(night.folder / "train").save(night.folder / BANK)
    artifacts.write_json(night.folder / EVIDENCE, found)
    shutil.rmtree(scratch, ignore_errors=True)


def _audit(
    night: Night, learnt: Learnt, full: Bank, without: Mapping[str, Bank], scratch: Path
) -> dict[str, Any]:
    """Who helps whom, who is in whose way, what parting them gives; and which way of learning is best."""
    families = night.contexts.families()
    validation = transfer_matrix(full, without, families, learnt.parts, part=VALIDATION)
    test = transfer_matrix(full, without, families, learnt.parts, part=TEST)
    found = remedies(learnt, full, without, families, scratch / "remedies", validation=validation)
    return {
        "related": related_pairs(learnt.frames),
        "audit": test,
        "negative": negative_cells(test),
        "remedies": found,
        "untried": untried(validation, found),
        "verdict": verdict(learnt, full, full.trees, scratch / "verdict"),
    }


def _learnt(night: Night) -> Learnt:
    frames, space = labelled_rows(night), feature_space(night)
    parts = labelled_tensors(night)
    vocabularies = Vocabularies.load(night.folder / "train")
    return Learnt(
        settings=night.settings,
        space=space,
        frames=frames,
        parts=parts,
        logs=thinned_logs(frames, night.settings, space, night.until),
        shape=load_model(night.folder / "train").shape,
        content=item_content(catalogue(night), vocabularies),
    )


def _night_trees(night: Night) -> dict[str, Trees]:
    """The challengers are trees of each context on its own rows: experts already."""
    found = {name: _read_trees(night.folder / "trees" / f"{name}.txt") for name in night.contexts.named}
    return {name: trees for name, trees in found.items() if trees is not None}


def _write_bank(bank: Bank, folder: Path) -> None:
    named = dict(bank.trees)
    if bank.role_trees is not None:
        named["role-trees"] = bank.role_trees
    for name, trees in named.items():
        artifacts.write_text(folder / f"{name}.txt", trees.text())
    artifacts.write_json(
        folder / "bank.json",
        {
            "contexts": list(bank.contexts),
            "sources": list(bank.sources),
            "means": bank.means.tolist(),
            "scales": bank.scales.tolist(),
        },
    )


def _take_along(earlier: Path, folder: Path) -> None:
    with_bank = earlier / BANK
    if with_bank.exists() and not (folder / BANK).exists():
        with artifacts.building_directory(folder / BANK) as building:
            shutil.copytree(with_bank, building, dirs_exist_ok=True)
    artifacts.write_text(folder / EVIDENCE, (earlier / EVIDENCE).read_text(encoding="utf-8"))


def _sources(night: Night) -> list[str]:
    return [name for name in night.contexts.named if _counts(night).get(name)]


def _counts(night: Night) -> dict[str, int]:
    rows = labelled_tensors(night)[TRAIN]
    return {
        name: len(rows.of_context(number).rows) for number, name in enumerate(night.contexts.names, start=1)
    }


def _test_positives(night: Night, name: str) -> int:
    index = night.contexts.names.index(name) + 1
    return int(labelled_tensors(night)[TEST].of_context(index).rows.label.sum())


def _inputs(night: Night) -> str:
    """A digest of everything but the rows that decides bank and evidence."""
    return artifacts.digest_of(
        feature_space(night).digest,
        night.settings.transfer.model_dump(mode="json"),
        night.settings.training.model_dump(mode="json"),
        night.settings.trees.model_dump(mode="json"),
        {family: list(names) for family, names in night.contexts.families().items()},
    )


def _recent(night: Night, inputs: str, counts: Mapping[str, int]) -> tuple[Path, dict[str, Any]] | None:
    """The folder and report of the latest earlier night whose bank these rows would hardly change."""
    growth = night.settings.transfer.refit_growth
    for folder in sorted(night.settings.runs_folder.glob("*"), reverse=True):
        done = folder / "transfer-stage.json"
        if folder.name[:8] >= night.folder.name[:8] or not done.exists():
            continue
        report = dict(artifacts.read_json(done))
        if report.get("inputs") == inputs and all(
            abs(counts.get(name, 0) - rows) <= growth * rows for name, rows in report["rows"].items()
        ):
            return folder, report
    return None
