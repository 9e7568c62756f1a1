"""Fixtures of the features room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from feature_logs import Workspace, make_workspace


@pytest.fixture
def new_workspace(tmp_path: Path) -> Callable[..., Workspace]:
    """Make empty workspaces below the test's folder."""

    def make(name: str = "workspace", **settings: Any) -> Workspace:
        return make_workspace(tmp_path / name, **settings)

    return make
