"""Small nights whose contexts help or hurt each other in a known way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta.contexts import Contexts
from recmeta.dataset import TEST, TRAIN, VALIDATION, Frames, Split, ThinnedLog, Vocabularies, tensors
from recmeta.episodes.vocabulary import Vocabulary
from recmeta.features.assembly import FeatureSpace
from recmeta.models.shared import ModelShape
from recmeta.settings import Settings
from recmeta.transfer.bank import Learnt

START = datetime(2026, 1, 1, tzinfo=UTC)
SPLIT = Split(START, START + timedelta(days=60), START + timedelta(days=70), START + timedelta(days=100))
USERS, ITEMS = 40, 60
STRENGTH = 0.6
"""Of the rule: labels keep some luck, so that few rows do not tell it."""
RULE = {
    "user:positives": 1.0, "user:positives_7d": -1.0, "user:hours_since_positive": 1.0,
    "item:positives": 1.0, "item:positives_7d": -1.0, "item:hours_since_positive": -1.0,
    "user_item:positives": 1.0,
}  # fmt: skip
HISTORY = 3


@dataclass(frozen=True)
class Surface:
    """Training rows of a context, and which of all counters makes its labels, and how.

    The rule is one over seven counters, which a hundred rows hardly tell.
    """

    rows: int
    sign: float = 1.0
    """1: by the rule; -1: by its opposite."""
    reads: str | None = None
    """The context whose counters decide; left out, its own."""
    named: bool = True
    """Whether it has columns of its own; a surface that was onboarded has none."""


def declared(surfaces: Mapping[str, Surface]) -> Contexts:
    """Contexts with sampled negatives."""
    contexts: dict[str, Any] = {
        name: {
            "positives": [name.upper()],
            "negatives": {"sample": {}},
            "columns": "own" if surface.named else "roles",
        }
        for name, surface in surfaces.items()
    }
    return Contexts.model_validate({"contexts": contexts})


def settings_of(folder: Path) -> Settings:
    """A small network, a few steps, small trees."""
    return Settings.model_validate(
        {
            "workspace": folder,
            "training": {
                "hidden": (16, 8), "embedding_size": 2, "adapter_rank": 2, "tasks": 4, "support": 16,
                "query": 16, "rows_per_task": 64, "check_every": 20, "rate": 1e-2, "table_rate": 1e-3,
                "adapt_steps": 20, "inner_steps": 2,
            },
            "transfer": {"steps": 80, "newcomer_share": 0.25},
            "trees": {"rounds": 60, "min_rows": 60, "leaves": 4, "rate": 0.2, "patience": 10},
        }
    )  # fmt: skip


def learnt(
    surfaces: Mapping[str, Surface], folder: Path, *, later: int = 300, test: int = 1000, seed: int = 0
) -> Learnt:
    """Rows of each surface in three parts: the named counters are noise, the label follows some of them."""
    settings = settings_of(folder)
    space = FeatureSpace(declared(surfaces), (timedelta(days=7),), HISTORY)
    draw = np.random.default_rng(seed)
    tables, denses = [], []
    for name, surface in surfaces.items():
        days = np.concatenate(
            [draw.uniform(0, 60, surface.rows), draw.uniform(60, 70, later), draw.uniform(70, 100, test)]
        )
        rows = len(days)
        dense = np.zeros((rows, space.size), dtype=np.float32)
        for column, label in enumerate(space.names):
            if label.split(":")[0] in space.named:
                dense[:, column] = draw.exponential(1.0, rows)
        dense = space.as_context(dense, name if surface.named else None)
        decides = [space.index(f"{surface.reads or 'target'}:{counter}") for counter in RULE]
        if not surface.named:
            dense[:, decides] = draw.exponential(1.0, (rows, len(decides)))
        logit = surface.sign * STRENGTH * (dense[:, decides] - 1.0) @ np.array(list(RULE.values()))
        tables.append(
            pl.DataFrame(
                {
                    "context": [name] * rows,
                    "user_id": [f"u{number}" for number in draw.integers(0, USERS, rows)],
                    "item_id": [f"i{number}" for number in draw.integers(0, ITEMS, rows)],
                    "categories": [["c"]] * rows,
                    "history": [["i0"]] * rows,
                    "label": (draw.random(rows) < 1.0 / (1.0 + np.exp(-logit))).astype(np.int8),
                    "weight": np.ones(rows, dtype=np.float32),
                    "event_timestamp": [START + timedelta(days=float(day)) for day in days],
                    "group": np.arange(rows),
                },
                schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
            )
        )
        denses.append(dense)
    table = pl.concat(tables).with_row_index("number").sort("event_timestamp", "context", "number")
    dense = np.concatenate(denses)[table["number"].to_numpy()]
    frames = Frames(table.drop("number"), dense, SPLIT, part_of(table))
    users, items, categories = (
        Vocabulary(tuple(f"{kind}{number}" for number in range(size)))
        for kind, size in (("u", USERS), ("i", ITEMS), ("", 0))
    )
    vocabularies = Vocabularies(users, items, categories)
    shape = ModelShape(
        features=space.size, users=USERS + 1, items=ITEMS + 1, categories=1, contexts=len(surfaces) + 1,
        history_length=HISTORY, embedding_size=2, context_size=2, hidden=(16, 8), rank=2,
    )  # fmt: skip
    parts = tensors(frames, space.contexts, vocabularies, HISTORY)
    content = parts[TRAIN].rows.categories.new_zeros((ITEMS + 1, 4))
    return Learnt(settings, space, frames, parts, all_or_nothing(frames, space), shape, content)


def part_of(table: pl.DataFrame) -> npt.NDArray[np.int8]:
    """The part of each row by its time."""
    instant = table["event_timestamp"]
    later = (instant >= SPLIT.validation).to_numpy().astype(np.int8)
    return np.where((instant >= SPLIT.test).to_numpy(), TEST, np.where(later, VALIDATION, TRAIN)).astype(
        np.int8
    )


def all_or_nothing(frames: Frames, space: FeatureSpace) -> list[ThinnedLog]:
    """Each training row with all of its context's log, or with none: neither needs the log itself."""
    context = frames.table["context"].to_numpy()[frames.part == TRAIN]
    logs = []
    for name in space.contexts.names:
        rows = np.flatnonzero(context == name)
        logs += [ThinnedLog(name, rows[::2], 0.0, {}), ThinnedLog(name, rows[1::2], 1.0, {})]
    return logs
