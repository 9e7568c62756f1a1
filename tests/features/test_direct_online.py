"""Without Feast a server reads and writes what Feast reads and writes, to the bit."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import redis
from feature_logs import FIRST_DAY, Workspace, random_log

from recmeta.errors import InputError
from recmeta.events.store import scan_events
from recmeta.features import direct_online
from recmeta.features.assembly import stored_block
from recmeta.features.build import build_features
from recmeta.features.direct_online import Lookup, RedisRows, open_rows
from recmeta.features.feast_online import FeastReader, OnlineStore
from recmeta.features.feast_store import FeatureStore
from recmeta.features.live import LiveFeatures, row_width
from recmeta.features.met import item_codes
from recmeta.features.schema import KINDS, view_name

DAY = timedelta(days=1)
MIDDLE = FIRST_DAY + 6 * DAY
ITEMS = tuple(f"i{n}" for n in range(1, 10))
USERS = (*(f"u{n}" for n in range(6)), "stranger", "é\u2028'\"", "x" * 256)


@pytest.fixture
def stored(
    store_settings: dict[str, Any], new_workspace: Callable[..., Workspace]
) -> Iterator[tuple[Workspace, FeatureStore]]:
    """A workspace with a night in its online store."""
    workspace = new_workspace(stores=store_settings)
    workspace.ingest(random_log(300))
    with FeatureStore(workspace.settings, workspace.contexts) as store:
        store.apply()
        build_features(workspace.settings, workspace.contexts, MIDDLE)
        store.materialize(MIDDLE)
        yield workspace, store


def assert_read_alike(workspace: Workspace, store: FeatureStore) -> None:
    """Every block of every user, item and pair, through Feast and past it."""
    width, contexts, now = row_width(workspace.settings), workspace.contexts.names, FIRST_DAY + 20 * DAY
    opened = open_rows(workspace.settings, width)
    reader = FeastReader(store._online, width) if opened is None else opened
    instant = np.array([round(now.timestamp() * 1e6)])
    codes = item_codes(ITEMS)
    of_items = reader.items(contexts, ITEMS)
    assert sum(len(of_items[name].places) for name in contexts) > len(ITEMS)
    pairs = 0
    for user in USERS:
        wanted = store.read_online(user, ITEMS, now)
        found = reader.requests([Lookup(user, contexts, ITEMS, codes)])[0]
        assert found.history == wanted.history
        pairs += len(found.met)
        for number, name in enumerate(contexts):
            pair, knows_pair = np.zeros((len(ITEMS), width), np.float32), np.zeros(len(ITEMS), bool)
            pair[found.met], knows_pair[found.met] = found.pairs[number], found.knows_pair[number]
            item, knows_item = np.zeros((len(ITEMS), width), np.float32), np.zeros(len(ITEMS), bool)
            item[of_items[name].places], knows_item[of_items[name].places] = of_items[name].values, True
            rows = {
                "user": (np.repeat(found.user[[number]], 9, 0), np.repeat(found.knows_user[[number]], 9)),
                "item": (item, knows_item),
                "user_item": (pair, knows_pair),
            }
            for kind in KINDS:
                block = stored_block(*rows[kind], np.repeat(instant, len(ITEMS)))
                there = wanted.blocks[view_name(kind, name)]
                assert np.array_equal(block.hours, there.hours, equal_nan=True), (user, kind, name)
                known = block.hours >= 0
                assert block.values[known].tobytes() == there.values[known].tobytes()
    assert pairs
    if opened is not None:
        opened.close()


def test_a_request_reads_what_feast_reads(stored: tuple[Workspace, FeatureStore]) -> None:
    assert_read_alike(*stored)


def test_many_users_are_read_as_each_by_itself(stored: tuple[Workspace, FeatureStore]) -> None:
    workspace, store = stored
    width, contexts = row_width(workspace.settings), workspace.contexts.names
    reader = open_rows(workspace.settings, width) or FeastReader(store._online, width)
    # More than one script and one statement take, and another number of items for each user.
    items = [*ITEMS, *(f"never {n}" for n in range(1000))]
    asked = [items[: 3 * number + 1] for number in range(len(USERS) - 1)] + [items]
    whose = np.repeat(np.arange(len(USERS)), [len(of) for of in asked])
    flat = [item for of in asked for item in of]
    found = reader.many(contexts, USERS, whose, flat, item_codes(flat))
    met = 0
    for number, (user, own) in enumerate(zip(USERS, asked, strict=True)):
        alone = reader.requests([Lookup(user, contexts, own, item_codes(own))])[0]
        assert found.histories[number] == alone.history
        assert found.users[:, number].tobytes() == alone.user.tobytes()
        assert np.array_equal(found.knows_user[:, number], alone.knows_user)
        here = whose[found.met] == number
        assert np.array_equal(found.met[here] - np.searchsorted(whose, number), alone.met)
        assert found.pairs[:, here].tobytes() == alone.pairs.tobytes()
        assert np.array_equal(found.knows_pair[:, here], alone.knows_pair)
        met += len(alone.met)
    assert met
    reader.close()


def test_requests_of_several_users_are_read_as_each_by_itself(
    stored: tuple[Workspace, FeatureStore],
) -> None:
    workspace, store = stored
    width, contexts = row_width(workspace.settings), workspace.contexts.names
    reader = open_rows(workspace.settings, width) or FeastReader(store._online, width)
    some = [ITEMS[number:] for number in range(len(USERS))]
    read = [contexts[:2], contexts[-2:], contexts[1::-1]]  # others in each, and as many
    asked = [
        Lookup(user, read[number % 3], of, item_codes(of))
        for number, (user, of) in enumerate(zip(USERS, some, strict=True))
    ]
    asked += [Lookup(USERS[0], read[0], (), item_codes(())), asked[0]]  # again, and of no items
    together = reader.requests(asked)
    assert sum(len(found.met) for found in together) > len(USERS)
    for one, found in zip(asked, together, strict=True):
        (alone,) = reader.requests([one])
        assert found.history == alone.history
        for name in ("user", "knows_user", "met", "pairs", "knows_pair"):
            assert np.array_equal(getattr(found, name), getattr(alone, name)), name
    assert reader.requests([]) == []
    reader.close()


@pytest.mark.parametrize("store_settings", ["redis"], indirect=True)
def test_who_came_lately_is_read_in_one_journey_and_as_the_store_is_now(
    stored: tuple[Workspace, FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, store = stored
    reader = open_rows(workspace.settings, row_width(workspace.settings))
    assert isinstance(reader, RedisRows)
    journeys: list[int] = []
    answers = reader._answers

    def counting(commands: Sequence[bytes]) -> list[Any]:
        journeys.append(len(commands))
        return answers(commands)

    monkeypatch.setattr(reader, "_answers", counting)
    contexts = workspace.contexts.names
    asked = [Lookup(user, contexts, ITEMS, item_codes(ITEMS)) for user in USERS]

    def sent() -> list[int]:
        """How many commands went on each journey that was not empty."""
        journeys.clear()
        reader.requests(asked)
        return [count for count in journeys if count]

    first = sent()
    assert len(first) == 2
    assert sent() == [sum(first)]
    live = scan_events(workspace.settings, MIDDLE, FIRST_DAY + 14 * DAY).collect()
    store.record(live)
    assert len(sent()) == 2, "somebody has met something since"
    assert len(sent()) == 1
    assert_as_a_new_reader_reads(workspace, reader, asked)
    monkeypatch.setattr(direct_online, "USERS_GUESSED", 2)
    few = open_rows(workspace.settings, row_width(workspace.settings))
    assert isinstance(few, RedisRows)
    few.requests(asked)
    assert len(few._indexes) == 2
    few.close()
    reader._redis().flushdb()
    assert sum(len(found.met) for found in reader.requests(asked)) == 0
    assert_as_a_new_reader_reads(workspace, reader, asked)
    assert not reader._indexes
    reader.close()


def assert_as_a_new_reader_reads(workspace: Workspace, reader: RedisRows, asked: Sequence[Lookup]) -> None:
    new = open_rows(workspace.settings, row_width(workspace.settings))
    assert new is not None
    for found, wanted in zip(reader.requests(asked), new.requests(asked), strict=True):
        assert found.history == wanted.history
        for name in ("user", "knows_user", "met", "pairs", "knows_pair"):
            assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    new.close()


@pytest.mark.parametrize("store_settings", ["sqlite", "redis"], indirect=True)  # Feast writes PostgreSQL
def test_what_is_written_past_feast_is_what_feast_would_have_written(
    stored: tuple[Workspace, FeatureStore],
) -> None:
    workspace, store = stored
    opened = open_rows(workspace.settings, row_width(workspace.settings))
    assert opened is not None
    live = scan_events(workspace.settings, MIDDLE, FIRST_DAY + 14 * DAY).collect()
    online = OnlineStore(opened, row_width(workspace.settings))
    with closing(LiveFeatures(workspace.settings, workspace.contexts, online)) as direct:
        for number, part in enumerate(live.iter_slices(9)):
            (direct if number % 2 else store).record(part)
        assert_read_alike(workspace, store)
        keys = [(user,) for user in USERS]
        for view in ("user__reading", "user__history"):
            made = next(found for found in views(workspace) if found.name == view)
            assert online.read(made, keys).values == [
                None if row is None else list(row) for row in store._online.read(made, keys).values
            ]
            assert online.read(made, keys).stamps == store._online.read(made, keys).stamps
        assert online.newest() == store._online.newest()


def views(workspace: Workspace) -> tuple[Any, ...]:
    from recmeta.features.partitions import views_of

    return views_of(workspace.contexts)


def test_a_server_needs_neither_feast_nor_torch_to_read_and_write() -> None:
    code = (
        "import sys\n"
        "from recmeta.features import direct_online, live\n"
        "from recmeta.features.feast_layout import pack, unpack\n"
        "from recmeta.features.partitions import HISTORY\n"
        "assert unpack(HISTORY, pack(HISTORY, ['a'])) == ['a']\n"
        "import recmeta.serving.recommender\n"
        "heavy = {'feast', 'torch', 'airflow', 'lightgbm', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_redis_that_is_silent_is_asked_once_and_no_time_is_lost_with_asking_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reader = RedisRows(f"127.0.0.1:{silent.getsockname()[1]},db=0", 13, timeout=0.05)
        with pytest.raises(redis.TimeoutError):
            reader.requests([Lookup("u", ("reading",), (), item_codes(()))])
        silent.settimeout(0.2)
        silent.accept()[0].close()
        with pytest.raises(TimeoutError):
            silent.accept()
        reader.close()


def test_a_connection_that_redis_closed_is_opened_again_within_the_request(redis_address: str) -> None:
    reader = RedisRows(redis_address, 13, timeout=5.0)
    host, _, port = redis_address.partition(",")[0].partition(":")
    assert not reader.requests([Lookup("u", ("reading",), (), item_codes(()))])[0].knows_user.any()
    with closing(redis.Redis(host=host, port=int(port))) as other:
        other.client_kill_filter(_type="normal", skipme=True)
    assert not reader.requests([Lookup("u", ("reading",), (), item_codes(()))])[0].knows_user.any()
    reader.close()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"stores\.redis: expected host:port"):
        RedisRows("localhost:one", 13)
