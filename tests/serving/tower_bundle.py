"""The living workspace's bundle once more, with towers of drawn weights beside its files."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from conftest import Living

from recmeta.bundle.export_towers import export_towers
from recmeta.bundle.manifest import ITEM_TOWER, MANIFEST_NAME, USER_TOWER, Manifest, Towers
from recmeta.bundle.store import BundleStore
from recmeta.features.assembly import FeatureSpace
from recmeta.models.shared import ModelShape, SharedModel
from recmeta.models.two_towers import TowerShape, TwoTowers

VECTOR_SIZE = 12


def drawn_towers(manifest: Manifest, seed: int = 3) -> TwoTowers:
    """Towers that fit a bundle, with weights everywhere."""
    unit = manifest.units[next(iter(manifest.units))]
    features = manifest.features
    space = FeatureSpace(manifest.declarations, features.half_lives, features.history_length)
    torch.manual_seed(seed)
    like = SharedModel(
        ModelShape(
            features=space.size,
            users=unit.users + 1,
            items=unit.items + 1,
            categories=unit.categories + 1,
            contexts=len(unit.contexts) + 1,
            history_length=features.history_length,
            hidden=(4,),
        )
    )
    with torch.no_grad():
        for table in (like.user_table, like.item_table, like.category_table):
            table.normal_()
    like.learn_item_categories(
        torch.arange(unit.items + 1), torch.randint(0, unit.categories + 1, (unit.items + 1, 4))
    )
    towers = TwoTowers(
        TowerShape(
            item_features=space.item_width(len(manifest.declarations.names)),
            user_features=len(space.split.request),
            contexts=len(unit.contexts) + 1,
            vector_size=VECTOR_SIZE,
            hidden=16,
        ),
        like,
    )
    towers.item_dense.learn(torch.rand(50, towers.shape.item_features) * 3)
    towers.user_dense.learn(torch.rand(50, towers.shape.user_features) * 3)
    return towers.eval()


@lru_cache(maxsize=4)
def _exported(manifest: bytes, seed: int) -> dict[str, bytes]:
    """The graphs of drawn towers; exporting takes seconds, and many tests want the same."""
    read = Manifest.from_bytes(manifest, where="test")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_towers(drawn_towers(read, seed), folder, history_length=read.features.history_length)
        return {path: (folder / path).read_bytes() for path in (ITEM_TOWER, USER_TOWER)}


def publish_with_towers(
    living: Living, folder: Path, seed: int = 3, contexts: tuple[str, ...] | None = None
) -> str:
    """Publish and promote the champion with towers; return the new version."""
    store = BundleStore(living.settings.bundles_folder)
    before = store.champion()
    assert before is not None
    shutil.copytree(before.folder, folder, ignore=shutil.ignore_patterns(MANIFEST_NAME))
    (folder / "towers").mkdir()
    for path, content in _exported(before.manifest.to_bytes(), seed).items():
        (folder / path).write_bytes(content)
    towers = Towers(
        unit=next(iter(before.manifest.units)),
        sources=before.manifest.declarations.names,
        vector_size=VECTOR_SIZE,
        contexts=before.manifest.declarations.names if contexts is None else contexts,
        newcomers=True,
        latest_share=0.25,
    )
    version = store.publish(before.manifest.model_copy(update={"towers": towers, "files": {}}), folder)
    store.promote(version, before.version)
    return version
