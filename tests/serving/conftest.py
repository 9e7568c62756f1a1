"""A small living workspace: a simulated log, features in Feast's online store, a promoted bundle.

The network is not trained, its weights are drawn: serving must be right whatever the weights are.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import polars as pl
import pytest
import torch
from http_client import serving, with_keys

from recmeta.bundle.export import export_network, write_adapter
from recmeta.bundle.manifest import ContextEntry, Features, Manifest
from recmeta.bundle.store import BundleStore
from recmeta.bundle.unit import write_unit
from recmeta.contexts import Contexts, load_contexts
from recmeta.events.schema import INTERACTION_SCHEMA
from recmeta.events.store import event_span, ingest, read_items, scan_events
from recmeta.features.assembly import FeatureSpace
from recmeta.features.build import build_features
from recmeta.features.feast_store import FeatureStore
from recmeta.models.calibration import Calibration
from recmeta.models.shared import ModelShape, SharedModel
from recmeta.serving.catalogue import CATALOGUE, catalogue_table
from recmeta.serving.recommender import Recommender
from recmeta.settings import Settings, load_settings


@dataclass(frozen=True)
class Living:
    """A workspace in which something serves: reading adapter, feed shared, commenting popularity."""

    settings: Settings
    contexts: Contexts
    until: datetime
    version: str
    events: pl.DataFrame

    def reader(self) -> str:
        """The user who read most."""
        positive = self.events.filter((pl.col("label") == 1) & (pl.col("context") == "reading"))
        found: str = positive["user_id"].value_counts(sort=True, name="n").sort("n", "user_id")[-1, 0]
        return found


def publish(settings: Settings, contexts: Contexts, until: datetime, *, seed: int, files: Path) -> str:
    """Publish and promote a bundle with drawn weights; return its version."""
    events, items = scan_events(settings, None, until), read_items(settings)
    space = FeatureSpace(contexts, settings.features.half_lives, settings.features.history_length)
    ids = {
        name: events.select(pl.col(name).unique().sort()).collect()[name].to_list()
        for name in ("user_id", "item_id")
    }
    categories = sorted(items["categories"].explode().drop_nulls().unique().to_list())
    torch.manual_seed(seed)
    model = SharedModel(
        ModelShape(
            features=space.size,
            users=len(ids["user_id"]) + 1,
            items=len(ids["item_id"]) + 1,
            categories=len(categories) + 1,
            contexts=len(contexts.names) + 1,
            history_length=settings.features.history_length,
            hidden=(16, 8),
        )
    )
    with torch.no_grad():
        model.weights["head_weight"].normal_()
        for table in (model.user_table, model.item_table, model.category_table):
            table.normal_()
    name, unit = write_unit(
        files, export_network(model, files.parent, space.split), contexts=contexts.names,
        users=ids["user_id"], items=ids["item_id"], categories=categories,
    )  # fmt: skip
    adapter = model.starting_adapter(seed)
    adapter["head_bias"] += 1.0
    path = files / "adapters" / "reading.onnx_adapter"
    path.parent.mkdir()
    write_adapter(model, adapter, path)
    catalogue_table(events, items).write_parquet(files / CATALOGUE)
    plain = {"network": Calibration()}
    manifest = Manifest(
        until=until,
        seed=seed,
        settings_digest="ab" * 32,
        features=Features(
            names=space.names,
            digest=space.digest,
            half_lives=space.half_lives,
            history_length=space.history_length,
            popularity=space.popularity_column(),
        ),
        declarations=contexts,
        units={name: unit},
        contexts={
            "reading": ContextEntry(
                serves="adapter",
                reason="",
                unit=name,
                adapter="adapters/reading.onnx_adapter",
                calibration=plain,
            ),
            "feed": ContextEntry(serves="shared", reason="", unit=name, calibration=plain),
            "commenting": ContextEntry(serves="nothing", reason="refused"),
        },
    )
    store = BundleStore(settings.bundles_folder)
    before = store.champion_version()
    version = store.publish(manifest, files)
    store.promote(version, expected_parent=before)
    return version


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("living")
    settings = load_settings(folder / "workspace")
    ingest(settings, "simulator", users=60, items=80, days=12)
    contexts = load_contexts(settings.contexts_file)
    span = event_span(settings)
    assert span is not None
    build_features(settings, contexts, span.end)
    store = FeatureStore(settings, contexts)
    store.apply()
    store.materialize(span.end)
    (folder / "files").mkdir()
    publish(settings, contexts, span.end, seed=1, files=folder / "files")
    return settings.workspace


@pytest.fixture
def living(_built: Path, tmp_path: Path) -> Living:
    """A copy of the workspace, for one test to change as it likes."""
    shutil.copytree(_built, tmp_path / "workspace")
    settings = load_settings(tmp_path / "workspace")
    champion = BundleStore(settings.bundles_folder).champion()
    assert champion is not None
    return Living(
        settings,
        champion.manifest.declarations,
        champion.manifest.until,
        champion.version,
        scan_events(settings).collect(),
    )


@pytest.fixture
def recommender(living: Living) -> Recommender:
    return Recommender(living.settings)


@pytest.fixture
def now(living: Living) -> datetime:
    return living.until + timedelta(hours=1)


@pytest.fixture
def client(living: Living) -> Iterator[httpx.Client]:
    """A client of a server of this test's own."""
    with serving(with_keys(living.settings)) as made:
        yield made


@pytest.fixture(scope="module")
def steady(_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server that no test changes."""
    shutil.copytree(_built, workspace := tmp_path_factory.mktemp("steady") / "workspace")
    with serving(with_keys(load_settings(workspace))) as made:
        yield made


def acted(living: Living, user: str, item: str, context: str, at: datetime) -> pl.DataFrame:
    row = {
        "event_id": f"live-{user}-{item}", "user_id": user, "item_id": item, "context": context,
        "event_timestamp": at, "created_timestamp": at, "label": 1, "weight": 1.0,
        "position": None, "propensity": None,
    }  # fmt: skip
    return pl.DataFrame([row], schema=INTERACTION_SCHEMA)
