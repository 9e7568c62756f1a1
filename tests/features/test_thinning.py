"""A thinned log: the same interactions in every run, and of a smaller share only those of the larger."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from feature_logs import FIRST_DAY, Workspace, random_log

from recmeta.events.store import scan_events
from recmeta.features.build import build_features
from recmeta.features.partitions import floats
from recmeta.features.thinning import share_of, thinned_blocks
from recmeta.features.training_rows import features_as_of

UNTIL = FIRST_DAY + timedelta(days=14)


@pytest.fixture
def workspace(new_workspace: Callable[..., Workspace]) -> Workspace:
    made = new_workspace()
    made.ingest(random_log(600))
    return made


def some_rows(workspace: Workspace) -> pl.DataFrame:
    events = scan_events(workspace.settings).collect()
    return events.select("user_id", "item_id", "event_timestamp").sample(60, seed=1)


def test_the_whole_log_gives_the_counters_that_are_stored(workspace: Workspace) -> None:
    build_features(workspace.settings, workspace.contexts, UNTIL)
    rows = some_rows(workspace)
    found = features_as_of(workspace.settings, workspace.contexts, "reading", rows)
    blocks = thinned_blocks(workspace.settings, "reading", rows, 1.0, UNTIL)
    for view in ("user__reading", "item__reading", "user_item__reading"):
        there = found[view].is_not_null().to_numpy()
        assert (blocks[view].hours[there] >= 0).all()
        assert np.isnan(blocks[view].hours[~there]).all()
        stored = floats(found[view].drop_nulls(), blocks[view].values.shape[1] + 3)
        assert stored[:, :-3].tobytes() == blocks[view].values[there].tobytes()


def test_nothing_is_known_of_a_share_of_nothing(workspace: Workspace) -> None:
    blocks = thinned_blocks(workspace.settings, "reading", some_rows(workspace), 0.0, UNTIL)
    assert all(np.isnan(block.hours).all() for block in blocks.values())


def test_a_larger_share_never_counts_less(workspace: Workspace) -> None:
    rows = some_rows(workspace)
    counts = [
        np.where(
            np.isnan(block.hours), 0.0, block.values[:, 0]
        )  # positives so far; rows that are not there count as none
        for share in (0.1, 0.5, 1.0)
        if (block := thinned_blocks(workspace.settings, "reading", rows, share, UNTIL)["item__reading"])
    ]
    assert (counts[0] <= counts[1]).all() and (counts[1] <= counts[2]).all()
    assert counts[0].sum() < counts[1].sum() < counts[2].sum()


def test_what_is_kept_depends_on_the_interaction_alone() -> None:
    assert share_of("an interaction") == share_of("an interaction")
    shares = [share_of(f"event {number}") for number in range(4000)]
    assert min(shares) >= 0.0 and max(shares) < 1.0
    assert abs(float(np.mean(np.array(shares) < 0.3)) - 0.3) < 0.03
