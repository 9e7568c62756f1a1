"""Drift: what moved is found, what did not move and what is only few rows or few users is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recmeta.artifacts import to_json
from recmeta.contexts import Contexts
from recmeta.dataset import PURGED, TRAIN, Frames, Split
from recmeta.errors import SchemaError
from recmeta.report.drift import drift, grows, is_logarithm, write_drift

UNTIL = datetime(2026, 6, 30, tzinfo=UTC)
START = UNTIL - timedelta(days=100)
NAMES = (
    "feed:item:positives_7d",
    "feed:user:positives",
    "target:item:positives_7d",
    "rate:user:total",
    "seen:item",
)
CONTEXTS = Contexts.model_validate(
    {
        "contexts": {
            "feed": {"positives": ["click"], "negatives": {"impressions": {"events": ["show"]}}},
            "reading": {"positives": ["open"], "negatives": {"sample": {}}},
        }
    }
)


def frames(
    *,
    before: int = 6000,
    now: int = 1500,
    users: int = 150,
    users_now: int | None = None,
    seed: int = 0,
    shift: float = 0.0,
    rate: tuple[float, float] = (0.2, 0.2),
    sticky: bool = False,
    weight: float = 1.0,
    context: str = "feed",
) -> Frames:
    """Rows of which the last `now` are of the last seven days; their first column is moved by ``shift``.

    ``users_now``: how many users come in those days. ``sticky``: a user's values are the same in all rows.
    """
    generator = np.random.default_rng(seed)
    rows = before + now
    recent = np.arange(rows) >= before
    seconds = np.where(recent, generator.uniform(93, 100, rows), generator.uniform(0, 70, rows)) * 86_400
    user = generator.integers(0, np.where(recent, users_now or users, users), rows)
    values = generator.standard_normal((rows, len(NAMES)))
    if sticky:
        values = generator.standard_normal((users, len(NAMES)))[user]
    dense = np.abs(values) + np.where(recent, shift, 0.0)[:, None] * np.array([1, 1, 1, 0, 0])
    dense[:, 4] = 1.0
    label = generator.random(rows) < np.where(recent, rate[1], rate[0])
    table = pl.DataFrame(
        {
            "context": [context] * rows,
            "user_id": [f"u{number}" for number in user],
            "event_timestamp": [START + timedelta(seconds=float(second)) for second in seconds],
            "label": label.astype(np.uint8),
            "weight": np.where(recent, weight, 1.0).astype(np.float32),
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )
    split = Split(START, UNTIL - timedelta(days=30), UNTIL - timedelta(days=20), UNTIL)
    part = np.where(recent, PURGED, TRAIN).astype(np.int8)
    return Frames(table, dense.astype(np.float32), split, part)


def of_feed(given: Frames) -> dict[str, Any]:
    found: dict[str, Any] = drift(given, CONTEXTS, NAMES, UNTIL)["contexts"]["feed"]
    return found


def feature(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["features"] if each["name"] == name)


def test_inputs_that_have_not_moved_are_steady() -> None:
    found = of_feed(frames())
    assert {each["verdict"] for each in found["features"]} == {"steady"}
    assert found["label"]["verdict"] == "steady"


def test_a_feature_that_moved_is_found_first_with_its_means() -> None:
    found = of_feed(frames(shift=1.0))
    moved = feature(found, "feed:item:positives_7d")
    assert moved["verdict"] == "much"
    assert moved["now"] > moved["before"]
    assert found["features"][0]["name"] in ("feed:item:positives_7d", "feed:user:positives")
    assert feature(found, "rate:user:total")["verdict"] == "steady"


def test_a_small_move_is_some_and_not_much() -> None:
    assert (
        feature(of_feed(frames(shift=0.09, before=15_000, now=8000, users=2000)), NAMES[0])["verdict"]
        == "some"
    )


def test_the_rate_of_engagement_is_watched_too() -> None:
    found = of_feed(frames(rate=(0.1, 0.4)))
    assert found["label"]["verdict"] == "much"
    assert found["label"]["rate_before"] == pytest.approx(0.1, abs=0.02)
    assert found["label"]["rate_now"] == pytest.approx(0.4, abs=0.04)
    assert found["label"]["sampled"] is False


def test_a_rate_that_is_ours_is_marked_so() -> None:
    found = drift(frames(context="reading"), CONTEXTS, NAMES, UNTIL)["contexts"]
    assert found["reading"]["label"]["sampled"] is True
    assert found["feed"] == {"reason": "no labelled rows"}


def test_few_rows_do_not_alarm() -> None:
    alarms = sum(
        each["verdict"] != "steady"
        for seed in range(20)
        for each in of_feed(frames(now=120, users=60, seed=seed))["features"]
    )
    assert alarms <= 4  # of 60 that never moved
    raw = [each["psi"] for each in of_feed(frames(now=120, users=60))["features"]]
    assert max(raw) > 0.05  # what the bare index would have said of them


def test_few_users_do_not_alarm_though_their_rows_are_many() -> None:
    found = [
        each
        for seed in range(20)
        for each in of_feed(frames(users=400, users_now=12, now=600, sticky=True, seed=seed))["features"]
    ]
    assert sum(each["psi"] > 0.25 for each in found) > 30  # the bare index would have cried wolf
    assert sum(each["verdict"] != "steady" for each in found) <= 6  # of 60


def test_a_week_that_differs_as_weeks_do_is_steady_and_one_that_differs_more_is_not() -> None:
    given = frames(before=8000)
    week = given.table["event_timestamp"].dt.truncate("7d").rank("dense").to_numpy().astype(np.int64)
    level = np.random.default_rng(0).standard_normal(week.max() + 1)
    now = given.part == PURGED
    given.dense[:, 0] += level[week]
    given.dense[:, 1] += np.where(now, 5.0, level[week])
    found = of_feed(given)
    usual, unusual = feature(found, NAMES[0]), feature(found, NAMES[1])
    assert usual["psi"] > 0.25 > usual["chance"]
    assert (usual["verdict"], unusual["verdict"]) == ("steady", "much")
    assert unusual["psi"] > unusual["ordinary"]


def test_a_log_of_few_weeks_is_judged_by_chance_alone() -> None:
    found = of_feed(frames(before=500))
    assert {each["ordinary"] for each in found["features"]} == {None}


def test_too_few_rows_or_users_are_told_instead_of_judged() -> None:
    assert "12 rows" in of_feed(frames(now=12))["reason"]
    assert "of 5 users" in of_feed(frames(users=5))["reason"]
    assert "features" not in of_feed(frames(now=12))


def test_weights_are_respected() -> None:
    given = frames(shift=0.0)
    heavy = given.dense[:, 0] > 1.0
    recent = given.part == PURGED
    weight = np.where(recent & heavy, 8.0, 1.0).astype(np.float32)
    moved = Frames(
        given.table.with_columns(pl.Series("weight", weight)), given.dense, given.split, given.part
    )
    assert feature(of_feed(moved), NAMES[0])["verdict"] == "much"


def test_what_repeats_another_column_or_never_varies_is_left_out() -> None:
    names = {each["name"] for each in of_feed(frames())["features"]}
    assert names == {"feed:item:positives_7d", "feed:user:positives", "rate:user:total"}


def test_a_surface_without_columns_of_its_own_is_judged_by_its_roles() -> None:
    found = drift(frames(context="reading"), CONTEXTS, NAMES, UNTIL)["contexts"]["reading"]
    assert "target:item:positives_7d" in {each["name"] for each in found["features"]}


def test_a_value_that_only_now_occurs_is_a_move() -> None:
    given = frames()
    given.dense[:, 0] = np.where(given.part == PURGED, (np.arange(len(given.part)) % 3).astype(float), 0.0)
    assert feature(of_feed(given), NAMES[0])["verdict"] == "much"


def test_the_last_days_end_with_the_rows_and_not_with_the_night() -> None:
    found = drift(frames(), CONTEXTS, NAMES, UNTIL - timedelta(days=2))["contexts"]["feed"]
    assert found["to"] == (UNTIL - timedelta(days=2)).isoformat()
    assert found["from"] == (UNTIL - timedelta(days=9)).isoformat()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("feed:user:positives", True),
        ("target:item:negatives", True),
        ("feed:item:hours_since_first", True),
        ("age:user", True),
        ("feed:item:positives_28d", True),  # 70 days have not filled it
        ("feed:item:positives_7d", False),
        ("feed:item:hours_since_positive", False),
        ("rate:user:28d", False),
        ("rate:user:total", False),
        ("hour_sin", False),
    ],
)
def test_what_grows_with_the_log_is_known(name: str, expected: bool) -> None:
    assert grows(name, timedelta(days=70)) is expected


def test_what_is_a_logarithm_is_known() -> None:
    assert [is_logarithm(name) for name in (*NAMES, "age:item", "hour_cos")] == [
        True, True, True, False, False, True, False,
    ]  # fmt: skip


def test_names_have_to_be_as_many_as_columns() -> None:
    with pytest.raises(SchemaError, match="expected 5 names of columns, found 2"):
        drift(frames(), CONTEXTS, NAMES[:2], UNTIL)


def test_the_same_rows_give_the_same_bytes_and_are_written_once(tmp_path: Path) -> None:
    given = frames(before=25_000)
    assert to_json(drift(given, CONTEXTS, NAMES, UNTIL)) == to_json(drift(given, CONTEXTS, NAMES, UNTIL))
    first = write_drift(tmp_path, given, CONTEXTS, NAMES, UNTIL)
    assert write_drift(tmp_path, frames(shift=3.0), CONTEXTS, NAMES, UNTIL) == first
