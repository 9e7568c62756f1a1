"""The index of met items names every pair that has a row, whoever wrote it and in whatever order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any

import numpy as np
import polars as pl
import pytest
import redis
from feature_logs import FIRST_DAY, Workspace, random_log
from hypothesis import given
from hypothesis import strategies as st

from recmeta import artifacts
from recmeta.events.ledger import Interval, Ledger
from recmeta.events.store import scan_events
from recmeta.features import direct_online, feast_store
from recmeta.features.build import build_features
from recmeta.features.direct_online import Lookup, Reader, open_rows
from recmeta.features.feast_layout import PROJECT, entity_key
from recmeta.features.feast_online import FeastReader, OnlineStore
from recmeta.features.feast_store import FeatureStore
from recmeta.features.live import LiveFeatures, row_width
from recmeta.features.met import codes_in, item_codes, maybe_met, merged, met_of_users, packed
from recmeta.features.partitions import MET, counter_view, views_of
from recmeta.features.schema import ITEM_CODES, MET_VIEW, USER_ITEM
from recmeta.features.training_rows import feature_space

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MIDDLE, UNTIL = FIRST_DAY + 6 * DAY, FIRST_DAY + 14 * DAY
ITEMS = (*(f"i{n}" for n in range(1, 10)), "first met just now", "é\u2028'\"")
USERS = (*(f"u{n}" for n in range(6)), "newcomer", "stranger")
CODES = item_codes(ITEMS)


@pytest.fixture
def store(store_settings: dict[str, Any], new_workspace: Callable[..., Workspace]) -> Iterator[FeatureStore]:
    """An empty store of an empty workspace."""
    workspace = new_workspace(stores=store_settings)
    with FeatureStore(workspace.settings, workspace.contexts) as made:
        made.apply()
        yield made


def workspace_of(store: FeatureStore) -> Workspace:
    return Workspace(store._settings, store._contexts)


def night(store: FeatureStore, until: datetime) -> dict[str, Any]:
    build_features(store._settings, store._contexts, until)
    return store.materialize(until)


def opened(store: FeatureStore) -> Reader:
    width = row_width(store._settings)
    return open_rows(store._settings, width) or FeastReader(store.online, width)


def there(store: FeatureStore, user: str) -> dict[str, set[str]]:
    """The items that a user has a row with, by context: each looked for."""
    keys = [(user, item) for item in ITEMS]
    found = {
        name: store.online.read(counter_view(USER_ITEM, name), keys).there for name in store._contexts.names
    }
    return {name: {ITEMS[place] for place in np.flatnonzero(rows)} for name, rows in found.items()}


def indexed(store: FeatureStore, users: Sequence[str] = USERS) -> dict[str, set[str] | None]:
    """The items that the index names of each user; None: the user has no place in it."""
    found: dict[str, set[str] | None] = {}
    for user, value in zip(users, store.online.read(MET, [(user,) for user in users]).values, strict=True):
        codes = None if value is None else codes_in(value)
        assert codes is None or (np.diff(codes.astype(object)) > 0).all(), "sorted, and no code twice"
        found[user] = None if codes is None else {ITEMS[n] for n in np.flatnonzero(np.isin(CODES, codes))}
        assert codes is None or len(codes) == len(found[user] or ())
    return found


def assert_all_is_found(store: FeatureStore) -> int:
    """A request, and many at once, find every row that looking for each finds; return how many."""
    contexts, total = store._contexts.names, 0
    with closing(opened(store)) as reader:
        whose = np.repeat(np.arange(len(USERS)), len(ITEMS))
        many = reader.many(contexts, USERS, whose, ITEMS * len(USERS), np.tile(CODES, len(USERS)))
        for number, user in enumerate(USERS):
            wanted = there(store, user)
            found = reader.requests([Lookup(user, contexts, ITEMS, CODES)])[0]
            here = whose[many.met] == number
            assert (many.met[here] - number * len(ITEMS)).tolist() == found.met.tolist()
            assert many.pairs[:, here].tobytes() == found.pairs.tobytes()
            for row, name in enumerate(contexts):
                known = found.met[found.knows_pair[row]]
                assert {ITEMS[place] for place in known.tolist()} == wanted[name], (user, name)
                total += len(known)
    return total


def assert_whole(store: FeatureStore, but_not: Sequence[str] = ()) -> None:
    """The index names all items with a row, and no other; ``but_not`` of users who have no place in it."""
    assert assert_all_is_found(store)
    named = indexed(store)
    for user in USERS:
        wanted = set().union(*there(store, user).values())
        assert named[user] == (wanted if wanted and user not in but_not else None), user


def acted(user: str, item: str, context: str, at: datetime) -> pl.DataFrame:
    row = {
        "event_id": f"{user}-{item}-{at}", "user_id": user, "item_id": item, "context": context,
        "event_timestamp": at, "created_timestamp": at, "label": 1, "weight": 1.0,
    }  # fmt: skip
    instants = ("event_timestamp", "created_timestamp")
    return pl.DataFrame([row], schema_overrides=dict.fromkeys(instants, pl.Datetime("us", "UTC")))


def log_of(store: FeatureStore, start: datetime, end: datetime) -> pl.DataFrame:
    return scan_events(store._settings, start, end).collect()


# The value --------------------------------------------------------------------------------------------


def test_a_code_is_the_hash_of_an_id_in_every_process() -> None:
    for item, code in zip(ITEMS, CODES.tolist(), strict=True):
        assert code == int.from_bytes(blake2b(item.encode(), digest_size=8).digest(), "little")
    assert item_codes(()).shape == (0,)
    assert item_codes(["i1"]).tolist() == [0xACF11BAFF1E2AAE]


ids = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=30)


@given(ids, ids, ids)
def test_what_was_put_in_is_found_and_no_other(one: list[str], other: list[str], asked: list[str]) -> None:
    values = [packed(np.unique(item_codes(items))) for items in (one, other)]
    both = merged(*values)
    assert both == merged(*values[::-1]) == packed(np.unique(item_codes(one + other)))
    assert both == merged(both, values[0])
    expected = [place for place, item in enumerate(asked) if item in {*one, *other}]
    assert maybe_met(True, both, item_codes(asked)).tolist() == expected
    assert maybe_met(True, None, item_codes(asked)).tolist() == list(range(len(asked)))
    assert not len(maybe_met(False, both, item_codes(asked)))


def test_the_value_of_each_user_is_made_of_all_their_pairs() -> None:
    pairs = [("b", "i2"), ("a", "i1"), ("b", "i1"), ("b", "i2"), ("c", "i3")]
    made = met_of_users(pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row"))
    assert made["user_id"].to_list() == ["a", "b", "c"]
    wanted = [["i1"], ["i1", "i2"], ["i3"]]
    assert made[ITEM_CODES].to_list() == [packed(np.sort(item_codes(items))) for items in wanted]
    assert met_of_users(pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})).is_empty()


# Nights -----------------------------------------------------------------------------------------------


def test_late_events_and_windows_that_come_again_leave_the_index_whole(store: FeatureStore) -> None:
    workspace, log = workspace_of(store), random_log(300)
    workspace.ingest(log[::3], "third")
    night(store, MIDDLE)
    assert_whole(store)
    before = indexed(store)
    store.record(log_of(store, MIDDLE, MIDDLE + 2 * DAY))
    assert_whole(store)
    workspace.ingest(log[1::3], "late")
    night(store, MIDDLE + DAY)  # what was recorded live is newer than this night, and the late events are not
    assert_whole(store)
    assert any(before[user] != of for user, of in indexed(store).items())
    workspace.ingest(log[2::3], "rest")
    night(store, UNTIL)
    assert_whole(store)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("store_settings", ["sqlite", "redis"], indirect=True)
def test_any_order_of_windows_leaves_the_index_whole(store: FeatureStore, seed: int) -> None:
    choose, log, ledger = random.Random(seed), random_log(200), Ledger(store._settings.ledger_folder)
    order = choose.sample(range(len(log)), len(log))
    for part in range(3):
        workspace_of(store).ingest(log[sorted(order[part::3])], f"part{part}")
        build_features(store._settings, store._contexts, UNTIL)
        for _ in range(2):
            store.materialize(FIRST_DAY + choose.randint(2, 14) * DAY)
            assert_whole(store)
            first = choose.randint(0, 12)
            last = choose.randint(first + 1, 13)
            ledger.reopen("materialize", Interval(FIRST_DAY + first * DAY, FIRST_DAY + last * DAY))
    store.materialize(UNTIL)
    assert_whole(store)


def test_a_window_ends_before_what_is_built_and_a_later_one_has_the_rest(store: FeatureStore) -> None:
    workspace_of(store).ingest(random_log(120))
    build_features(store._settings, store._contexts, UNTIL)
    for day in (2, 3, 7, 14):
        store.materialize(FIRST_DAY + day * DAY)
        assert_whole(store)


# Live -------------------------------------------------------------------------------------------------


def test_who_and_what_was_never_seen_is_in_the_index_at_once(store: FeatureStore) -> None:
    workspace_of(store).ingest(random_log(200))
    night(store, MIDDLE)
    with closing(opened(store)) as reader:
        assert not len(reader.requests([Lookup("newcomer", ("reading",), ITEMS, CODES)])[0].met)
        for number, (user, item) in enumerate(
            [("newcomer", ITEMS[-2]), ("u1", ITEMS[-2]), ("u1", ITEMS[-1])]
        ):
            assert ITEMS.index(item) not in reader.requests([Lookup(user, ("reading",), ITEMS, CODES)])[0].met
            store.record(acted(user, item, "reading", MIDDLE + number * HOUR))
            assert ITEMS.index(item) in reader.requests([Lookup(user, ("reading",), ITEMS, CODES)])[0].met
            assert_whole(store)
        assert reader.requests([Lookup("newcomer", (), (), item_codes(()))])[0].history == (ITEMS[-2],)
    night(store, MIDDLE + DAY)
    assert_whole(store)


def test_a_surface_that_is_brought_up_is_in_the_index(store: FeatureStore) -> None:
    workspace_of(store).ingest(random_log(200))
    night(store, MIDDLE)
    interactions = pl.concat(
        [
            acted("u1", ITEMS[-1], "quiet", MIDDLE - DAY),
            acted("newcomer", "i1", "quiet", MIDDLE - 2 * DAY),
        ]
    )
    log = pl.concat(
        [log_of(store, FIRST_DAY, MIDDLE).select(interactions.columns), interactions], how="vertical_relaxed"
    )
    for _ in range(2):
        store.bring_up("quiet", interactions, log.lazy())
        assert_whole(store)
    assert there(store, "newcomer")["quiet"] == {"i1"}


@pytest.mark.parametrize("store_settings", ["sqlite", "redis"], indirect=True)  # others are written by Feast
def test_feasts_own_client_reads_what_was_written_past_it(store: FeatureStore) -> None:
    workspace_of(store).ingest(random_log(200))
    night(store, MIDDLE)
    rows = open_rows(store._settings, row_width(store._settings))
    assert rows is not None
    online = OnlineStore(rows, row_width(store._settings))
    with closing(LiveFeatures(store._settings, store._contexts, online)) as direct:
        for number, part in enumerate(log_of(store, MIDDLE, UNTIL).iter_slices(9)):
            (direct if number % 2 else store).record(part)
            assert online.read(MET, [(user,) for user in USERS]).values == told_by_feast(store)
    assert_whole(store)


def test_feasts_own_client_reads_the_index(store: FeatureStore) -> None:
    workspace_of(store).ingest(random_log(200))
    night(store, UNTIL)
    told = told_by_feast(store)
    assert told == store.online.read(MET, [(user,) for user in USERS]).values
    wanted = set().union(*there(store, "u1").values())
    assert told[USERS.index("u1")] == packed(np.sort(item_codes(sorted(wanted))))
    assert told[USERS.index("stranger")] is None


def told_by_feast(store: FeatureStore) -> list[Any]:
    found = store._store.get_online_features(
        features=[f"{MET_VIEW}:{ITEM_CODES}"], entity_rows=[{"user_id": user} for user in USERS]
    )
    told: list[Any] = found.to_dict()[ITEM_CODES]
    return told


# What is not as it should be --------------------------------------------------------------------------


def put(store: FeatureStore, user: str, value: bytes) -> None:
    store.online._backend.put(MET, [(user,)], [value], [UNTIL])


def test_a_value_that_is_none_counts_as_absent_and_the_night_puts_it_right(store: FeatureStore) -> None:
    once = read("newcomer", ITEMS[-2], FIRST_DAY + HOUR)
    workspace_of(store).ingest(pl.concat([random_log(200), once], how="diagonal"))
    night(store, MIDDLE)
    for user in ("u1", "newcomer"):
        put(store, user, b"garbage")
        assert indexed(store)[user] is None
    assert assert_all_is_found(store)
    store.record(acted("u1", ITEMS[-1], "reading", MIDDLE + HOUR))
    assert_whole(store, but_not=["u1", "newcomer"])  # there are pairs that a live event knows nothing of
    Ledger(store._settings.ledger_folder).reopen("materialize", Interval(FIRST_DAY, MIDDLE))
    night(store, MIDDLE)
    assert_whole(store, but_not=["u1"])  # nor does a night know all of one who acted after it
    put(store, "newcomer", b"garbage")
    again = [read("u1", ITEMS[-1], MIDDLE + HOUR), read("newcomer", "i1", UNTIL - DAY)]
    workspace_of(store).ingest(pl.concat(again), "more")
    night(store, UNTIL)  # its window has not the item that the newcomer read first
    assert_whole(store)


def read(user: str, item: str, at: datetime) -> pl.DataFrame:
    row = {"user": user, "item": item, "type": "READ", "time": at, "seen": at, "weight": 1.0}
    return pl.DataFrame([row], schema_overrides=dict.fromkeys(("time", "seen"), pl.Datetime("us", "UTC")))


def test_an_index_that_names_too_many_items_changes_no_answer(store: FeatureStore) -> None:
    workspace_of(store).ingest(random_log(60))
    night(store, MIDDLE)
    with closing(opened(store)) as reader:
        before = [reader.requests([Lookup(user, ("reading", "feed"), ITEMS, CODES)])[0] for user in USERS]
        assert 0 < sum(len(rows.met) for rows in before) < 6 * len(ITEMS)
        for user in USERS:
            put(store, user, packed(np.sort(CODES)))
        for user, wanted in zip(USERS, before, strict=True):
            found = reader.requests([Lookup(user, ("reading", "feed"), ITEMS, CODES)])[0]
            assert found.met.tolist() == wanted.met.tolist()
            assert found.pairs.tobytes() == wanted.pairs.tobytes()
    assert_all_is_found(store)


def test_a_store_that_an_older_recmeta_wrote_is_read_and_written_on_and_gets_its_index_by_night(
    store_settings: dict[str, Any], new_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = new_workspace(stores=store_settings)
    workspace.ingest(random_log(200))
    declared = feast_store.definitions
    monkeypatch.setattr(
        feast_store, "definitions", lambda *of: [made for made in declared(*of) if made.name != MET_VIEW]
    )
    monkeypatch.setattr(LiveFeatures, "_index", lambda *_, **__: 0)
    with FeatureStore(workspace.settings, workspace.contexts) as older:
        older.apply()
        night(older, MIDDLE)
    monkeypatch.undo()
    file = workspace.settings.feast_folder / "online.json"
    artifacts.write_json(file, {"store": artifacts.read_json(file)["store"]})

    with FeatureStore(workspace.settings, workspace.contexts) as newer:
        assert assert_all_is_found(newer)
        newer.record(acted("u1", ITEMS[-1], "reading", MIDDLE + HOUR))
        assert assert_all_is_found(newer)
        assert ITEMS[-1] in there(newer, "u1")["reading"]
    with FeatureStore(workspace.settings, workspace.contexts) as newer:
        newer.apply()
        newer.record(acted("u2", ITEMS[-1], "reading", MIDDLE + 2 * HOUR))
        newer.record(acted("newcomer", ITEMS[-1], "reading", MIDDLE + 2 * HOUR))
        assert_whole(newer, but_not=USERS[:6])
        assert night(newer, MIDDLE)["rows"] > 0
        assert_whole(newer, but_not=["u1", "u2"])  # they acted after the night, before they had an index


# Batches and connections ------------------------------------------------------------------------------


def test_batches_one_after_another_read_the_same_whatever_fits_into_one_journey(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace_of(store).ingest(random_log(200))
    night(store, UNTIL)
    put(store, "u2", b"garbage")  # all of theirs are looked up
    items = [*ITEMS, *(f"never {n}" for n in range(1000))]
    whose = np.repeat(np.arange(len(USERS)), len(items))
    asked = (store._contexts.names, USERS, whose, items * len(USERS), np.tile(item_codes(items), len(USERS)))
    with closing(opened(store)) as reader:
        first, second = reader.many(*asked), reader.many(*asked)
        monkeypatch.setattr(direct_online, "COMMANDS_AT_ONCE", 7)
        for other in (second, reader.many(*asked)):
            assert other.met.tolist() == first.met.tolist()
            assert other.pairs.tobytes() == first.pairs.tobytes()
            assert other.histories == first.histories
        alone = reader.requests([Lookup("u2", store._contexts.names, items, item_codes(items))])[0]
        here = whose[first.met] == 2
        assert (first.met[here] - 2 * len(items)).tolist() == alone.met.tolist()
        assert len(alone.met) > 3


@pytest.mark.parametrize("store_settings", ["redis"], indirect=True)
def test_an_answer_that_is_an_error_leaves_no_other_for_the_next_request(
    store: FeatureStore, redis_address: str
) -> None:
    workspace_of(store).ingest(random_log(200))
    night(store, UNTIL)
    host, _, port = redis_address.partition(",")[0].partition(":")
    item = min(there(store, "u1")["reading"])
    key = entity_key(counter_view(USER_ITEM, "reading"), ("u1", item)) + PROJECT.encode()
    with closing(redis.Redis(host=host, port=int(port))) as other, closing(opened(store)) as reader:
        wanted = reader.requests([Lookup("u2", ("reading",), ITEMS, CODES)])[0]
        stored = other.dump(key)
        other.set(key, b"no hash")
        with pytest.raises(redis.ResponseError):
            reader.requests([Lookup("u1", ("reading",), ITEMS, CODES)])
        found = reader.requests([Lookup("u2", ("reading",), ITEMS, CODES)])[0]
        assert found.pairs.tobytes() == wanted.pairs.tobytes()
        assert found.history == wanted.history
        other.restore(key, 0, stored, replace=True)
    assert_whole(store)


# What it must not touch -------------------------------------------------------------------------------


def test_the_index_is_no_feature(new_workspace: Callable[..., Workspace]) -> None:
    workspace = new_workspace()
    workspace.ingest(random_log(60))
    build_features(workspace.settings, workspace.contexts, UNTIL)
    assert not (workspace.settings.features_folder / MET_VIEW).exists()
    assert MET not in views_of(workspace.contexts)
    space = feature_space(workspace.settings, workspace.contexts)
    for context in workspace.contexts.names:
        assert MET_VIEW not in space.views(context)
    for service in feast_store.definitions(workspace.settings, workspace.contexts):
        projections = getattr(service, "feature_view_projections", [])
        assert MET_VIEW not in {projection.name for projection in projections}
