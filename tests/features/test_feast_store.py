"""The online store: online equals offline to the bit, whatever happened in between, in every store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from feature_logs import FIRST_DAY, Workspace, make_workspace, random_log

from recmeta.contexts import Contexts
from recmeta.errors import ContextError, InputError, IntervalError, NotFoundError
from recmeta.events.ledger import Interval, Ledger
from recmeta.events.store import scan_events
from recmeta.features.build import build_features
from recmeta.features.feast_store import FeatureStore
from recmeta.features.schema import HISTORY_VIEW, MET_VIEW
from recmeta.features.training_rows import dense_rows, feature_space, features_as_of

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
UNTIL = FIRST_DAY + 14 * DAY
ITEMS = tuple(f"i{n}" for n in range(1, 10))
USERS = tuple(f"u{n}" for n in range(6))


class Openers:
    """Opens feature stores and closes them all at the end."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def __call__(self, workspace: Workspace) -> FeatureStore:
        store = self.stack.enter_context(FeatureStore(workspace.settings, workspace.contexts))
        store.apply()
        return store


@pytest.fixture
def opened() -> Iterator[Openers]:
    openers = Openers()
    with openers.stack:
        yield openers


def night(workspace: Workspace, store: FeatureStore, until: datetime) -> dict[str, Any]:
    build_features(workspace.settings, workspace.contexts, until)
    return store.materialize(until)


def assert_online_is_offline(workspace: Workspace, store: FeatureStore, now: datetime) -> None:
    """For every user, known or not, and every item: histories and dense rows of all contexts, to the bit."""
    users = (*USERS, "stranger")
    asked = pl.DataFrame(
        {
            "user_id": [user for user in users for _ in ITEMS],
            "item_id": ITEMS * len(users),
            "event_timestamp": pl.Series([now] * len(users) * len(ITEMS), dtype=pl.Datetime("us", "UTC")),
        }
    )
    online = {user: store.read_online(user, ITEMS, now) for user in users}
    space = feature_space(workspace.settings, workspace.contexts)
    instants = np.full(len(ITEMS), round(now.timestamp() * 1_000_000), dtype=np.int64)
    for context in workspace.contexts.names:
        found = features_as_of(workspace.settings, workspace.contexts, context, asked)
        dense, history = dense_rows(space, context, found, asked["event_timestamp"])
        for number, user in enumerate(users):
            part = slice(number * len(ITEMS), (number + 1) * len(ITEMS))
            assert list(online[user].history) == history[part].to_list()[0]
            assembled = space.assemble(context, online[user].blocks, instants)
            assert assembled.tobytes() == dense[part].to_numpy().tobytes(), (user, context)


def interactions(workspace: Workspace, start: datetime, end: datetime) -> pl.DataFrame:
    return scan_events(workspace.settings, start, end).collect()


def test_live_interactions_give_online_what_the_next_night_gives_offline(
    new_workspace: Callable[..., Workspace], store_settings: dict[str, Any], opened: Openers
) -> None:
    """The replay: a night, then every later interaction live, in pieces; then the whole log offline."""
    workspace = new_workspace(stores=store_settings)
    workspace.ingest(random_log(300))
    store, middle = opened(workspace), FIRST_DAY + 6 * DAY
    night(workspace, store, middle)
    assert_online_is_offline(workspace, store, middle + timedelta(hours=7, microseconds=123_457))
    live = interactions(workspace, middle, UNTIL)
    assert len(live) > 80
    for part in live.iter_slices(9):
        store.record(part)
    build_features(workspace.settings, workspace.contexts, UNTIL)
    assert_online_is_offline(workspace, store, UNTIL + HOUR)


def test_the_next_night_neither_loses_nor_repeats_what_was_recorded_live(
    new_workspace: Callable[..., Workspace], store_settings: dict[str, Any], opened: Openers
) -> None:
    workspace = new_workspace(stores=store_settings)
    workspace.ingest(random_log(300))
    store, middle = opened(workspace), FIRST_DAY + 6 * DAY
    night(workspace, store, middle)
    store.record(interactions(workspace, middle, UNTIL))
    night(workspace, store, middle + 2 * DAY)
    build_features(workspace.settings, workspace.contexts, UNTIL)
    assert_online_is_offline(workspace, store, UNTIL + HOUR)


