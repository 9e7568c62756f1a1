"""A bundle with one context more or otherwise is its parent in everything else, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_samples import (
    BANK_FILES,
    FILES,
    NEWSLETTER,
    banked_manifest,
    declared_with,
    stack_entry,
    write_files,
)

from recmeta.bundle.manifest import Manifest
from recmeta.bundle.one_context import with_context
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.errors import InputError

TREES = "trees/newsletter.onnx"


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles")


@pytest.fixture
def parent(store: BundleStore, tmp_path: Path) -> Bundle:
    return store.open(store.publish(banked_manifest(), write_files(tmp_path / "files", BANK_FILES)))


@pytest.fixture
def residual(tmp_path: Path) -> Path:
    (tmp_path / "residual.onnx").write_bytes(b"what the stack leaves unexplained")
    return tmp_path / "residual.onnx"


def added(parent: Bundle, folder: Path, residual: Path | None = None) -> Manifest:
    declared = declared_with(parent.manifest, newsletter=NEWSLETTER)
    entry = stack_entry() if residual is None else stack_entry("boosted", TREES)
    return with_context(parent, folder, "newsletter", declared, entry, residual)


def test_only_the_one_context_differs(store: BundleStore, parent: Bundle, tmp_path: Path) -> None:
    manifest = added(parent, tmp_path / "next")
    child = store.open(store.publish(manifest, tmp_path / "next"))
    assert child.version != parent.version
    before, after = parent.manifest.model_dump(mode="json"), child.manifest.model_dump(mode="json")
    assert after.pop("parent") == parent.version
    before.pop("parent")
    assert after["contexts"].pop("newsletter")["serves"] == "stack"
    assert after["declarations"]["contexts"].pop("newsletter")["columns"] == "roles"
    assert after == before
    for path, content in {**FILES, **BANK_FILES}.items():
        assert child.file(path).read_bytes() == content


def test_publishing_it_twice_gives_the_same_version(
    store: BundleStore, parent: Bundle, tmp_path: Path, residual: Path
) -> None:
    versions = [
        store.publish(added(parent, tmp_path / folder, residual), tmp_path / folder) for folder in "ab"
    ]
    assert versions[0] == versions[1]


def test_residual_trees_come_along_and_go_with_the_entry_that_named_them(
    store: BundleStore, parent: Bundle, tmp_path: Path, residual: Path
) -> None:
    boosted = store.open(store.publish(added(parent, tmp_path / "a", residual), tmp_path / "a"))
    assert boosted.file(TREES).read_bytes() == residual.read_bytes()
    kept = with_context(
        boosted,
        tmp_path / "b",
        "newsletter",
        boosted.manifest.declarations,
        stack_entry("boosted", TREES),
        None,
    )
    assert kept.wanted_files() >= {TREES}
    assert (tmp_path / "b" / TREES).read_bytes() == residual.read_bytes()
    residual.write_bytes(b"more of it")
    again = store.open(store.publish(added(boosted, tmp_path / "c", residual), tmp_path / "c"))
    assert again.file(TREES).read_bytes() == b"more of it"
    plain = store.open(store.publish(added(boosted, tmp_path / "d"), tmp_path / "d"))
    assert set(plain.manifest.files) == set(parent.manifest.files)


def test_a_file_of_another_context_is_not_replaced(parent: Bundle, tmp_path: Path, residual: Path) -> None:
    declared = declared_with(parent.manifest, newsletter=NEWSLETTER)
    for path in ("trees/feed.onnx", next(iter(BANK_FILES))):
        with pytest.raises(InputError, match=f"{path} is a file of the rest"):
            with_context(
                parent, tmp_path / "n", "newsletter", declared, stack_entry("boosted", path), residual
            )
    assert not (tmp_path / "n").exists()


def test_trees_and_the_entry_have_to_agree(parent: Bundle, tmp_path: Path, residual: Path) -> None:
    declared = declared_with(parent.manifest, newsletter=NEWSLETTER)
    with pytest.raises(InputError, match=f"holds no file {TREES}"):
        with_context(parent, tmp_path, "newsletter", declared, stack_entry("boosted", TREES), None)
    with pytest.raises(InputError, match="names no file for them"):
        with_context(parent, tmp_path, "newsletter", declared, stack_entry(), residual)


def test_another_context_declared_otherwise_is_refused(parent: Bundle, tmp_path: Path) -> None:
    feed = {"positives": ["CLICK", "LIKE"], "negatives": {"impressions": {"events": ["IMPRESSION"]}}}
    declared = declared_with(parent.manifest, newsletter=NEWSLETTER, feed=feed)
    with pytest.raises(InputError, match="found feed too"):
        with_context(parent, tmp_path, "newsletter", declared, stack_entry(), None)


def test_a_context_that_would_change_everybodys_columns_is_refused(parent: Bundle, tmp_path: Path) -> None:
    declared = declared_with(parent.manifest, newsletter={**NEWSLETTER, "columns": "own"})
    with pytest.raises(InputError, match="columns: roles"):
        with_context(parent, tmp_path, "newsletter", declared, stack_entry(), None)


def test_an_entry_that_does_not_fit_the_parent_is_refused(parent: Bundle, tmp_path: Path) -> None:
    declared = declared_with(parent.manifest, newsletter=NEWSLETTER)
    stack = stack_entry().stack
    assert stack is not None
    short = stack_entry().model_copy(update={"stack": stack.model_copy(update={"weights": (1.0,)})})
    with pytest.raises(InputError, match="expected 4 weights"):
        with_context(parent, tmp_path, "newsletter", declared, short, None)
    with pytest.raises(InputError, match="contexts: expected those declared"):
        with_context(parent, tmp_path, "newsletter", parent.manifest.declarations, stack_entry(), None)


def test_a_context_that_is_there_already_can_be_served_otherwise(
    store: BundleStore, parent: Bundle, tmp_path: Path
) -> None:
    declared = parent.manifest.declarations
    manifest = with_context(parent, tmp_path / "next", "feed", declared, stack_entry(), None)
    child = store.open(store.publish(manifest, tmp_path / "next"))
    assert child.manifest.contexts["feed"] == stack_entry()
    assert set(parent.manifest.files) - set(child.manifest.files) == {"trees/feed.onnx"}
