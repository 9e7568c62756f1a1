"""A small product with a champion that has a bank, made without a night; and files of a new surface.

The network's weights are drawn and the trees are small: how a surface comes in has to be right whatever the
experts say.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from recmeta.artifacts import digest_of, write_json
from recmeta.bundle.bank import write_bank
from recmeta.bundle.export import export_network
from recmeta.bundle.export_trees import export_trees
from recmeta.bundle.manifest import ContextEntry, Features, Manifest
from recmeta.bundle.store import BundleStore
from recmeta.bundle.unit import write_unit
from recmeta.contexts import Contexts, load_contexts
from recmeta.evaluation.baselines import Trees, fit_trees
from recmeta.events.labels import build_labels
from recmeta.events.store import ingest, read_items, scan_events
from recmeta.features.build import build_features
from recmeta.features.training_rows import build_rows, feature_space, load_rows
from recmeta.models.calibration import Calibration
from recmeta.models.shared import ModelShape, SharedModel
from recmeta.serving.catalogue import CATALOGUE, catalogue_table
from recmeta.settings import Settings, TreeSettings, load_settings

UNTIL = datetime(2026, 6, 30, tzinfo=UTC)
NOW = datetime(2026, 7, 5, tzinfo=UTC)
LOG = {"users": 80, "items": 90, "days": 14, "reads_per_day": 1.5, "slates_per_day": 0.6}
COMMENT = "# Ours: ask the feed's team before you change this.\n"

POLICY = [
    {"from_positives": 0, "rung": "zero_shot", "precision": 30.0, "newcomer": 0.2},
    {"from_positives": 5, "rung": "stack", "precision": 20.0, "newcomer": 0.4},
    {"from_positives": 40, "rung": "boosted", "precision": 10.0, "newcomer": 0.4},
]
TRANSFER: dict[str, Any] = {
    "rate": 0.15,
    "contexts": {"commenting": {}, "feed": {}},
    "mean": {"ours": {"0": 0.6, "10": 0.65, "100": 0.75}},
    "policy": POLICY,
}


def make_product(folder: Path, *, transfer: dict[str, Any] | None = None) -> Settings:
    """A workspace with features, labels, rows and a champion; nothing online."""
    settings = load_settings(folder)
    ingest(settings, "simulator", now=NOW, **LOG)
    declared = settings.contexts_file.read_text()
    settings.contexts_file.write_text(declared.replace("  feed:\n", f"  {COMMENT}  feed:\n"))
    contexts = load_contexts(settings.contexts_file)
    build_features(settings, contexts, UNTIL)
    build_labels(settings, contexts, UNTIL)
    build_rows(settings, contexts, UNTIL)
    files = folder.parent / f"{folder.name}-files"
    store = BundleStore(settings.bundles_folder)
    store.promote(store.publish(_manifest(settings, contexts, files, transfer or TRANSFER), files), None)
    return settings


def _manifest(settings: Settings, contexts: Contexts, files: Path, transfer: dict[str, Any]) -> Manifest:
    space = feature_space(settings, contexts)
    names = contexts.names
    items = read_items(settings)
    users = sorted(scan_events(settings).select(pl.col("user_id").unique()).collect()["user_id"])[:60]
    ids = items["item_id"].to_list()
    categories = sorted(set(items["categories"].explode().drop_nulls()))
    torch.manual_seed(0)
    shape = ModelShape(
        features=space.size,
        users=len(users) + 1,
        items=len(ids) + 1,
        categories=len(categories) + 1,
        contexts=len(names) + 1,
        history_length=settings.features.history_length,
        categories_per_item=4,
        embedding_size=4,
        hidden=(8,),
        rank=2,
    )
    model = SharedModel(shape)
    dense = {name: np.stack(load_rows(settings, name)["dense"].to_numpy()) for name in names}
    labels = {name: load_rows(settings, name)["label"].to_numpy() for name in names}
    model.learn_scales(torch.from_numpy(dense["reading"]))
    files.mkdir()
    unit_name, unit = write_unit(
        files,
        export_network(model.eval(), files, space.split),
        contexts=names,
        users=users,
        items=ids,
        categories=categories,
    )
    for graph in ("graph.onnx", "items.onnx"):
        (files / graph).unlink()
    trees = {name: _trees(space.as_context(dense[name], name), labels[name]) for name in ("feed", "reading")}
    newcomer = _trees(space.as_newcomer(dense["feed"], "feed"), labels["feed"])
    bank_name, bank = write_bank(
        files,
        sources=names,
        unit=unit_name,
        trees=trees,
        role_trees=newcomer,
        means=[-1.0] * (len(names) + 1),
        scales=[0.7] * (len(names) + 1),
    )
    export_trees(trees["feed"], files / "trees" / "feed.onnx")
    catalogue_table(scan_events(settings), items).write_parquet(files / CATALOGUE)
    write_json(files / "transfer.json", transfer)
    return Manifest(
        until=UNTIL,
        seed=0,
        settings_digest=digest_of("a product of tests"),
        features=Features(
            names=space.names,
            digest=space.digest,
            half_lives=space.half_lives,
            history_length=space.history_length,
            popularity=space.popularity_column(),
        ),
        declarations=contexts,
        units={unit_name: unit},
        trained=None,  # there are no weights from which a night could start
        banks={bank_name: bank},
        bank=bank_name,
        transfer="transfer.json",
        contexts={
            "commenting": ContextEntry(
                serves="popularity", reason="", calibration={"popularity": Calibration()}
            ),
            "feed": ContextEntry(
                serves="blend",
                reason="",
                unit=unit_name,
                trees="trees/feed.onnx",
                tree_weight=0.4,
                calibration={"network": Calibration(0.5, -1.0), "trees": Calibration(2.0, 0.5)},
            ),
            "reading": ContextEntry(
                serves="shared", reason="", unit=unit_name, calibration={"network": Calibration()}
            ),
        },
    )


def with_evidence(settings: Settings, **changes: Any) -> str:
    """Another champion that carries other evidence; None as a value takes a part away."""
    store = BundleStore(settings.bundles_folder)
    before = store.champion()
    assert before is not None
    files = settings.workspace.parent / "evidence"
    shutil.copytree(before.folder, files)
    (files / "manifest.json").unlink()
    told = {name: value for name, value in {**TRANSFER, **changes}.items() if value is not None}
    (files / "transfer.json").write_text(json.dumps(told))
    version = store.publish(before.manifest.model_copy(update={"files": {}, "seed": 1}), files)
    store.promote(version, before.version)
    return version


def _trees(dense: Any, label: Any) -> Trees:
    fitted = fit_trees(
        dense, label, None, None, None, TreeSettings(leaves=7, min_rows=10), threads=1, seed=0, rounds=20
    )
    assert fitted is not None
    return fitted


def shares(settings: Settings, count: int, *, context: str = "reading") -> pl.DataFrame:
    """The first ``count`` shares: people share, an hour after, what they read of topics that one shares."""
    engaged = scan_events(settings).filter(pl.col("context") == context, pl.col("label") == 1).collect()
    firsts = engaged.sort("event_timestamp", "event_id").unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )
    topics = ("cooking", "cycling", "film")
    found = firsts.filter(
        pl.any_horizontal(pl.col("item_id").str.starts_with(topic) for topic in topics),
        pl.col("event_timestamp") > UNTIL - timedelta(days=10),
        pl.col("event_timestamp") < UNTIL - timedelta(days=3),
    ).select("user_id", "item_id", pl.col("event_timestamp") + pl.duration(hours=1))
    assert found.height >= count
    return found.gather_every(max(1, found.height // count)).head(count)


def write(path: Path, rows: pl.DataFrame) -> Path:
    rows.write_csv(path, datetime_format="%+")
    return path


@dataclass(frozen=True)
class State:
    """What of a workspace may serve or be learnt from: digests of files."""

    champion: str | None
    contexts: str
    events: dict[str, str]
    ledger: dict[str, str]

    @classmethod
    def of(cls, workspace: Path) -> State:
        def digests(folder: str) -> dict[str, str]:
            files = sorted((workspace / folder).glob("*.*"))
            return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.name != ".lock"}

        return cls(
            BundleStore(workspace / "bundles").champion_version(),
            (workspace / "contexts.yaml").read_text(),
            digests("events"),
            digests("ledger"),
        )