def test_a_late_event_reaches_the_online_store_in_the_next_night(
    new_workspace: Callable[..., Workspace], store_settings: dict[str, Any], opened: Openers
) -> None:
    """Its rows have the stamps of rows that are there already: the corrected values must win."""
    workspace, log = new_workspace(stores=store_settings), random_log(300)
    store = opened(workspace)
    workspace.ingest(log[::2], "half")
    night(workspace, store, UNTIL)
    someone = (
        interactions(workspace, FIRST_DAY, UNTIL)
        .head(1)
        .with_columns(
            pl.lit(UNTIL + HOUR).dt.cast_time_unit("us").alias("event_timestamp"),
            pl.lit(UNTIL + HOUR).dt.cast_time_unit("us").alias("created_timestamp"),
            user_id=pl.lit("somebody else"),
            item_id=pl.lit("another item"),
        )
    )
    store.record(someone)
    workspace.ingest(log[1::2], "rest")
    night(workspace, store, UNTIL)
    assert_online_is_offline(workspace, store, UNTIL + 2 * HOUR)
    assert store.read_online("somebody else", [], UNTIL + 2 * HOUR).history == ("another item",)


def test_an_older_window_never_overwrites_newer_values(
    new_workspace: Callable[..., Workspace], store_settings: dict[str, Any], opened: Openers
) -> None:
    workspace = new_workspace(stores=store_settings)
    workspace.ingest(random_log(300))
    store = opened(workspace)
    night(workspace, store, UNTIL)
    ledger = Ledger(workspace.settings.ledger_folder)
    ledger.reopen("materialize", Interval(FIRST_DAY + DAY, FIRST_DAY + 4 * DAY))
    report = store.materialize(FIRST_DAY + 4 * DAY)
    assert report["start"] == FIRST_DAY.isoformat(), "a day of overlap"
    assert report["end"] == UNTIL.isoformat()
    ledger.reopen("materialize", Interval(FIRST_DAY, UNTIL))
    assert store.materialize(FIRST_DAY + 4 * DAY)["kept"] > 0
    assert_online_is_offline(workspace, store, UNTIL + HOUR)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, FeatureStore]]:
    workspace = make_workspace(tmp_path_factory.mktemp("small") / "w")
    workspace.ingest(random_log(100))
    with FeatureStore(workspace.settings, workspace.contexts) as store:
        store.apply()
        night(workspace, store, UNTIL)
        yield workspace, store


def test_a_second_run_writes_nothing(small: tuple[Workspace, FeatureStore]) -> None:
    workspace, store = small
    store.apply()
    assert night(workspace, store, UNTIL)["rows"] == 0


def test_the_future_and_unfinished_features_are_refused(small: tuple[Workspace, FeatureStore]) -> None:
    _, store = small
    with pytest.raises(IntervalError, match="has not happened yet"):
        store.materialize(datetime.now(UTC) + 2 * DAY)
    with pytest.raises(IntervalError, match=r"features of .* are missing"):
        store.materialize(UNTIL + DAY)


def test_rows_of_other_half_lives_count_as_none_until_the_next_night(
    small: tuple[Workspace, FeatureStore],
) -> None:
    workspace, store = small
    fewer = workspace.settings.features.model_copy(update={"half_lives": (DAY,)})
    changed = workspace.settings.model_copy(update={"features": fewer})
    assert store.read_online("u1", ["i1"], UNTIL).knows_user
    with FeatureStore(changed, workspace.contexts) as other:
        online = other.read_online("u1", ["i1"], UNTIL)
    assert not online.knows_user
    assert online.blocks["item__reading"].values.shape == (1, 6)


