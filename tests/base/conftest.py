"""A site, its base, and a new site that started from it, each made once; copy what you change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from site_samples import SETTINGS, make_site

from recmeta.base import export_base, init_site
from recmeta.settings import Settings, load_settings

Start = Callable[..., tuple[Settings, dict[str, Any]]]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Do not change it."""
    return make_site(tmp_path_factory.mktemp("source") / "workspace")


@pytest.fixture(scope="session")
def exported(source: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A base and its report. Do not change it."""
    out = tmp_path_factory.mktemp("base") / "ours"
    return out, export_base(source.workspace, out)


@pytest.fixture
def base(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the base."""
    shutil.copytree(exported[0], tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def start(exported: tuple[Path, dict[str, Any]], source: Settings, tmp_path: Path) -> Start:
    """Start a site from the base; by default with the same contexts as its source."""

    def start(name: str = "new", contexts: Path | None = None, *, settings: str = SETTINGS) -> Any:
        workspace = tmp_path / name
        workspace.mkdir(exist_ok=True)
        (workspace / "recmeta.toml").write_text(settings)
        report = init_site(workspace, exported[0], contexts or source.contexts_file)
        return load_settings(workspace), report

    return start
