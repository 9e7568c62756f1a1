"""Training rows become tensors: parts in time, purged borders, lists of one instant, vocabularies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recmeta.dataset import (
    PURGED,
    TEST,
    TRAIN,
    VALIDATION,
    Part,
    build_vocabularies,
    load_frames,
    split_times,
)
from recmeta.episodes.rows import Rows
from recmeta.errors import InputError
from recmeta.pipeline import run_stage
from recmeta.settings import SplitSettings, load_settings
from recmeta.stages.night import Night, catalogue


@pytest.fixture(scope="module")
def night(first_night: Path) -> Night:
    """The first night, whose rows lie there already."""
    return Night.plan(load_settings(first_night), "2026-06-29")


def rows_of(groups: list[int], dense: list[list[float]]) -> Part:
    """Rows that differ in nothing but group, features and history."""
    n = len(groups)
    column = torch.zeros(n, dtype=torch.int64)
    return Part(
        Rows(
            dense=torch.tensor(dense),
            user=column,
            item=column,
            categories=column.unsqueeze(1),
            history=torch.arange(n).unsqueeze(1),
            context=column,
            label=torch.zeros(n),
            weight=torch.ones(n),
            time=column,
            group=torch.tensor(groups),
        ),
        np.zeros(n, dtype=np.int64),
    )


def test_a_list_is_ranked_with_the_state_of_its_first_row() -> None:
    part = rows_of([5, 3, 5], [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    lists = part.as_lists([0])
    assert lists.rows.dense.tolist() == [[1.0, 10.0], [2.0, 20.0], [1.0, 30.0]]
    assert lists.rows.history.flatten().tolist() == [0, 1, 0]
    assert part.rows.dense[2, 0] == 3.0


def test_borders_are_midnights_in_the_order_of_time() -> None:
    split = split_times(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 4, 11, tzinfo=UTC), SplitSettings())
    assert (split.test, split.validation) == (
        datetime(2026, 3, 22, tzinfo=UTC),
        datetime(2026, 3, 12, tzinfo=UTC),
    )


def test_too_short_a_span_is_refused() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(InputError, match=r"2\.0 days"):
        split_times(start, start + timedelta(days=2), SplitSettings())


def test_what_was_not_known_at_a_border_is_in_no_part(night: Night) -> None:
    frames = load_frames(night.settings, night.contexts, night.until)
    window = {context.name: context.outcome_window for context in night.contexts.declared()}
    table = frames.table.with_columns(
        part=pl.Series(frames.part),
        final=pl.col("event_timestamp")
        + pl.col("context").replace_strict(window, return_dtype=pl.Duration("us")),
    )
    assert set(table["part"].unique()) == {TRAIN, VALIDATION, TEST, PURGED}
    assert table.filter(pl.col("part") == TRAIN)["final"].max() <= frames.split.validation
    later = table.filter(pl.col("part") == VALIDATION)
    assert later["event_timestamp"].min() >= frames.split.validation
    assert later["final"].max() <= frames.split.test
    assert table.filter(pl.col("part") == TEST)["event_timestamp"].min() >= frames.split.test


def test_vocabularies_hold_every_item_and_keep_earlier_places(night: Night) -> None:
    frames = load_frames(night.settings, night.contexts, night.until)
    items = catalogue(night)
    first = build_vocabularies(frames, items.head(50), None)
    later = build_vocabularies(frames, items, first)
    assert later.items.ids[:50] == first.items.ids
    assert set(later.items.ids) == set(items["item_id"])
    assert later.users.ids == first.users.ids


def test_a_stage_of_no_known_name_is_refused(first_night: Path) -> None:
    with pytest.raises(InputError, match="expected one of features"):
        run_stage(first_night, "dream")
