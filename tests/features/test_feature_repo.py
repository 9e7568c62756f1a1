"""Feast's own command line sees the objects that recmeta registers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from feature_logs import Workspace

from recmeta.features.feast_definitions import definitions, repo_config
from recmeta.features.feast_store import _import_feast

REPO = Path(__file__).parents[2] / "feature_repo"


def test_the_feature_repo_gives_the_objects_and_the_stores_of_the_workspace(
    new_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _import_feast()
    from feast.repo_config import load_repo_config
    from feast.repo_operations import parse_repo

    workspace = new_workspace()
    monkeypatch.setenv("RECMETA_WORKSPACE", str(workspace.settings.workspace))
    monkeypatch.chdir(tmp_path)
    repo = shutil.copytree(REPO, tmp_path / "repo", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(repo))
    monkeypatch.chdir(repo)
    found = parse_repo(repo)
    ours = definitions(workspace.settings, workspace.contexts)
    registered = [*found.entities, *found.feature_views, *found.feature_services]
    named = {(type(made).__name__, made.name) for made in ours}
    assert {(type(made).__name__, made.name) for made in registered} - named <= {("Entity", "__dummy")}
    assert named <= {(type(made).__name__, made.name) for made in registered}
    config = load_repo_config(repo, repo / "feature_store.yaml")
    built = repo_config(workspace.settings)
    assert config.online_store == built.online_store
    assert config.registry.path == built.registry.path
    assert config.offline_store.type == built.offline_store.type == "duckdb"
