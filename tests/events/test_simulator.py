"""The simulated log: deterministic, and true to what its settings say."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from recmeta.events.schema import RawLog
from recmeta.events.simulator import (
    TOPICS,
    SimulatorSettings,
    _World,
    examination,
    simulate,
    simulate_surface,
)

SMALL = {"users": 40, "items": 80, "days": 6}


@pytest.fixture(scope="module")
def raw() -> RawLog:
    """The log of the demo."""
    return simulate(SimulatorSettings())


def topics(raw: RawLog) -> pl.DataFrame:
    """The log's rows with the topic of their item."""
    assert raw.items is not None
    return raw.rows.join(
        raw.items.select("item_id", topic=pl.col("categories").list.first()),
        on="item_id",
        maintain_order="left",
    )


def showings(raw: RawLog) -> pl.DataFrame:
    """Impressions with their click, and how many reads the user had made of the topic and in all by then."""
    rows = topics(raw)
    clicks = rows.filter(event_type="CLICK").select("user_id", "item_id", clicked="event_timestamp")
    shown = rows.filter(event_type="IMPRESSION").sort("event_timestamp")
    shown = shown.join_asof(
        clicks, left_on="event_timestamp", right_on="clicked", by=["user_id", "item_id"],
        strategy="forward", tolerance="30m", check_sortedness=False,
    ).with_columns(pl.col("clicked").is_not_null())  # fmt: skip
    reads = rows.filter(event_type="READ").select("user_id", "topic", at="event_timestamp").sort("at")
    for name, by in (("of_topic", ["user_id", "topic"]), ("in_all", ["user_id"])):
        counted = reads.select(*by, "at", pl.int_range(1, pl.len() + 1).over(by).alias(name))
        shown = shown.join_asof(
            counted, left_on="event_timestamp", right_on="at", by=by,
            allow_exact_matches=False, check_sortedness=False,
        ).with_columns(pl.col(name).fill_null(0)).drop("at")  # fmt: skip
    return shown


def reading_predicts_clicks(relatedness: float) -> float:
    """AUC with which the share of a topic in a person's reading orders what they click in the feed."""
    shown = showings(simulate(SimulatorSettings(relatedness=relatedness))).filter(pl.col("in_all") >= 3)
    share = (shown.get_column("of_topic") + 0.5) / (shown.get_column("in_all") + 6)
    return float(roc_auc_score(shown.get_column("clicked"), share))


def reading_predicts_saves(relatedness: float) -> float:
    """AUC with which the share of a topic in a person's reading orders which of it they save."""
    settings = SimulatorSettings(relatedness=relatedness)
    rows = topics(simulate(settings)).filter(event_type="READ").unique(["user_id", "item_id"])
    saves = simulate_surface(settings).select("user_id", "item_id", saved=pl.lit(True))
    rows = rows.join(saves, on=["user_id", "item_id"], how="left").with_columns(
        of_topic=pl.len().over("user_id", "topic"), in_all=pl.len().over("user_id")
    )
    # Among people who save some and not all: else how keen one is on saving would be told as well.
    rows = rows.filter(pl.col("in_all") >= 10, pl.col("saved").is_not_null().any().over("user_id"))
    share = rows.get_column("of_topic") / rows.get_column("in_all")
    return float(roc_auc_score(rows.get_column("saved").is_not_null(), share))


def test_the_same_settings_give_the_same_rows_and_other_seeds_others() -> None:
    first, again = (simulate(SimulatorSettings(**SMALL, seed=3)) for _ in range(2))
    other = simulate(SimulatorSettings(**SMALL, seed=4))
    assert first.rows.equals(again.rows)
    assert first.items is not None and again.items is not None and first.items.equals(again.items)
    assert not first.rows.equals(other.rows)


def test_the_default_log_has_the_size_of_the_demo(raw: RawLog) -> None:
    counts = dict(raw.rows.get_column("event_type").value_counts().rows())
    assert 60_000 < raw.rows.height < 80_000
    assert set(counts) == {"READ", "COMMENT", "IMPRESSION", "CLICK"}
    assert counts["READ"] > 10_000 and counts["COMMENT"] > 1_000 and counts["CLICK"] > 5_000
    assert raw.rows.get_column("user_id").n_unique() > 550


