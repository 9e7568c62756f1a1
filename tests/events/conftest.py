"""Workspaces, a small generic log, and the real logs for the tests of the events room."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from recmeta.contexts import Contexts
from recmeta.settings import EventSettings, Settings, load_settings

GENERIC = """
version: 1
source:
  columns:
    user_id: who
    item_id: what
    event_type: how
    event_timestamp: when
contexts:
  shopping:
    positives: [BUY]
    negatives: {explicit: {events: [DISMISS]}}
  viewing:
    positives: [VIEW]
    negatives: {sample: {per_positive: 2, alive_within: 7d}}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(tmp_path / "workspace")


@pytest.fixture
def generic_settings(settings: Settings) -> Settings:
    """A workspace whose contexts.yaml describes a generic log."""
    settings.workspace.mkdir()
    settings.contexts_file.write_text(GENERIC)
    return settings


@pytest.fixture
def full_settings(settings: Settings) -> Settings:
    """A workspace whose generic log has every optional column, and where every row may be refused."""
    settings.workspace.mkdir()
    settings.contexts_file.write_text(
        GENERIC.replace(
            "event_timestamp: when",
            "event_timestamp: when\n    created_timestamp: made\n    event_id: name\n    weight: heft\n"
            "    position: place\n    propensity: chance\n    categories: kind",
        )
    )
    return load_settings(settings.workspace, events=EventSettings(quarantine_share=1))


@pytest.fixture
def full_log(log: pl.DataFrame) -> pl.DataFrame:
    """`log` with every optional column."""
    return log.with_columns(
        made=pl.col("when") + pl.duration(hours=1),
        name=pl.format("e{}", pl.int_range(pl.len())),
        heft=pl.lit(1.0),
        place=pl.lit(0, dtype=pl.Int64),
        chance=pl.lit(0.5),
        kind=pl.format("kind of {}", "what"),
    )


@pytest.fixture
def log() -> pl.DataFrame:
    """Thirty rows over forty days, of two users, five items and three event types."""
    start = datetime(2026, 1, 10, 12, tzinfo=UTC)
    return pl.DataFrame(
        {
            "who": [f"u{index % 2}" for index in range(30)],
            "what": [f"i{index % 5}" for index in range(30)],
            "how": [("VIEW", "BUY", "DISMISS")[index % 3] for index in range(30)],
            "when": [start + timedelta(days=index * 40 / 30) for index in range(30)],
        },
        schema_overrides={"when": pl.Datetime("us", "UTC")},
    )


@pytest.fixture
def real_data() -> Path:
    """The folder with the real logs."""
    named = os.environ.get("RECMETA_DATA_DIR")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (folder / "deskdrop").is_dir() or not (folder / "cofacts").is_dir():
        pytest.skip(f"the real logs are not in {folder}; RECMETA_DATA_DIR may name their folder")
    return folder


@pytest.fixture
def digests() -> Callable[[Path], dict[str, str]]:
    """A function from a folder to the checksums of all its Parquet files."""
    return lambda folder: {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.parquet"))
    }


@pytest.fixture
def parse_contexts() -> Callable[[str], Contexts]:
    import yaml

    return lambda text: Contexts.model_validate(yaml.safe_load(text))
