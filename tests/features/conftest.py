"""Fixtures of the features room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def store_settings(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Settings that choose an empty online store."""
    if request.param == "redis":
        yield {"online": "redis", "redis": request.getfixturevalue("redis_address")}
    elif request.param == "postgres":
        yield {"online": "postgres", "postgres": request.getfixturevalue("postgres_url") + "?sslmode=disable"}
    else:
        yield {"online": "sqlite"}
