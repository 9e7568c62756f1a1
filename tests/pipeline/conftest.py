"""A small simulated product: its log, and the same after a first night."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from night_runs import FIRST, SETTINGS, SMALL_LOG, nightly

Copies = Callable[[Path], Path]


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with an ingested log and no night yet. Copy it."""
    from recmeta.pipeline import ingest

    workspace = tmp_path_factory.mktemp("log") / "workspace"
    workspace.mkdir()
    (workspace / "recmeta.toml").write_text(SETTINGS)
    ingest(workspace, "simulator", **SMALL_LOG)
    return workspace


@pytest.fixture(scope="session")
def first_night(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after its first night, which was promoted. Copy it."""
    workspace = tmp_path_factory.mktemp("first") / "workspace"
    shutil.copytree(log, workspace)
    report = nightly(workspace, FIRST)
    assert report["promoted"]
    return workspace


@pytest.fixture
def copy_of(tmp_path: Path) -> Copies:
    """Copy a workspace into the test's own folder."""

    def copy(workspace: Path) -> Path:
        target = tmp_path / "workspace"
        shutil.copytree(workspace, target)
        return target

    return copy
