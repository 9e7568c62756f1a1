"""A bundle that scores otherwise than where it was published does not serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundle_of_sums import manifest, write_files

from recmeta.bundle.store import Bundle, BundleStore
from recmeta.errors import IntegrityError
from recmeta.serving.probes import PROBES, check_probes, write_probes
from recmeta.serving.scorer import Scorer


def published(folder: Path, *, add: float = 0.0, context: str = "reading") -> Bundle:
    """A bundle whose probe rows were answered with ``add`` more in one context."""
    files = write_files(folder / "files", 0.7)
    write_probes(files, manifest())
    said = json.loads((files / PROBES).read_text())
    said[context] = [logit + add for logit in said[context]]
    (files / PROBES).write_text(json.dumps(said))
    store = BundleStore(folder / "bundles")
    return store.open(store.publish(manifest(), files))


def test_a_bundle_that_says_what_it_said_serves(tmp_path: Path) -> None:
    bundle = published(tmp_path)
    assert set(json.loads(bundle.file(PROBES).read_text())) == set(bundle.manifest.contexts)
    check_probes(Scorer(bundle), bundle, 1e-4)


@pytest.mark.parametrize("add", [2e-4, -1.0])
def test_one_that_scores_otherwise_is_refused_and_the_context_named(tmp_path: Path, add: float) -> None:
    bundle = published(tmp_path, add=add)
    with pytest.raises(IntegrityError, match="context 'reading' scores its probe rows otherwise"):
        check_probes(Scorer(bundle), bundle, 1e-4)


def test_probes_written_again_are_the_same_bytes(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", 0.7)
    write_probes(files, manifest())
    first = (files / PROBES).read_bytes()
    write_probes(files, manifest())
    assert (files / PROBES).read_bytes() == first
