"""Make the night's bundle, check it against the models it came from, publish it, and promote it.

What a context keeps from the champion is carried over file by file. This module must never judge
quality: the gates did, and it only adds what can be known after export (parity).
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from recmeta import artifacts
from recmeta.bundle.bank import write_bank
from recmeta.bundle.export import export_network, write_adapter
from recmeta.bundle.export_trees import export_trees
from recmeta.bundle.manifest import Bank as BankEntry
from recmeta.bundle.manifest import ContextEntry, Features, Manifest, Unit
from recmeta.bundle.parity import network_difference, trees_difference
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.bundle.unit import carry_bank, carry_over, write_unit
from recmeta.dataset import TEST, Vocabularies
from recmeta.episodes.rows import Rows
from recmeta.evaluation.baselines import Trees
from recmeta.evaluation.gates import BundleDecision, Decision, GateResult, decide_bundle
from recmeta.model_folder import load_model
from recmeta.models.shared import SharedModel
from recmeta.serving.catalogue import CATALOGUE, Catalogue
from recmeta.serving.probes import write_probes
from recmeta.stages.learn import feature_space
from recmeta.stages.night import Night, Progress, catalogue, labelled_tensors
from recmeta.stages.refitted import read_refitted
from recmeta.stages.towers import write_towers
from recmeta.stages.transfer import BANK, EVIDENCE, read_bank, read_evidence

EXPORTED = "exported"
"""Folder of a network's graphs until they lie in a unit."""

PARITY_ROWS = 2_000
"""Test rows of a context on which exported files are compared with the models they came from."""


