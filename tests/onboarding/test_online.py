"""The surface is online the moment it serves, and the next night finds what it would have written itself."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from onboarding_samples import NOW, UNTIL, shares, write

from recmeta.bundle.store import BundleStore
from recmeta.contexts import load_contexts
from recmeta.events.schema import INTERACTION_SCHEMA
from recmeta.events.store import scan_events
from recmeta.features.build import build_features
from recmeta.features.feast_store import FeatureStore
from recmeta.features.live import OnlineFeatures
from recmeta.onboarding import onboard, promote_surface
from recmeta.serving.recommender import Recommender
from recmeta.settings import Settings, load_settings


@pytest.fixture(scope="module")
def served(product: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The product with its online features."""
    folder = tmp_path_factory.mktemp("served") / "workspace"
    shutil.copytree(product.workspace, folder)
    settings = load_settings(folder)
    with FeatureStore(settings, load_contexts(settings.contexts_file)) as store:
        store.apply()
        store.materialize(UNTIL)
    return settings


@pytest.fixture
def online(served: Settings, tmp_path: Path) -> Settings:
    shutil.copytree(served.workspace, tmp_path / "workspace")
    return load_settings(tmp_path / "workspace")


@pytest.fixture
def file(served: Settings, tmp_path: Path) -> Path:
    return write(tmp_path / "12.csv", shares(served, 12))


def bring_up(settings: Settings, file: Path) -> dict[str, object]:
    return onboard(settings.workspace, "sharing", file, exposure="reading", within="1d", now=NOW)


def of(settings: Settings, user: str, items: list[str], at: datetime = UNTIL) -> OnlineFeatures:
    with FeatureStore(settings, load_contexts(settings.contexts_file)) as store:
        return store.read_online(user, items, at)


def same(one: OnlineFeatures, other: OnlineFeatures) -> None:
    assert one.history == other.history
    assert set(one.blocks) == set(other.blocks)
    for name, block in one.blocks.items():
        np.testing.assert_array_equal(block.values, other.blocks[name].values, err_msg=name)
        np.testing.assert_array_equal(block.hours, other.blocks[name].hours, err_msg=name)


def test_the_recommender_serves_the_surface_at_once(online: Settings, file: Path) -> None:
    first = shares(online, 12).row(0, named=True)
    report = bring_up(online, file)
    assert "online" in report["seconds"]  # type: ignore[operator]
    recommender = Recommender(online)
    answer = recommender.recommend("sharing", first["user_id"], 5, now=UNTIL)
    assert (answer.serves, answer.bundle, len(answer.items)) == ("stack", report["version"], 5)
    assert first["item_id"] not in [
        item.item_id for item in recommender.recommend("sharing", first["user_id"], 90, now=UNTIL).items
    ]
    for context in ("reading", "feed", "commenting"):
        assert recommender.recommend(context, first["user_id"], 5, now=UNTIL).items


def test_the_next_night_writes_what_stands_there_already(online: Settings, file: Path) -> None:
    report = bring_up(online, file)
    contexts = load_contexts(online.contexts_file)
    rows = shares(online, 12)
    pairs = list(rows.select("user_id", "item_id").iter_rows())
    before = {pair: of(online, pair[0], [pair[1]]) for pair in pairs}
    assert any(found.blocks["user__sharing"].values[0, 0] > 0 for found in before.values())
    build_features(online, contexts, UNTIL)
    with FeatureStore(online, contexts) as store:
        store.apply()
        assert store.materialize(UNTIL)["rows"] > 0
    for pair, found in before.items():
        same(found, of(online, pair[0], [pair[1]]))
    assert report["promoted"]


def test_brought_up_twice_nothing_is_counted_twice(online: Settings, file: Path, tmp_path: Path) -> None:
    plan = str(bring_up(online, file)["plan"])
    user, item, _ = shares(online, 12).row(0)
    once = of(online, user, [item])
    # As a run that died after the online features were written, and before the champion was.
    (online.runs_folder / plan / "promoted.json").unlink()
    BundleStore(online.bundles_folder).rollback()
    assert promote_surface(online.workspace, plan)["promoted"]
    same(once, of(online, user, [item]))


def test_the_history_of_a_user_who_acted_since_stays_live(online: Settings, file: Path) -> None:
    user, item, _ = shares(online, 12).row(0)
    live = pl.DataFrame(
        {
            "event_id": ["live"],
            "user_id": [user],
            "item_id": ["an item of today"],
            "context": ["reading"],
            "event_timestamp": [UNTIL + timedelta(hours=2)],
            "created_timestamp": [UNTIL + timedelta(hours=2)],
            "label": [1],
            "weight": [1.0],
            "position": [None],
            "propensity": [None],
        },
        schema=INTERACTION_SCHEMA,
    )
    Recommender(online).record(live)
    bring_up(online, file)
    found = of(online, user, [item], UNTIL + timedelta(hours=3))
    assert found.history[0] == "an item of today"
    assert found.blocks["user__sharing"].values[0, 0] > 0


def test_without_online_features_nothing_is_written_online(product: Settings, tmp_path: Path) -> None:
    shutil.copytree(product.workspace, tmp_path / "workspace")
    settings = load_settings(tmp_path / "workspace")
    report = bring_up(settings, write(tmp_path / "12.csv", shares(settings, 12)))
    assert "online" not in report["seconds"]  # type: ignore[operator]
    assert not settings.feast_folder.exists()
    assert scan_events(settings).filter(pl.col("context") == "sharing").collect().height == 12
