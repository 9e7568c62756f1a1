"""Nights made by hand: folders as a night leaves them, without anything having been trained."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from recmeta.artifacts import write_json
from recmeta.events.schema import INTERACTION_SCHEMA

UNTIL = datetime(2026, 6, 30, tzinfo=UTC)
NIGHT = "20260630-0123456789ab"
EARLIER = "20260629-0123456789ab"

CONTEXTS_YAML = """\
version: 1
contexts:
  feed:
    description: {description}
    positives: [click]
    negatives: {{impressions: {{events: [show]}}}}
  reading:
    positives: [open]
    negatives: {{sample: {{}}}}
"""


def figure(value: float, reach: float = 0.02) -> dict[str, Any]:
    return {"value": value, "low": value - reach, "high": value + reach}


def decided(serves: str, reason: str = "it is better", **aucs: float) -> dict[str, Any]:
    """What publish.json says of one context: what serves it, and the AUC of each candidate."""
    candidates = {name: {"auc": figure(value)} for name, value in aucs.items()}
    return {
        "serves": serves,
        "promoted": serves not in ("incumbent", "nothing"),
        "reason": reason,
        "metrics": candidates.get(serves, {}),
        "candidates": candidates,
    }


def write_night(
    workspace: Path,
    name: str = NIGHT,
    *,
    contexts: dict[str, Any] | None = None,
    description: str = "A person clicks.",
    **published: Any,
) -> Path:
    """Write contexts.yaml, and a night's folder with publish.json, and return the folder."""
    (workspace / "contexts.yaml").write_text(CONTEXTS_YAML.format(description=description))
    folder = workspace / "runs" / name
    until = f"{name[:4]}-{name[4:6]}-{name[6:8]}T00:00:00+00:00"
    write_json(folder / "night.json", {"until": until, "parent": published.get("parent")})
    if contexts is None:
        contexts = {
            "feed": decided("trees", shared=0.70, trees=0.74, popularity=0.55, bias_only=0.6),
            "reading": decided("shared", shared=0.81, trees=0.80, popularity=0.60, bias_only=0.7),
        }
    report = {
        "version": f"{name[:8]}-aaaaaaaaaaaa",
        "champion": f"{name[:8]}-aaaaaaaaaaaa",
        "promoted": True,
        "reason": "something better serves feed",
        "parent": None,
        "until": until,
        "largest_logit_difference": 1e-6,
        "contexts": contexts,
    }
    write_json(folder / "publish.json", {**report, **published})
    return folder


def write_bundle(workspace: Path, version: str, serves: dict[str, str]) -> None:
    """Write as much of a bundle's manifest as a report reads."""
    write_json(
        workspace / "bundles" / version / "manifest.json",
        {
            "until": "2026-06-29T00:00:00+00:00",
            "contexts": {
                name: {"serves": what, "reason": "it was better", "metrics": {"auc": figure(0.71)}}
                for name, what in serves.items()
            },
        },
    )


def write_events(workspace: Path, rows: list[tuple[str, datetime, timedelta, int]]) -> None:
    """Write interactions: context, event, delay until it was known, label."""
    events = pl.DataFrame(
        [
            (f"e{number}", f"u{number % 7}", "i", context, event, event + delay, label, 1.0, None, None)
            for number, (context, event, delay, label) in enumerate(rows)
        ],
        schema=INTERACTION_SCHEMA,
        orient="row",
    )
    for (month,), part in events.group_by(
        pl.max_horizontal("event_timestamp", "created_timestamp").dt.strftime("%Y-%m")
    ):
        file = workspace / "events" / f"{month}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(file)