def publish(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Publish and promote what the gates let pass; where that is nothing, say why and change nothing."""
    store = BundleStore(night.settings.bundles_folder)
    done = night.folder / "publish.json"
    if done.exists():  # written after promotion: what was rolled back since is not promoted again
        report: dict[str, Any] = dict(artifacts.read_json(done))
        return {**report, "champion": store.champion_version()}
    decided = artifacts.read_json(night.folder / "evaluate.json")
    parent = None if night.parent is None else store.open(night.parent)
    with tempfile.TemporaryDirectory(prefix="recmeta-") as temporary:
        making = _Making(night, decided, parent, Path(temporary))
        making.write()
        verdict = _judge(decided, making.parities, night, parent)
        version = None
        retrieval: dict[str, Any] = {}
        if verdict.promote:
            manifest = making.manifest()
            towers, retrieval = write_towers(night, manifest, Path(temporary), progress)
            manifest = manifest.model_copy(update={"towers": towers})
            write_probes(Path(temporary), manifest)
            version = store.publish(manifest, Path(temporary))
    if version is not None:
        store.promote(version, night.parent)
    report = {
        "version": version,
        "promoted": version is not None,
        "reason": verdict.reason,
        "champion": store.champion_version(),
        "parent": night.parent,
        "until": night.until.isoformat(),
        "largest_logit_difference": max(making.parities.values(), default=0.0),
        "retrieval": retrieval,
        "contexts": {
            name: {
                "serves": found["serves"],
                "promoted": found["promoted"],
                "reason": found["reason"],
                "metrics": found["metrics"].get(_measured_as(found["serves"]), {}),
                "candidates": found["metrics"],
            }
            for name, found in decided.items()
        },
    }
    artifacts.write_json(done, report)
    return report


def _measured_as(serves: str) -> str:
    return "popularity" if serves == "nothing" else serves


def _judge(
    decided: dict[str, Any], parities: dict[str, float], night: Night, parent: Bundle | None
) -> BundleDecision:
    decisions = {
        name: Decision(
            context=name,
            serves=found["serves"],
            promoted=found["promoted"],
            reason=found["reason"],
            checks=tuple(GateResult(**check) for check in found["checks"]),
            metrics=found["metrics"],
        )
        for name, found in decided.items()
    }
    serving = None if parent is None else frozenset(parent.manifest.contexts)
    return decide_bundle(
        decisions,
        parities,
        night.settings.gate,
        parent_contexts=serving,
        outdated=None if parent is None else _outdated(parent, night),
    )


def _outdated(parent: Bundle, night: Night) -> str | None:
    """Why the parent can recommend nothing though the log holds items: it came before any of them."""
    known = CATALOGUE not in parent.manifest.files or len(Catalogue(parent.file(CATALOGUE))) > 0
    if known or catalogue(night).is_empty():
        return None
    return "what serves now serves on, with the items that have come since"


@dataclass
class _Making:
    """A bundle while it is made: files below ``folder``, and what the manifest will say of them."""

    night: Night
    decided: dict[str, Any]
    parent: Bundle | None
    folder: Path
    parities: dict[str, float] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    contexts: dict[str, ContextEntry] = field(default_factory=dict)
    banks: dict[str, BankEntry] = field(default_factory=dict)
    trained: str = ""
    bank: str | None = None

    def write(self) -> None:
        """Export what tonight made and what is served of it, and carry over what stays."""
        train = self.night.folder / "train"
        model = load_model(train)
        parts = labelled_tensors(self.night)
        rows = [self._probe(parts[TEST].of_context(index).rows) for index, _ in enumerate(self.decided, 1)]
        graph = export_network(model, self.folder / EXPORTED, feature_space(self.night).split)
        vocabularies = Vocabularies.load(train)
        self.trained, unit = write_unit(
            self.folder,
            graph,
            contexts=self.night.contexts.names,
            users=vocabularies.users.ids,
            items=vocabularies.items.ids,
            categories=vocabularies.categories.ids,
            model=train,
        )
        self.units[self.trained] = unit
        kept_graph = self.folder / "units" / self.trained / graph.name
        shutil.rmtree(graph.parent)
        for (name, found), probe in zip(self.decided.items(), rows, strict=True):
            if found["serves"] == "incumbent":
                assert self.parent is not None  # noqa: S101  (an incumbent is the parent's)
                self.contexts[name], units, banks = carry_over(self.parent, name, self.folder)
                self.units |= units
                self.banks |= banks
                continue
            adapter = trees = None
            networked = found["blends"] if found["serves"] == "blend" else found["serves"]
            if networked == "adapter":
                adapter = f"adapters/{name}.onnx_adapter"
                tensors = load_file(self.night.folder / "adapters" / f"{name}.safetensors")
                (self.folder / "adapters").mkdir(exist_ok=True)
                write_adapter(model, tensors, self.folder / adapter)
                self._compare(name, model, kept_graph, probe, tensors, self.folder / adapter)
            elif networked == "shared":
                self._compare(name, model, kept_graph, probe)
            if found["serves"] in ("trees", "blend"):
                trees = f"trees/{name}.onnx"
                self._export_trees(name, self._challenger(name), self.folder / trees, probe)
            if found["serves"] == "stack":
                self.contexts[name] = self._stack(name, found, probe)
                continue
            self.contexts[name] = self._entry(found, networked, adapter, trees)
        self._write_bank()
        with artifacts.replacing(self.folder / CATALOGUE) as temporary:
            catalogue(self.night).write_parquet(temporary, compression="zstd", statistics=False)

    def _write_bank(self) -> None:
        """Export what a new surface would stand on, and what is known about that."""
        bank, found = read_bank(self.night), read_evidence(self.night)
        if bank is None or found is None:
            return
        folder = self.night.folder / BANK
        graph = export_network(bank.network, self.folder / EXPORTED, feature_space(self.night).split)
        vocabularies = Vocabularies.load(folder)
        name, unit = write_unit(
            self.folder,
            graph,
            contexts=bank.contexts,
            users=vocabularies.users.ids,
            items=vocabularies.items.ids,
            categories=vocabularies.categories.ids,
        )
        shutil.rmtree(graph.parent)
        self.units[name] = unit
        self.bank, entry = write_bank(
            self.folder,
            sources=bank.sources,
            unit=name,
            trees=bank.trees,
            role_trees=bank.role_trees,
            means=bank.means.tolist(),
            scales=bank.scales.tolist(),
        )
        self.banks[self.bank] = entry
        artifacts.write_json(self.folder / EVIDENCE, found)
        index = bank.contexts.index(bank.sources[0]) + 1
        probe = self._probe(labelled_tensors(self.night)[TEST].of_context(index).rows)
        if len(probe) > 1:
            rows = replace(probe, user=probe.user * 0, item=probe.item * 0, history=probe.history * 0)
            graph = self.folder / "units" / name / graph.name
            self.parities["bank network"] = network_difference(bank.network, graph, rows.columns())
            every = {**bank.trees, **({"newcomer": bank.role_trees} if bank.role_trees else {})}
            for source, trees in every.items():
                file = entry.role_trees if source == "newcomer" else entry.trees[source]
                assert file is not None  # noqa: S101  (written above)
                self.parities[f"bank {source} trees"] = trees_difference(
                    trees, self.folder / file, probe.dense.numpy()
                )

    def _stack(self, name: str, found: dict[str, Any], probe: Rows) -> ContextEntry:
        """A stack that was climbed anew, over the parent's bank."""
        assert self.parent is not None  # noqa: S101  (its experts are the parent's)
        refitted = read_refitted(self.night.folder, name)
        units, banks = carry_bank(self.parent, refitted.bank, self.folder)
        self.units |= units
        self.banks |= banks
        trees = None
        if refitted.climbed.residual is not None:
            trees = f"trees/{name}.onnx"
            self._export_trees(name, refitted.climbed.residual, self.folder / trees, probe)
        return ContextEntry(
            serves="stack",
            reason=found["reason"],
            trees=trees,
            stack=refitted.entry(),
            metrics=found["metrics"].get("stack", {}),
        )

    def _challenger(self, name: str) -> Trees:
        file = self.night.folder / "trees" / f"{name}.txt"
        return Trees.from_text(file.read_text(encoding="utf-8"))

    def _export_trees(self, name: str, trees: Trees, path: Path, probe: Rows) -> None:
        export_trees(trees, path)
        if len(probe):
            self.parities[f"{name} trees"] = trees_difference(trees, path, probe.dense.numpy())

    def _compare(self, name: str, model: SharedModel, graph: Path, probe: Rows, *adapter: Any) -> None:
        if len(probe) > 1:
            self.parities[f"{name} network"] = network_difference(model, graph, probe.columns(), *adapter)

    def _entry(
        self, found: dict[str, Any], networked: str, adapter: str | None, trees: str | None
    ) -> ContextEntry:
        serves = found["serves"]
        fitted = found["calibration"]
        calibration = {}
        if networked in ("shared", "adapter"):
            calibration["network"] = fitted[networked]
        if trees is not None:
            calibration["trees"] = fitted["trees"]
        if serves in ("popularity", "nothing"):
            calibration["popularity"] = fitted["popularity"]
        return ContextEntry.model_validate(
            {
                "serves": serves,
                "reason": found["reason"],
                "unit": self.trained if "network" in calibration else None,
                "adapter": adapter,
                "trees": trees,
                "calibration": calibration,
                "tree_weight": found["tree_weight"] if serves == "blend" else 0.0,
                "metrics": found["metrics"].get(_measured_as(serves), {}),
            }
        )

    def _probe(self, rows: Rows) -> Rows:
        return rows.take(torch.arange(min(len(rows), PARITY_ROWS)))

    def manifest(self) -> Manifest:
        """What the bundle says of itself; the store adds the checksums."""
        settings = self.night.settings
        space = feature_space(self.night)
        return Manifest(
            until=self.night.until,
            parent=self.night.parent,
            seed=settings.training.seed,
            settings_digest=artifacts.digest_of(
                settings.model_dump(mode="json", exclude={"workspace", "stores", "serving"})
            ),
            features=Features(
                names=space.names,
                digest=space.digest,
                half_lives=settings.features.half_lives,
                history_length=settings.features.history_length,
                popularity=space.popularity_column(),
            ),
            declarations=self.night.contexts,
            units=self.units,
            trained=self.trained,
            banks=self.banks,
            bank=self.bank,
            transfer=None if self.bank is None else EVIDENCE,
            contexts=self.contexts,
        )
