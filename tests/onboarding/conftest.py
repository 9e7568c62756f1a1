"""A product with a champion, made once; each test has a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onboarding_samples import NOW, make_product, shares, write

from recmeta.settings import Settings, load_settings

Onboard = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Do not change it."""
    return make_product(tmp_path_factory.mktemp("product") / "workspace")


@pytest.fixture
def workspace(product: Settings, tmp_path: Path) -> Settings:
    shutil.copytree(product.workspace, tmp_path / "workspace")
    return load_settings(tmp_path / "workspace")


@pytest.fixture
def onboard(workspace: Settings, tmp_path: Path) -> Onboard:
    """Bring up ``sharing`` from so many shares, or from a file."""

    def onboard(source: int | Path, name: str = "sharing", **options: Any) -> dict[str, Any]:
        from recmeta.onboarding import onboard

        path = source
        if isinstance(source, int):
            path = write(tmp_path / f"{source}.csv", shares(workspace, source))
        options = {"exposure": "reading", "within": "1d", "now": NOW, **options}
        return onboard(workspace.workspace, name, path, **options)

    return onboard