def test_it_ends_on_a_fixed_day_of_the_past(raw: RawLog) -> None:
    stamps = raw.rows.get_column("event_timestamp")
    assert stamps.is_sorted()
    end = datetime(2026, 6, 30, tzinfo=UTC)
    first, last = stamps[0], stamps[-1]
    assert end - timedelta(days=42) <= first < end - timedelta(days=41)
    assert end - timedelta(days=1) < last < end
    assert raw.rows.get_column("row").to_list() == list(range(1, raw.rows.height + 1))


def test_each_item_has_one_topic_that_its_name_tells(raw: RawLog) -> None:
    assert raw.items is not None
    assert raw.items.height == 800
    for item, categories in raw.items.iter_rows():
        assert len(categories) == 1 and categories[0] in TOPICS and item.startswith(categories[0])


def test_reading_predicts_what_is_clicked_where_surfaces_are_related_and_not_where_they_are_not() -> None:
    unrelated, default, same = (reading_predicts_clicks(r) for r in (0.0, 0.8, 1.0))
    assert unrelated == pytest.approx(0.5, abs=0.03)
    assert default > 0.64
    assert same > default


def test_three_articles_of_a_topic_raise_the_clicks_on_its_others() -> None:
    world = _World(SimulatorSettings())
    users = np.arange(600)
    of_topic = np.flatnonzero(world.catalogue.topic == 5)
    others = np.flatnonzero(world.catalogue.topic != 5)
    before = [world.appeal(2, users, items, 0.0) for items in (of_topic[3:], others)]
    for item in of_topic[:3]:
        world._remember(0, users, np.full(600, item), 0.6)
    after = [world.appeal(2, users, items, 0.0) for items in (of_topic[3:], others)]
    assert np.mean(after[0] - before[0]) == pytest.approx(
        0.8 * 1.8
    )  # relatedness times three reads' interest
    assert np.array_equal(before[1], after[1])


def test_people_look_less_far_down_than_up(raw: RawLog) -> None:
    rates = showings(raw).group_by("position").agg(pl.col("clicked").mean()).sort("position")
    measured = rates.get_column("clicked").to_numpy()
    assert len(measured) == 8
    assert (np.diff(measured) < 0.01).all()
    assert measured[7] / measured[0] == pytest.approx(examination(np.array([7]))[0], abs=0.08)


def test_propensities_are_the_probabilities_of_the_slates() -> None:
    world = _World(SimulatorSettings(users=2, items=20, slate=3))
    users, alive = np.zeros(20_000, dtype=np.int64), np.arange(0, 20, 2)
    shown, propensity = world._slates(1_000, alive, users)  # an hour by which all were born
    assert all(len(set(slate)) == 3 for slate in shown[:200].tolist())
    for item in alive:
        top = shown[:, 0] == item
        assert top.mean() == pytest.approx(propensity[top, 0].mean() if top.any() else 0, abs=0.02)
    # Weighting by the inverse propensity counts every item that could have been chosen once.
    for position in range(3):
        assert np.mean(1 / propensity[:, position]) == pytest.approx(len(alive) - position, rel=0.1)


def test_impressions_alone_carry_propensities(raw: RawLog) -> None:
    for event_type, filled in (("IMPRESSION", True), ("CLICK", False), ("READ", False)):
        rows = raw.rows.filter(event_type=event_type)
        assert rows.get_column("propensity").is_not_null().all() == filled
        assert rows.get_column("propensity").is_null().all() != filled
    inside = raw.rows.get_column("propensity").drop_nulls()
    assert (inside > 0).all() and (inside <= 1).all()


def test_every_click_follows_its_impression_within_half_an_hour(raw: RawLog) -> None:
    shown = raw.rows.filter(event_type="IMPRESSION").select("user_id", "item_id", shown="event_timestamp")
    clicks = raw.rows.filter(event_type="CLICK").join_asof(
        shown, left_on="event_timestamp", right_on="shown", by=["user_id", "item_id"], check_sortedness=False
    )
    delay = clicks.select(pl.col("event_timestamp") - pl.col("shown")).to_series()
    assert delay.null_count() == 0
    assert (delay < timedelta(minutes=30)).all()


def test_every_comment_follows_a_read(raw: RawLog) -> None:
    reads = raw.rows.filter(event_type="READ").select("user_id", "item_id", read="event_timestamp")
    comments = raw.rows.filter(event_type="COMMENT").join_asof(
        reads, left_on="event_timestamp", right_on="read", by=["user_id", "item_id"], check_sortedness=False
    )
    delay = comments.select(pl.col("event_timestamp") - pl.col("read")).to_series()
    assert delay.null_count() == 0
    assert (delay <= timedelta(days=1)).all()


