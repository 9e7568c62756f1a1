"""Towers are part of a bundle: checked like every file, and taken along when a surface comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_samples import BANK_FILES, NEWSLETTER, banked_manifest, declared_with, stack_entry, write_files

from recmeta.bundle.manifest import ITEM_TOWER, USER_TOWER, Manifest, Towers
from recmeta.bundle.one_context import with_context
from recmeta.bundle.store import BundleStore
from recmeta.errors import InputError, IntegrityError

GRAPHS = {ITEM_TOWER: b"what an item is", USER_TOWER: b"what a user wants"}


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles")


def towered() -> Manifest:
    plain = banked_manifest()
    towers = Towers(
        unit=min(plain.units),
        sources=plain.declarations.names[:2],
        vector_size=8,
        contexts=plain.declarations.names[:1],
        newcomers=False,
        latest_share=0.25,
    )
    return plain.model_copy(update={"towers": towers})


def test_a_manifest_without_towers_is_written_as_it_was_before_there_were_any() -> None:
    plain = banked_manifest()
    assert b"towers" not in plain.to_bytes()
    assert Manifest.from_bytes(plain.to_bytes(), where="here").towers is None
    assert Manifest.from_bytes(towered().to_bytes(), where="here") == towered()


def test_towers_without_their_graphs_are_not_published(store: BundleStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"towers/user\.onnx"):
        store.publish(towered(), write_files(tmp_path / "files", {**BANK_FILES, ITEM_TOWER: b"one"}))


def test_a_changed_tower_is_found_by_its_checksum(store: BundleStore, tmp_path: Path) -> None:
    version = store.publish(towered(), write_files(tmp_path / "files", {**BANK_FILES, **GRAPHS}))
    (store.folder / version / ITEM_TOWER).write_bytes(b"what an item IS")
    with pytest.raises(IntegrityError, match=r"towers/item\.onnx"):
        store.open(version)


def test_a_surface_that_comes_takes_the_towers_along(store: BundleStore, tmp_path: Path) -> None:
    parent = store.open(store.publish(towered(), write_files(tmp_path / "files", {**BANK_FILES, **GRAPHS})))
    declared = declared_with(parent.manifest, newsletter=NEWSLETTER)
    made = with_context(parent, tmp_path / "next", "newsletter", declared, stack_entry(), None)
    child = store.open(store.publish(made, tmp_path / "next"))
    assert child.manifest.towers == parent.manifest.towers
    assert {path: child.file(path).read_bytes() for path in GRAPHS} == GRAPHS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unit": "ffffffffffff"}, "unit 'ffffffffffff'"),
        ({"sources": ("nowhere",)}, "nowhere"),
        ({"contexts": ("gone",)}, "gone"),
    ],
)
def test_towers_of_what_is_not_there_are_refused(
    change: dict[str, object], told: str, store: BundleStore, tmp_path: Path
) -> None:
    towers = towered().towers
    assert towers is not None
    wrong = towered().model_copy(update={"towers": towers.model_copy(update=change)})
    with pytest.raises(InputError, match=told):
        store.publish(wrong, write_files(tmp_path / "files", {**BANK_FILES, **GRAPHS}))
