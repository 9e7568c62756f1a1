"""From a user and a context to a ranking, over a real online store and a real bundle."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from conftest import Living

from recmeta.bundle.store import BundleStore
from recmeta.errors import ContextError, InputError, IntegrityError, NotFoundError
from recmeta.events.schema import INTERACTION_SCHEMA
from recmeta.serving.recommender import Recommender
from recmeta.settings import load_settings


def interactions(user: str, items: Sequence[str], context: str, since: datetime) -> pl.DataFrame:
    instants = [since + timedelta(minutes=number) for number in range(len(items))]
    n = len(items)
    return pl.DataFrame(
        {
            "event_id": [f"live-{user}-{item}" for item in items],
            "user_id": [user] * n,
            "item_id": list(items),
            "context": [context] * n,
            "event_timestamp": instants,
            "created_timestamp": instants,
            "label": [1] * n,
            "weight": [1.0] * n,
            "position": [None] * n,
            "propensity": [None] * n,
        },
        schema=INTERACTION_SCHEMA,
    )


def engaged(living: Living, user: str, context: str) -> set[str]:
    rows = living.events.filter(
        (pl.col("user_id") == user) & (pl.col("context") == context) & (pl.col("label") == 1)
    )
    return set(rows["item_id"])


def test_a_known_user_gets_as_many_items_as_asked_the_best_first(
    living: Living, recommender: Recommender, now: datetime
) -> None:
    answer = recommender.recommend("feed", living.reader(), 10, now)
    scores = [item.score for item in answer.items]
    assert [item.rank for item in answer.items] == list(range(1, 11))
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert len({item.item_id for item in answer.items}) == 10
    assert all(item.reason for item in answer.items)
    assert answer.reason.startswith("known user")
    assert (answer.bundle, answer.as_of, answer.notes) == (living.version, now, ())


def test_the_same_question_at_the_same_instant_has_the_same_answer(
    living: Living, recommender: Recommender, now: datetime
) -> None:
    first = recommender.recommend("reading", living.reader(), 20, now)
    assert recommender.recommend("reading", living.reader(), 20, now) == first
    assert Recommender(living.settings).recommend("reading", living.reader(), 20, now) == first


def test_an_item_scores_the_same_whether_ranked_or_recommended(
    living: Living, recommender: Recommender, now: datetime
) -> None:
    recommended = recommender.recommend("feed", living.reader(), 5, now)
    ids = [item.item_id for item in recommended.items]
    ranked = recommender.rank("feed", living.reader(), ids[::-1], now)
    assert [item.item_id for item in ranked.items] == ids
    assert [item.score for item in ranked.items] == pytest.approx([item.score for item in recommended.items])


def test_two_users_get_different_answers(living: Living, recommender: Recommender, now: datetime) -> None:
    others = sorted(set(living.events["user_id"]) - {living.reader()})[:3]
    mine = recommender.recommend("feed", living.reader(), 10, now).items
    assert all(recommender.recommend("feed", other, 10, now).items != mine for other in others)


def test_an_unknown_user_is_ordinary_and_the_answer_says_so(recommender: Recommender, now: datetime) -> None:
    answer = recommender.recommend("feed", "nobody at all", 10, now)
    assert len(answer.items) == 10
    assert answer.reason.startswith("unknown user: no history")
    assert not answer.degraded


def test_unknown_items_are_ranked_with_a_reason(
    living: Living, recommender: Recommender, now: datetime
) -> None:
    known = sorted(engaged(living, living.reader(), "reading"))[:2]
    answer = recommender.rank("reading", living.reader(), ["never seen", *known, "張"], now, reasons=True)
    reasons = {item.item_id: item.reason for item in answer.items}
    assert set(reasons) == {"never seen", *known, "張"}
    assert reasons["never seen"].startswith("unknown item")
    assert not any(reasons[item].startswith("unknown item") for item in known)


def test_a_repeated_candidate_counts_once(living: Living, recommender: Recommender, now: datetime) -> None:
    answer = recommender.rank("feed", living.reader(), ["a", "b", "a", "a"], now)
    assert sorted(item.item_id for item in answer.items) == ["a", "b"]


def test_a_single_candidate_is_ranked(living: Living, recommender: Recommender, now: datetime) -> None:
    item = min(engaged(living, living.reader(), "reading"))
    assert [found.rank for found in recommender.rank("feed", living.reader(), [item], now).items] == [1]


@pytest.mark.parametrize("context", ["feed", "reading", "commenting"])
def test_no_candidates_is_an_empty_answer_with_a_reason(
    context: str, recommender: Recommender, now: datetime
) -> None:
    answer = recommender.rank(context, "nobody", [], now)
    assert answer.items == ()
    assert "no candidates" in answer.reason


def test_what_a_user_engaged_with_is_left_out_unless_asked_for(
    living: Living, recommender: Recommender, now: datetime
) -> None:
    user = living.reader()
    seen = engaged(living, user, "reading") | engaged(living, user, "feed")
    assert seen
    without = recommender.recommend("feed", user, 1000, now)
    assert not seen & {item.item_id for item in without.items}
    everything = recommender.recommend("feed", user, 1000, now, exclude_seen=False)
    assert seen & {item.item_id for item in everything.items}


def test_one_may_comment_on_what_one_has_read_but_not_twice(
    living: Living, recommender: Recommender, now: datetime
) -> None:
    commented = living.events.filter((pl.col("context") == "commenting") & (pl.col("label") == 1))
    user = commented["user_id"].value_counts(sort=True, name="n").sort("n", "user_id")[-1, 0]
    offered = {item.item_id for item in recommender.recommend("commenting", user, 1000, now).items}
    assert offered & engaged(living, user, "reading")
    assert not offered & engaged(living, user, "commenting")


def test_where_the_gates_let_nothing_serve_popularity_ranks_and_the_answer_says_so(
    living: Living, recommender: Recommender, now: datetime
) -> None:
    answer = recommender.recommend("commenting", "nobody", 5, now)
    assert answer.serves == "popularity"
    assert "commenting" in answer.notes[0]
    counts = living.events.filter((pl.col("context") == "commenting") & (pl.col("label") == 1))["item_id"]
    assert answer.items[0].item_id in set(counts)


def test_reading_changes_the_next_answer_of_this_user_at_once(
    living: Living, recommender: Recommender, now: datetime
) -> None:
    user = living.reader()
    before = recommender.recommend("feed", user, 1000, now)
    read = [item.item_id for item in before.items[5:8]]
    recommender.record(interactions(user, read, "reading", now + timedelta(minutes=1)))
    later = now + timedelta(minutes=10)
    after = recommender.recommend("feed", user, 1000, later)
    assert not set(read) & {item.item_id for item in after.items}
    scores = {item.item_id: item.score for item in before.items}
    changed = [item for item in after.items if abs(item.score - scores[item.item_id]) > 1e-4]
    assert len(changed) > len(after.items) / 2
    assert Recommender(living.settings).recommend("feed", user, 1000, later) == after


def test_a_user_who_is_unknown_becomes_one_with_a_history(recommender: Recommender, now: datetime) -> None:
    items = [item.item_id for item in recommender.recommend("feed", "new here", 3, now).items]
    recommender.record(interactions("new here", items, "reading", now))
    answer = recommender.recommend("feed", "new here", 3, now + timedelta(hours=1))
    assert "3 engagements" in answer.reason
    assert not set(items) & {item.item_id for item in answer.items}


def test_a_log_that_ended_long_ago_is_answered_as_of_its_end(
    living: Living, recommender: Recommender
) -> None:
    answer = recommender.recommend("feed", living.reader(), 5)
    assert answer.as_of == living.until
    assert "ended long ago" in answer.notes[0]
    assert answer.items == recommender.recommend("feed", living.reader(), 5, living.until).items


def test_live_interactions_after_the_end_of_the_log_are_not_forgotten(
    living: Living, recommender: Recommender
) -> None:
    recorded = living.until + timedelta(hours=5)
    recommender.record(interactions("new here", ["a", "b"], "reading", recorded))
    answer = recommender.recommend("feed", "new here", 5)
    assert recorded < answer.as_of < recorded + timedelta(minutes=5)
    assert "2 engagements" in answer.reason


def test_where_no_item_is_alive_the_latest_are_ranked_and_the_answer_says_so(
    living: Living, recommender: Recommender
) -> None:
    answer = recommender.recommend("feed", "nobody", 5, living.until + timedelta(days=100))
    assert len(answer.items) == 5
    assert "nobody touched any item lately" in answer.notes[0]


@pytest.mark.parametrize("context", ["liking", "feeds"])
def test_an_unknown_context_is_not_found_and_the_known_ones_are_named(
    context: str, recommender: Recommender
) -> None:
    with pytest.raises(NotFoundError, match="commenting, feed, reading"):
        recommender.recommend(context, "u")


@pytest.mark.parametrize("context", ["../x", "", "Feed", "fünf", "x" * 4096, "feed\n"])
def test_what_cannot_name_a_context_is_refused(context: str, recommender: Recommender) -> None:
    with pytest.raises(ContextError) as raised:
        recommender.rank(context, "u", ["a"])
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("bad", ["", "x" * 257, "a\x00", "\ud800"])
def test_what_cannot_be_an_id_is_refused(bad: str, recommender: Recommender) -> None:
    with pytest.raises(InputError, match="user_id"):
        recommender.recommend("feed", bad)
    with pytest.raises(InputError, match="item_ids"):
        recommender.rank("feed", "u", ["a", bad])


@pytest.mark.parametrize("n", [0, -1, 1001, 10**30])
def test_a_number_of_items_out_of_bounds_is_refused(n: int, recommender: Recommender) -> None:
    with pytest.raises(InputError, match="n: expected 1 to 1000"):
        recommender.recommend("feed", "u", n)


def test_too_many_candidates_are_refused(recommender: Recommender) -> None:
    with pytest.raises(InputError, match="at most 1000, found 1001"):
        recommender.rank("feed", "u", [str(number) for number in range(1001)])


def test_an_instant_without_a_zone_is_refused(recommender: Recommender) -> None:
    with pytest.raises(InputError, match="zone"):
        recommender.recommend("feed", "u", 5, datetime(2026, 6, 30))  # noqa: DTZ001


def test_a_workspace_without_a_champion_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="recmeta nightly"):
        Recommender(load_settings(tmp_path))


def test_a_flipped_bit_in_any_file_of_the_bundle_is_refused(living: Living) -> None:
    folder = living.settings.bundles_folder / living.version
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) >= 6
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        original = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(IntegrityError):
            Recommender(living.settings)
        path.write_bytes(original)
    assert Recommender(living.settings).version == living.version


def test_a_bundle_of_other_features_is_refused(living: Living, tmp_path: Path) -> None:
    store = BundleStore(living.settings.bundles_folder)
    bundle = store.open(living.version)
    features = bundle.manifest.features.model_copy(update={"digest": "0" * 64})
    files = tmp_path / "files"
    for path in bundle.manifest.files:
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        (files / path).write_bytes(bundle.file(path).read_bytes())
    version = store.publish(bundle.manifest.model_copy(update={"features": features}), files)
    store.promote(version, living.version)
    with pytest.raises(IntegrityError, match="features"):
        Recommender(living.settings)


def test_settings_that_changed_since_the_bundle_was_made_are_named(living: Living) -> None:
    changed = load_settings(living.settings.workspace, features={"history_length": 3})
    with pytest.raises(IntegrityError, match="history length"):
        Recommender(changed)


def test_an_instant_in_another_zone_is_the_same_instant(
    living: Living, recommender: Recommender, now: datetime
) -> None:
    from zoneinfo import ZoneInfo

    there = recommender.recommend("feed", living.reader(), 5, now.astimezone(ZoneInfo("Asia/Taipei")))
    assert there == recommender.recommend("feed", living.reader(), 5, now)
    assert there.as_of.tzinfo is UTC