def test_items_are_born_and_die(raw: RawLog) -> None:
    lives = raw.rows.group_by("item_id").agg(
        first=pl.col("event_timestamp").min(), last=pl.col("event_timestamp").max()
    )
    middle = datetime(2026, 6, 9, tzinfo=UTC)
    assert lives.filter(pl.col("first") > middle).height > 200
    assert lives.filter(pl.col("last") < middle).height > 200


def test_tastes_drift() -> None:
    def kept(drift: float) -> float:
        world = _World(SimulatorSettings(drift=drift))
        before = world.shared_taste.copy()
        for _ in range(42):
            world._drift()
        return float(np.corrcoef(before.ravel(), world.shared_taste.ravel())[0, 1])

    assert kept(0.0) == pytest.approx(1.0)
    assert kept(0.1) == pytest.approx(0.995**21 * 1.0, abs=0.1)
    assert kept(0.5) < 0.1


def test_nights_are_quiet(raw: RawLog) -> None:
    hours = raw.rows.filter(event_type="READ").get_column("event_timestamp").dt.hour().value_counts()
    counts = dict(hours.rows())
    assert counts[20] > 3 * counts[2]


def test_late_events_are_recorded_after_they_happened() -> None:
    rows = simulate(SimulatorSettings(**SMALL, late_share=0.3)).rows
    late = rows.filter(pl.col("created_timestamp") > pl.col("event_timestamp"))
    assert 0.15 < late.height / rows.height < 0.35
    assert (rows.get_column("created_timestamp") >= rows.get_column("event_timestamp")).all()


def test_a_product_in_which_nothing_happens_has_no_rows() -> None:
    raw = simulate(SimulatorSettings(**SMALL, reads_per_day=0, slates_per_day=0))
    assert raw.rows.height == 0


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"relatedness": 1.5}, {"users": 0}, {"days": 1}, {"seed": -1}, {"colour": 1}):
        with pytest.raises(ValidationError):
            SimulatorSettings.model_validate(wrong)
    assert SimulatorSettings(end=date(2025, 1, 1)).end.year == 2025


def test_the_log_is_the_same_whatever_people_save(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimulatorSettings(**SMALL, late_share=0.1)
    raw, saves = simulate(settings), simulate_surface(settings)
    otherwise = _World(settings)
    otherwise.saving.random = np.random.default_rng(99)
    otherwise.saving.keen += 5
    for hour in range(settings.days * 24):
        otherwise.pass_hour(hour)
    assert otherwise.so_far().rows.equals(raw.rows)
    assert otherwise.in_order(otherwise.saving.log).height > 3 * saves.height
    monkeypatch.setattr(_World, "_save", lambda *given: None)
    assert simulate(settings).rows.equals(raw.rows)


def test_the_same_settings_give_the_same_saves_and_other_seeds_others() -> None:
    first, again = (simulate_surface(SimulatorSettings(**SMALL, seed=3)) for _ in range(2))
    assert first.height > 5
    assert first.equals(again)
    assert not first.equals(simulate_surface(SimulatorSettings(**SMALL, seed=4)))


def test_every_save_follows_a_read_within_a_day_and_happens_once(raw: RawLog) -> None:
    saves = simulate_surface(SimulatorSettings())
    assert 1_000 < saves.height < 3_000
    assert saves.columns == ["user_id", "item_id", "event_timestamp"]
    assert saves.get_column("event_timestamp").is_sorted()
    assert saves.select("user_id", "item_id").is_unique().all()
    reads = raw.rows.filter(event_type="READ").select("user_id", "item_id", read="event_timestamp")
    delay = saves.join_asof(
        reads, left_on="event_timestamp", right_on="read", by=["user_id", "item_id"], check_sortedness=False
    ).select(pl.col("event_timestamp") - pl.col("read")).to_series()  # fmt: skip
    assert delay.null_count() == 0
    assert (delay <= timedelta(days=1)).all()


def test_saving_is_as_related_to_reading_as_the_knob_says() -> None:
    unrelated, default, same = (reading_predicts_saves(r) for r in (0.0, 0.8, 1.0))
    assert unrelated == pytest.approx(0.5, abs=0.03)
    assert default > unrelated + 0.03
    assert same > default
