"""What a request scores is what Feast and the nights say, to the bit; and what it does without a store."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import Living, acted

from recmeta.features.feast_store import FeatureStore
from recmeta.features.training_rows import feature_space
from recmeta.serving.guarded import GuardedReader
from recmeta.serving.knowledge import Question
from recmeta.serving.recommender import Recommender
from recmeta.serving.served_log import ServedLog
from recmeta.settings import load_settings


@pytest.fixture
def now(living: Living) -> datetime:
    return living.until + timedelta(hours=1, microseconds=17)


def asked(recommender: Recommender, context: str, user: str, items: list[str], now: datetime) -> Any:
    places = recommender._catalogue.places(items)
    return recommender._knowledge.of(Question(context, user, items, places, now, ended=False))


def test_the_rows_of_a_request_are_those_that_feast_and_the_night_would_make(
    living: Living, now: datetime
) -> None:
    recommender = Recommender(living.settings)
    space = feature_space(living.settings, living.contexts)
    ids = [*recommender._catalogue.ids[:40], "never seen", "touched since"]
    users = [living.reader(), "stranger", sorted(set(living.events["user_id"]))[3]]
    recommender.record(acted(living, "stranger", "touched since", "reading", now - timedelta(minutes=9)))
    recommender.record(acted(living, users[0], ids[2], "feed", now - timedelta(minutes=5)))
    met = 0
    with FeatureStore(living.settings, living.contexts) as store:
        for instant in (now, now + timedelta(minutes=1), now):
            for user in users:
                online = store.read_online(user, ids, instant)
                at = np.full(len(ids), round(instant.timestamp() * 1e6), dtype=np.int64)
                for context in living.contexts.names:
                    found = asked(recommender, context, user, ids, instant)
                    wanted = space.assemble(context, online.blocks, at)
                    assert found.dense.whole.tobytes() == wanted.tobytes(), (user, context)
                    assert found.rows.history == online.history
                    met += len(found.rows.met)
    assert met


def test_columns_beyond_the_memory_that_settings_allow_are_made_anew_and_the_same(
    living: Living, now: datetime
) -> None:
    small = load_settings(living.settings.workspace, serving={"item_columns_megabytes": 0})
    plenty, none = Recommender(living.settings), Recommender(small)
    for context in living.contexts.names:
        wanted = plenty.recommend(context, living.reader(), 20, now)
        assert none.recommend(context, living.reader(), 20, now) == wanted


def test_a_store_that_fails_costs_the_history_and_not_the_answer(living: Living, now: datetime) -> None:
    recommender = Recommender(living.settings)
    whole = recommender.recommend("feed", living.reader(), 10, now)
    online = living.settings.feast_folder / "online.db"
    content = online.read_bytes()
    recommender.close()
    online.write_bytes(b"garbage " * 1000)
    for left in ("-wal", "-shm"):
        (online.parent / f"online.db{left}").unlink(missing_ok=True)
    answer = recommender.recommend("feed", living.reader(), 10, now)
    assert answer.degraded
    assert "online store does not answer" in answer.notes[0]
    assert len(answer.items) == 10
    assert all(0 < item.score < 1 for item in answer.items)
    online.write_bytes(content)
    recommender._guarded._until = 0.0  # the rest is over
    assert recommender.recommend("feed", living.reader(), 10, now) == whole


def test_a_store_that_fails_is_left_alone_for_a_while() -> None:
    class Failing:
        asked = 0

        def requests(self, *_: object) -> Any:
            self.asked += 1
            if self.asked < 3:
                raise TimeoutError("slow")
            return "rows"

        def close(self) -> None: ...

    clock, failing = [0.0], Failing()
    guarded = GuardedReader(failing, 1.0, lambda: clock[0])  # type: ignore[arg-type]
    assert guarded.requests([]) is None
    assert guarded.requests([]) is None
    assert (failing.asked, guarded.fault) == (1, "TimeoutError: slow")
    clock[0] = 1.0
    assert guarded.requests([]) is None
    clock[0] = 2.0
    assert guarded.requests([]) == "rows"
    assert (failing.asked, guarded.fault) == (3, None)


def test_an_explanation_tells_what_moved_a_score_and_what_the_adapter_added(
    living: Living, now: datetime
) -> None:
    recommender = Recommender(living.settings)
    user, item = living.reader(), recommender._catalogue.ids[0]
    found = recommender.explain("reading", user, item, now)
    ranked = recommender.rank("reading", user, [item], now).items[0]
    assert found.score == pytest.approx(ranked.score)
    effects = {part.name: part.effect for part in found.parts}
    assert [abs(part.effect) for part in found.parts] == sorted(map(abs, effects.values()), reverse=True)
    assert effects["history"] != 0.0
    # The sample's adapter is a bias of one logit and no more.
    assert found.shared_score is not None
    log_odds = np.log(found.score / (1 - found.score)) - np.log(found.shared_score / (1 - found.shared_score))
    assert log_odds == pytest.approx(effects["adapter"], abs=1e-4)
    assert recommender.explain("feed", user, item, now).shared_score is None
    stranger = recommender.explain("feed", "nobody", "nothing", now)
    told = {part.name: part.effect for part in stranger.parts}
    assert told["history"] == told["you_and_item"] == told["your_activity"] == 0.0


def test_variety_and_freshness_change_the_order_and_not_the_scores(living: Living, now: datetime) -> None:
    recommender = Recommender(living.settings)
    plain = recommender.recommend("feed", "nobody", 30, now)
    scores = {item.item_id: item.score for item in plain.items}
    varied = recommender.recommend("feed", "nobody", 5, now, diversity=1.0)
    seen: set[str] = set()
    for item in varied.items[:2]:
        assert not seen & set(item.categories)
        seen |= set(item.categories)
    assert all(scores.get(item.item_id, item.score) == pytest.approx(item.score) for item in varied.items)
    fresh = recommender.recommend("feed", "nobody", 5, now, freshness=10.0)
    born = {item: living.events.filter(pl.col("item_id") == item)["event_timestamp"].min() for item in scores}
    known = [born[item.item_id] for item in fresh.items if item.item_id in born]
    assert np.mean([(now - at).total_seconds() for at in known]) < np.mean(
        [(now - at).total_seconds() for at in born.values()]
    )


def test_what_is_explored_says_with_which_probability_it_is_shown_and_is_logged(
    living: Living, now: datetime, tmp_path: Path
) -> None:
    exploration = {"feed": {"strategy": "epsilon_greedy", "epsilon": 0.5, "budget": 1.0}}
    settings = load_settings(living.settings.workspace, serving={"exploration": exploration})
    served = ServedLog(tmp_path / "served")
    recommender = Recommender(settings, served=served)
    plain = Recommender(living.settings).recommend("feed", "nobody", 10, now)
    shown = [recommender.recommend("feed", "nobody", 10, now) for _ in range(20)]
    served.stop()
    assert all(item.propensity is None for item in plain.items)
    assert all(item.propensity and 0 < item.propensity <= 1 for answer in shown for item in answer.items)
    assert any(
        [item.item_id for item in answer.items] != [item.item_id for item in plain.items] for answer in shown
    )
    logged = pl.read_parquet(tmp_path / "served" / "**" / "*.parquet").sort("request_id", "position")
    assert len(logged) == 200
    assert {*zip(logged["item_id"], logged["propensity"], strict=True)} == {
        (item.item_id, item.propensity) for answer in shown for item in answer.items
    }
    assert (logged["best_score"] >= logged["score"] - 1e-12).all()
    assert (logged.filter("greedy")["score"] == logged.filter("greedy")["best_score"]).all()


def test_a_new_bundle_over_the_same_items_takes_what_was_in_memory(living: Living) -> None:
    before = Recommender(living.settings)
    after = Recommender(living.settings, before)
    assert after._items is before._items
    assert after._kept is before._kept
    shutil.rmtree(living.settings.bundles_folder / living.version / "adapters")
    with pytest.raises(Exception, match="missing"):
        Recommender(living.settings, after)


def test_what_is_touched_while_all_items_are_read_is_not_forgotten(living: Living, now: datetime) -> None:
    recommender = Recommender(living.settings)
    item = recommender._catalogue.ids[0]
    reader = recommender._open_reader(None)
    whole = reader.items

    def touched_meanwhile(contexts: Any, items: Any) -> Any:
        rows = whole(contexts, items)
        if len(items) > 1:  # all of them were read before somebody acts, and are put in place after it
            recommender.record(acted(living, "stranger", item, "reading", now - timedelta(minutes=5)))
        return rows

    reader.items = touched_meanwhile  # type: ignore[method-assign]
    before = recommender.rank("reading", "nobody", [item], now).items[0].score
    recommender._items.load(reader)
    after = recommender.rank("reading", "nobody", [item], now).items[0].score
    assert after != before
    assert Recommender(living.settings).rank("reading", "nobody", [item], now).items[0].score == after


def test_items_are_read_again_where_another_process_wrote_and_only_there(
    living: Living, now: datetime
) -> None:
    mine, other = Recommender(living.settings), Recommender(living.settings)
    item, state = mine._catalogue.ids[0], mine._items._rows
    before = mine.rank("reading", "nobody", [item], now).items[0].score
    mine.refresh()
    assert mine._items._rows is state
    other.record(acted(living, "stranger", item, "reading", now - timedelta(minutes=5)))
    assert mine.rank("reading", "nobody", [item], now).items[0].score == before
    mine.refresh()
    assert mine.rank("reading", "nobody", [item], now) == other.rank("reading", "nobody", [item], now)
    assert mine.rank("reading", "nobody", [item], now).items[0].score != before
