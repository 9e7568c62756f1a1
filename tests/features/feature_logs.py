"""A small workspace with a random log, ingested as any log is, and a way to read all feature bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recmeta.contexts import Contexts, load_contexts
from recmeta.events.store import ingest
from recmeta.settings import Settings, load_settings

CONTEXTS_YAML = """
version: 1
contexts:
  reading:
    positives: [READ]
    negatives:
      sample: {per_positive: 2, alive_within: 14d}
  commenting:
    positives: [COMMENT]
    negatives:
      exposure: {context: reading, within: 1d}
  feed:
    positives: [CLICK]
    negatives:
      impressions: {events: [IMPRESSION], within: 30m}
  quiet:
    positives: [NOBODY_EVER_DID]
    negatives:
      sample: {per_positive: 2, alive_within: 14d}
source:
  columns:
    user_id: user
    item_id: item
    event_type: type
    event_timestamp: time
    created_timestamp: seen
    weight: weight
"""

FIRST_DAY = datetime(2024, 1, 27, tzinfo=UTC)
"""So that ten days reach over the end of a month."""


@dataclass(frozen=True)
class Workspace:
    """A workspace's settings and contexts, and a way to put interactions into it."""

    settings: Settings
    contexts: Contexts

    def ingest(self, rows: pl.DataFrame, name: str = "log") -> None:
        """Take raw rows as a file of the generic source."""
        file = self.settings.workspace.parent / f"{self.settings.workspace.name}-{name}.parquet"
        rows.write_parquet(file)
        ingest(self.settings, "generic", file)


def make_workspace(folder: Path, **settings: Any) -> Workspace:
    """An empty workspace with the contexts above, in which late rows are welcome."""
    folder.mkdir(parents=True)
    (folder / "contexts.yaml").write_text(CONTEXTS_YAML)
    made = load_settings(folder, **{"events": {"lateness": "1000d"}, **settings})
    return Workspace(made, load_contexts(made.contexts_file))


def random_log(rows: int, *, seed: int = 0, days: int = 10, users: int = 6, items: int = 9) -> pl.DataFrame:
    """Raw interactions over some days, a fifth of them recorded late, some at the same instant."""
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.integers(0, days * 86_400, rows)) // 60 * 60
    late = np.where(rng.random(rows) < 0.2, rng.integers(1, 3 * 86_400, rows), 0)
    times = [FIRST_DAY + timedelta(seconds=int(second)) for second in seconds]
    return pl.DataFrame(
        {
            "user": [f"u{n}" for n in rng.integers(0, users, rows)],
            "item": [f"i{n}" for n in np.minimum(rng.geometric(0.25, rows), items)],
            "type": rng.choice(
                ["READ", "COMMENT", "CLICK", "IMPRESSION"], rows, p=[0.5, 0.1, 0.1, 0.3]
            ).tolist(),
            "time": times,
            "seen": [time + timedelta(seconds=int(by)) for time, by in zip(times, late, strict=True)],
            "weight": rng.choice([0.5, 1.0, 3.0], rows),
        },
        schema_overrides={"time": pl.Datetime("us", "UTC"), "seen": pl.Datetime("us", "UTC")},
    )


def bytes_below(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder, by its relative name."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