def test_strangers_have_no_rows_and_no_history(small: tuple[Workspace, FeatureStore]) -> None:
    _, store = small
    online = store.read_online("stranger", ["never seen", "i1", "never seen"], UNTIL)
    assert online.history == ()
    assert not online.knows_user
    block = online.blocks["item__reading"]
    assert np.isnan(block.hours[[0, 2]]).all()
    assert block.hours[1] >= 0
    assert np.isnan(online.blocks["user__reading"].hours).all()


def test_no_items_is_an_answer_too(small: tuple[Workspace, FeatureStore]) -> None:
    _, store = small
    online = store.read_online("u1", [], UNTIL)
    assert online.blocks["item__reading"].values.shape[0] == 0
    assert online.knows_user


def test_an_instant_without_a_zone_is_refused(small: tuple[Workspace, FeatureStore]) -> None:
    with pytest.raises(InputError, match="time zone"):
        small[1].read_online("u1", ["i1"], datetime(2024, 1, 1))  # noqa: DTZ001


def test_recording_in_an_undeclared_context_is_refused(small: tuple[Workspace, FeatureStore]) -> None:
    workspace, store = small
    rows = interactions(workspace, FIRST_DAY, UNTIL).head(1).with_columns(context=pl.lit("video"))
    with pytest.raises(ContextError, match="found 'video'"):
        store.record(rows)


def test_a_workspace_without_a_night_says_so(new_workspace: Callable[..., Workspace]) -> None:
    workspace = new_workspace()
    store = FeatureStore(workspace.settings, workspace.contexts)
    with pytest.raises(NotFoundError, match="recmeta nightly"):
        store.read_online("u1", ["i1"], UNTIL)


def test_another_online_store_is_filled_from_the_beginning(
    new_workspace: Callable[..., Workspace], redis_address: str, opened: Openers
) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(100))
    night(workspace, opened(workspace), UNTIL)
    stores = workspace.settings.stores.model_copy(update={"online": "redis", "redis": redis_address})
    moved = Workspace(workspace.settings.model_copy(update={"stores": stores}), workspace.contexts)
    store = opened(moved)
    assert store.materialize(UNTIL)["rows"] > 0
    assert_online_is_offline(moved, store, UNTIL)


def test_views_of_contexts_that_are_gone_leave_the_registry(
    new_workspace: Callable[..., Workspace], opened: Openers
) -> None:
    workspace = new_workspace()
    opened(workspace)
    fewer = {"contexts": {"feed": {"positives": ["CLICK"], "negatives": {"sample": {}}}}}
    store = opened(Workspace(workspace.settings, Contexts.model_validate(fewer)))
    registered = store._store
    assert [service.name for service in registered.list_feature_services()] == ["feed"]
    assert {view.name for view in registered.list_feature_views()} == {
        HISTORY_VIEW,
        MET_VIEW,
        "user__feed",
        "item__feed",
        "user_item__feed",
    }


def test_the_process_ends_without_a_word(small: tuple[Workspace, FeatureStore], tmp_path: Path) -> None:
    """DuckDB and torch in one process once reported leaks at its end, and Feast set warnings off."""
    workspace, _ = small
    script = tmp_path / "night.py"
    script.write_text(
        "import sys, torch\n"
        "from datetime import datetime\n"
        "from recmeta.contexts import load_contexts\n"
        "from recmeta.events.ledger import Interval, Ledger\n"
        "from recmeta.features.feast_store import FeatureStore\n"
        "from recmeta.settings import load_settings\n"
        "settings = load_settings(sys.argv[1])\n"
        "until = datetime.fromisoformat(sys.argv[2])\n"
        "start = datetime.fromisoformat(sys.argv[3])\n"
        "Ledger(settings.ledger_folder).reopen('materialize', Interval(start, until))\n"
        "store = FeatureStore(settings, load_contexts(settings.contexts_file))\n"
        "store.apply()\n"
        "assert store.materialize(until)['rows'] > 0\n"
    )
    arguments = [workspace.settings.workspace, UNTIL.isoformat(), FIRST_DAY.isoformat()]
    run = subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
