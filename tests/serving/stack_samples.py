"""A bundle with a real network, real trees, a bank of them, and contexts that serve stacks.

Three sources (commenting and feed have trees, reading has none) and a newsletter without columns of its
own. Weights are drawn: serving must be right whatever they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from recmeta.bundle.bank import write_bank
from recmeta.bundle.export import export_network
from recmeta.bundle.export_trees import export_trees
from recmeta.bundle.manifest import Bank, ContextEntry, Features, Manifest, Stack
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.bundle.unit import write_unit
from recmeta.contexts import Contexts
from recmeta.evaluation.baselines import Trees, fit_trees
from recmeta.features.assembly import Block, FeatureSpace
from recmeta.features.schema import counter_names
from recmeta.models.calibration import Calibration
from recmeta.models.shared import ModelShape, SharedModel
from recmeta.settings import TreeSettings

HALF_LIVES, HISTORY = (timedelta(days=7),), 4
NAMED = {
    "commenting": {"positives": ["COMMENT"], "negatives": {"exposure": {"context": "reading"}}},
    "feed": {"positives": ["CLICK"], "negatives": {"impressions": {"events": ["IMPRESSION"]}}},
    "reading": {"positives": ["READ"], "negatives": {"sample": {}}},
}
NEWSLETTER = {"positives": ["OPEN"], "negatives": {"sample": {}}, "columns": "roles"}
BEFORE = Contexts.model_validate({"contexts": NAMED})
DECLARED = Contexts.model_validate({"contexts": {**NAMED, "newsletter": NEWSLETTER}})
SOURCES = ("commenting", "feed", "reading")
SPACE = FeatureSpace(DECLARED, HALF_LIVES, HISTORY)
USERS, ITEMS, CATEGORIES = ("ann", "bob"), ("i1", "i2", "i3"), ("film", "music")
MEANS, SCALES = (0.5, -1.25, 0.125, 3.0), (1.5, 0.75, 2.0, 0.5)


def dense_rows(context: str, rows: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Rows of a context as they are assembled from counters."""
    rng = np.random.default_rng(seed)
    width = len(counter_names(HALF_LIVES))
    blocks = {
        view: Block(
            rng.random((rows, width), dtype=np.float32) * 20,
            np.where(rng.random(rows) < 0.3, np.nan, rng.random(rows) * 1000),
        )
        for view in SPACE.views(context)
    }
    return SPACE.assemble(context, blocks, 1_462_060_799_999_999 + np.arange(rows) * 977_777_777)


def drawn_trees(dense: npt.NDArray[np.float32], seed: int) -> Trees:
    label = np.random.default_rng(seed).integers(0, 2, len(dense))
    fitted = fit_trees(
        dense, label, None, None, None, TreeSettings(leaves=7, min_rows=5), threads=1, seed=0, rounds=15
    )
    assert fitted is not None
    return fitted


def drawn_model() -> SharedModel:
    torch.manual_seed(0)
    shape = ModelShape(
        features=SPACE.size,
        users=len(USERS) + 1,
        items=len(ITEMS) + 1,
        categories=len(CATEGORIES) + 1,
        contexts=len(SOURCES) + 1,
        history_length=HISTORY,
        categories_per_item=2,
        embedding_size=4,
        hidden=(8,),
        rank=2,
    )
    model = SharedModel(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.learn_scales(torch.from_numpy(dense_rows("feed", 200, seed=9)))
    return model.eval()


@dataclass(frozen=True)
class Stacked:
    """The files of a bundle, and the models that they were exported from."""

    files: Path
    model: SharedModel
    trees: dict[str, Trees]
    role_trees: Trees
    residual: Trees
    before: Manifest
    """Without the newsletter."""
    bank_name: str
    bank: Bank


def write_stacked(folder: Path) -> Stacked:
    files, model = folder / "files", drawn_model()
    unit_name, unit = write_unit(
        files,
        export_network(model, folder, SPACE.split),
        contexts=SOURCES,
        users=USERS,
        items=ITEMS,
        categories=CATEGORIES,
    )
    rows = dense_rows("reading", 400, seed=5)
    trees = {
        name: drawn_trees(SPACE.as_context(rows, name), seed)
        for seed, name in enumerate(("commenting", "feed"))
    }
    role_trees, residual = drawn_trees(rows, 7), drawn_trees(rows, 8)
    bank_name, bank = write_bank(
        files,
        sources=SOURCES,
        unit=unit_name,
        trees=trees,
        role_trees=role_trees,
        means=MEANS,
        scales=SCALES,
    )
    export_trees(trees["feed"], files / "trees" / "feed.onnx")
    before = Manifest(
        until=datetime(2026, 6, 30, tzinfo=UTC),
        seed=0,
        settings_digest="ab" * 32,
        features=Features(
            names=SPACE.names,
            digest=SPACE.digest,
            half_lives=HALF_LIVES,
            history_length=HISTORY,
            popularity=SPACE.popularity_column(),
        ),
        declarations=BEFORE,
        units={unit_name: unit},
        trained=unit_name,
        banks={bank_name: bank},
        bank=bank_name,
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
    return Stacked(files, model, trees, role_trees, residual, before, bank_name, bank)


def stack_entry(
    bank: str, weights: tuple[float, ...], *, intercept: float = 0.0, trees: str | None = None
) -> ContextEntry:
    stack = Stack(
        bank=bank,
        weights=weights,
        intercept=intercept,
        rung="stack" if trees is None else "boosted",
        positives=10,
        rows=90,
    )
    return ContextEntry(serves="stack", reason="", stack=stack, trees=trees)


def publish_before(stacked: Stacked, folder: Path) -> Bundle:
    store = BundleStore(folder / "bundles")
    return store.open(store.publish(stacked.before, stacked.files))
