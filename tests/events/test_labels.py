"""Labels against a slow and obvious reading of their definition, and against any chunking of the work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from recmeta.contexts import Contexts, load_contexts
from recmeta.errors import ContextError, IntervalError
from recmeta.events.labels import LABEL_SCHEMA, build_labels, label_rows, scan_labels
from recmeta.events.ledger import DAY, Interval, Ledger
from recmeta.events.schema import INTERACTION_SCHEMA
from recmeta.events.store import event_span, ingest
from recmeta.settings import Settings, load_settings

START = datetime(2026, 3, 1, tzinfo=UTC)
ALL = Interval(START, START + 12 * DAY)

CONTEXTS = """
contexts:
  commenting: {positives: [C], negatives: {exposure: {context: reading, within: 1d}}}
  feed: {positives: [K], negatives: {impressions: {events: [I], within: 2h}}}
  reading: {positives: [R], negatives: {sample: {per_positive: 2, alive_within: 3d}}}
  voting: {positives: [U], negatives: {explicit: {events: [D]}}}
"""


@pytest.fixture
def contexts(parse_contexts: Callable[[str], Contexts]) -> Contexts:
    return parse_contexts(CONTEXTS)


def event(
    context: str, label: int, hour: float, user: str = "u", item: str = "i", late: float = 0
) -> dict[str, Any]:
    """An event ``hour`` hours after START that was recorded ``late`` hours later."""
    at = START + timedelta(hours=hour)
    return {
        "user_id": user,
        "item_id": item,
        "context": context,
        "event_timestamp": at,
        "created_timestamp": at + timedelta(hours=late),
        "label": label,
        "weight": 1.0,
    }


def log_of(*events: dict[str, Any]) -> pl.LazyFrame:
    rows = [
        {"event_id": f"e{n:04d}", "position": None, "propensity": None, **e} for n, e in enumerate(events)
    ]
    return pl.DataFrame(rows, schema=INTERACTION_SCHEMA).lazy()


def found(
    contexts: Contexts, log: pl.LazyFrame, context: str, interval: Interval = ALL
) -> list[tuple[Any, ...]]:
    """(hour, user, item, label) of the labelled rows."""
    rows = label_rows(contexts, log, context, interval)
    assert rows.schema == LABEL_SCHEMA
    assert set(rows.get_column("context")) <= {context}
    hours = [(at - START) / timedelta(hours=1) for at in rows.get_column("event_timestamp")]
    return sorted(zip(hours, *(rows.get_column(n) for n in ("user_id", "item_id", "label")), strict=True))


def test_explicit_rows_are_labels_as_they_are(contexts: Contexts) -> None:
    log = log_of(event("voting", 1, 1), event("voting", 0, 2), event("reading", 1, 3))
    assert found(contexts, log, "voting") == [(1, "u", "i", 1), (2, "u", "i", 0)]


def test_a_showing_is_positive_where_a_click_follows_in_time(contexts: Contexts) -> None:
    log = log_of(
        event("feed", 0, 1, item="clicked"),
        event("feed", 1, 2.9, item="clicked"),
        event("feed", 0, 1, item="passed"),
        event("feed", 0, 1, item="on_the_border"),
        event("feed", 1, 3, item="on_the_border"),
        event("feed", 0, 1, item="clicked_before"),
        event("feed", 1, 0.9, item="clicked_before"),
        event("feed", 0, 1, item="by_another"),
        event("feed", 1, 1.1, user="v", item="by_another"),
        event("reading", 1, 1.1, item="passed"),
    )
    labels = {item: label for _, _, item, label in found(contexts, log, "feed")}
    assert labels == {"clicked": 1, "passed": 0, "on_the_border": 0, "clicked_before": 0, "by_another": 0}


def test_a_slate_is_a_group_and_keeps_its_positions_and_propensities(contexts: Contexts) -> None:
    shown = [
        event("feed", 0, 1, item=f"i{n}") | {"position": n, "propensity": 0.1 * (n + 1), "weight": 2.0}
        for n in range(3)
    ]
    rows = label_rows(
        contexts, log_of(*shown, event("feed", 0, 2), event("feed", 0, 1, user="v")), "feed", ALL
    )
    slate = rows.filter(pl.col("position").is_not_null()).sort("position")
    assert slate.get_column("group").n_unique() == 1 and rows.get_column("group").n_unique() == 3
    assert slate.get_column("position").to_list() == [0, 1, 2]
    assert slate.get_column("propensity").to_list() == pytest.approx([0.1, 0.2, 0.3])
    assert slate.get_column("weight").to_list() == [2.0] * 3


def test_only_the_first_exposure_makes_a_row(contexts: Contexts) -> None:
    log = log_of(
        event("reading", 1, 5),
        event("reading", 1, 20),
        event("commenting", 1, 28),
        event("reading", 1, 5, item="border"),
        event("commenting", 1, 29, item="border"),
        event("reading", 1, 5, item="too_late"),
        event("commenting", 1, 29.001, item="too_late"),
        event("commenting", 1, 3, item="never_read"),
    )
    assert found(contexts, log, "commenting") == [
        (5, "u", "border", 1), (5, "u", "i", 1), (5, "u", "too_late", 0),
    ]  # fmt: skip


def test_an_exposure_of_an_earlier_day_is_still_the_first(contexts: Contexts) -> None:
    log = log_of(event("reading", 1, 5), event("reading", 1, 60))
    later = Interval(START + 2 * DAY, START + 3 * DAY)
    assert found(contexts, log, "commenting", later) == []


def test_an_outcome_that_was_known_after_its_window_had_closed_does_not_count(contexts: Contexts) -> None:
    # The day ends at 24 h, and a day later, at 48 h, a night that labels it could have seen no more.
    for late, label in ((21.9, 1), (22.1, 0)):
        log = log_of(event("reading", 1, 5), event("commenting", 1, 26, late=late))
        assert found(contexts, log, "commenting") == [(5, "u", "i", label)]


def test_a_log_that_is_loaded_a_day_late_loses_no_label(contexts: Contexts) -> None:
    log = log_of(
        event("reading", 1, 5, late=26), event("commenting", 1, 6, late=25), event("voting", 1, 7, late=30)
    )
    assert found(contexts, log, "commenting") == [(5, "u", "i", 1)]
    assert found(contexts, log, "voting") == [(7, "u", "i", 1)]
    first_day = Interval(START, START + DAY)
    assert found(contexts, log, "commenting", first_day) == found(contexts, log, "voting", first_day) == []


def crowd(*items: str, first: float = 0, users: int = 5) -> list[dict[str, Any]]:
    return [
        event("reading", 1, first + n + 0.1 * k, user=f"crowd{n}", item=item)
        for n in range(users)
        for k, item in enumerate(items)
    ]


def test_negatives_are_items_that_others_engaged_with_before(contexts: Contexts) -> None:
    log = log_of(
        *crowd("a", "b", "c", "old", first=0),
        *crowd("a", "b", "c", first=90),
        event("reading", 1, 95, user="u", item="b"),
        event("reading", 1, 100, user="u", item="a"),
        event("reading", 1, 101, user="crowd0", item="later"),
    )
    rows = [row for row in found(contexts, log, "reading") if row[1] == "u"]
    # 'b' was read already, 'old' is not alive, 'later' not born, and 'c' is drawn once though two are wanted.
    assert [row for row in rows if row[0] == 100] == [(100, "u", "a", 1), (100, "u", "c", 0)]
    assert [row[2:] for row in rows if row[0] == 95] == [("a", 0), ("b", 1), ("c", 0)]


def test_engagement_with_an_item_that_nobody_had_met_is_no_row(contexts: Contexts) -> None:
    log = log_of(
        *crowd("a", "b"), event("reading", 1, 40, item="new"), event("reading", 1, 41, item="new", user="v")
    )
    assert [row[:3] for row in found(contexts, log, "reading") if row[3] == 1 and row[0] >= 40] == [
        (41, "v", "new")
    ]


def test_what_was_known_late_is_neither_alive_nor_drawn(contexts: Contexts) -> None:
    late = [event("reading", 1, 1, user=f"l{n}", item="late", late=60) for n in range(20)]
    log = log_of(*crowd("a"), *late, event("reading", 1, 40, item="a"), event("reading", 1, 41, item="late"))
    assert [row for row in found(contexts, log, "reading") if row[1] == "u"] == [(40, "u", "a", 1)]


def test_popular_items_are_drawn_more_often(contexts: Contexts) -> None:
    popular = [event("reading", 1, 1, user=f"p{n}", item="popular") for n in range(30)]
    rare = [event("reading", 1, 1, user=f"r{n}", item=f"rare{n % 3}") for n in range(6)]
    target = [event("reading", 1, 2, user=f"t{n}", item="target") for n in range(1)]
    readers = [event("reading", 1, 3 + n / 100, user=f"u{n}", item="target") for n in range(200)]
    rows = found(contexts, log_of(*popular, *rare, *target, *readers), "reading")
    share = sum(item == "popular" for _, _, item, label in rows if not label) / 200
    assert share > 0.85


def test_the_group_of_a_sampled_row_is_its_positives_event(contexts: Contexts) -> None:
    log = log_of(*crowd("a", "b", "c"), event("reading", 1, 50, item="a"))
    rows = label_rows(contexts, log, "reading", ALL).filter(pl.col("user_id") == "u")
    assert rows.get_column("group").unique().to_list() == ["e0015"]
    assert rows.get_column("label").to_list() == [1, 0, 0]
    assert rows.get_column("event_timestamp").n_unique() == 1


@pytest.mark.parametrize("context", ["voting", "feed", "commenting", "reading"])
def test_a_context_without_events_or_with_one_has_typed_rows(contexts: Contexts, context: str) -> None:
    for log in (log_of(), log_of(event("voting", 1, 3)), log_of(event("reading", 1, 3))):
        assert label_rows(contexts, log, context, ALL).schema == LABEL_SCHEMA


def test_an_unknown_context_is_refused(contexts: Contexts) -> None:
    with pytest.raises(ContextError, match="unknown context 'liking'"):
        label_rows(contexts, log_of(), "liking", ALL)


logs = st.lists(
    st.tuples(
        st.sampled_from([("reading", 1), ("commenting", 1), ("feed", 0), ("feed", 1), ("voting", 0)]),
        st.integers(0, 60).map(lambda n: n * 3.7),
        st.sampled_from("uvw"),
        st.sampled_from("ijkl"),
        st.sampled_from([0, 0, 0, 1, 30]),
    ),
    max_size=60,
).map(lambda rows: log_of(*(event(*kind, hour, user, item, late) for kind, hour, user, item, late in rows)))


@pytest.mark.parametrize("context", ["voting", "feed", "commenting", "reading"])
@given(log=logs, borders=st.sets(st.integers(1, 11)))
@examples(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_chunking_of_the_days_gives_the_same_rows(
    contexts: Contexts, context: str, log: pl.LazyFrame, borders: set[int]
) -> None:
    whole = label_rows(contexts, log, context, ALL)
    edges = [0, *sorted(borders), 12]
    window = contexts[context].outcome_window
    parts = []
    for first, last in pairwise(edges):
        chunk = Interval(START + first * DAY, START + last * DAY)
        # A night sees nothing that becomes known after it.
        seen = log.filter(pl.max_horizontal("event_timestamp", "created_timestamp") < chunk.end + window)
        parts.append(label_rows(contexts, seen, context, chunk))
    assert pl.concat(parts).equals(whole)


@given(log=logs)
@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exposures_and_showings_follow_their_definition(contexts: Contexts, log: pl.LazyFrame) -> None:
    events = [
        row | {"known": max(row["event_timestamp"], row["created_timestamp"])}
        for row in log.collect().to_dicts()
    ]
    events.sort(key=lambda row: (row["known"], row["event_id"]))

    def engaged(anchor: dict[str, Any], context: str, within: timedelta, closed: bool) -> int:
        end = anchor["event_timestamp"] + within
        closing = anchor["known"].replace(hour=0, minute=0, second=0, microsecond=0) + DAY + within
        return int(
            any(
                (row["context"], row["label"], row["user_id"], row["item_id"])
                == (context, 1, anchor["user_id"], anchor["item_id"])
                and anchor["event_timestamp"] <= row["event_timestamp"]
                and (row["event_timestamp"] <= end if closed else row["event_timestamp"] < end)
                and row["known"] < closing
                for row in events
            )
        )

    def hour(row: dict[str, Any]) -> float:
        return (row["event_timestamp"] - START) / timedelta(hours=1)

    firsts: dict[tuple[str, str], dict[str, Any]] = {}
    for row in events:
        if (row["context"], row["label"]) == ("reading", 1):
            firsts.setdefault((row["user_id"], row["item_id"]), row)
    assert found(contexts, log, "commenting") == sorted(
        (hour(row), *pair, engaged(row, "commenting", DAY, True)) for pair, row in firsts.items()
    )
    assert found(contexts, log, "feed") == sorted(
        (hour(row), row["user_id"], row["item_id"], engaged(row, "feed", timedelta(hours=2), False))
        for row in events
        if (row["context"], row["label"]) == ("feed", 0)
    )


@pytest.fixture
def simulated(settings: Settings) -> tuple[Settings, Contexts, Interval]:
    ingest(settings, "simulator", users=60, items=120, days=12)
    span = event_span(settings)
    assert span is not None
    return settings, load_contexts(settings.contexts_file), span


def test_days_are_labelled_once_their_outcomes_are_known(
    simulated: tuple[Settings, Contexts, Interval],
) -> None:
    settings, contexts, span = simulated
    report = build_labels(settings, contexts, span.end)
    assert {name: counts["days"] for name, counts in report.items()} == {
        "commenting": 11, "feed": 11, "reading": 12,
    }  # fmt: skip
    ledger = Ledger(settings.ledger_folder)
    assert ledger.frontier("labels.commenting") == span.end - DAY
    assert all(0 < counts["positives"] < counts["rows"] for counts in report.values())
    again = build_labels(settings, contexts, span.end)
    assert all(counts["days"] == 0 for counts in again.values())
    assert {n: c["rows"] for n, c in again.items()} == {n: c["rows"] for n, c in report.items()}


@pytest.mark.parametrize("order", ["a day at a time", "the last days first", "reopened"])
def test_any_order_of_nights_writes_the_same_bytes(
    simulated: tuple[Settings, Contexts, Interval],
    digests: Callable[[Path], dict[str, str]],
    order: str,
) -> None:
    settings, contexts, span = simulated
    other = load_settings(settings.workspace.parent / "other")
    shutil.copytree(settings.workspace, other.workspace)
    build_labels(settings, contexts, span.end)
    ledger = Ledger(other.ledger_folder)
    if order == "a day at a time":
        for day in span.days():
            build_labels(other, contexts, day.end)
    elif order == "the last days first":
        # The ledger claims the first days, which makes the night skip them, and then gives them back.
        early = Interval(span.start, span.start + 5 * DAY)
        for name in contexts.names:
            ledger.mark(f"labels.{name}", early)
        build_labels(other, contexts, span.end)
        ledger.reopen(None, early)
        for name in contexts.names:
            assert ledger.missing(f"labels.{name}", early) == (early,)
        build_labels(other, contexts, span.end)
    else:
        build_labels(other, contexts, span.end)
        ledger.reopen(None, Interval(span.start + 2 * DAY, span.start + 7 * DAY))
        build_labels(other, contexts, span.end)
    assert digests(other.labels_folder) == digests(settings.labels_folder)


def test_a_scan_of_labels_holds_the_days_that_were_asked_for(
    simulated: tuple[Settings, Contexts, Interval],
) -> None:
    settings, contexts, span = simulated
    assert scan_labels(settings, "feed").collect().schema == LABEL_SCHEMA
    build_labels(settings, contexts, span.end)
    pieces = [scan_labels(settings, "feed", day.start, day.end).collect() for day in span.days()]
    assert pl.concat(pieces).equals(scan_labels(settings, "feed").collect())
    assert all(piece.height for piece in pieces[:11])


def test_a_context_that_is_declared_anew_is_labelled_anew(
    simulated: tuple[Settings, Contexts, Interval],
) -> None:
    settings, contexts, span = simulated
    before = build_labels(settings, contexts, span.end)
    Ledger(settings.ledger_folder).mark("rows.reading", span)
    Ledger(settings.ledger_folder).mark("rows.feed", span)
    text = settings.contexts_file.read_text().replace("per_positive: 4", "per_positive: 1")
    settings.contexts_file.write_text(text)
    after = build_labels(settings, load_contexts(settings.contexts_file), span.end)
    assert after["reading"]["rows"] < before["reading"]["rows"] / 2
    assert (after["reading"]["days"], after["feed"]["days"]) == (12, 0)
    ledger = Ledger(settings.ledger_folder)
    assert ledger.done("rows.reading") == () and ledger.done("rows.feed") == (span,)


def test_labels_of_the_future_are_refused(simulated: tuple[Settings, Contexts, Interval]) -> None:
    settings, contexts, span = simulated
    with pytest.raises(IntervalError, match="has not happened yet"):
        build_labels(settings, contexts, span.end, now=span.end - DAY)


def test_labels_of_the_time_before_any_event_are_none(
    simulated: tuple[Settings, Contexts, Interval],
) -> None:
    settings, contexts, span = simulated
    report = build_labels(settings, contexts, span.start - 30 * DAY)
    assert all(counts == {"rows": 0, "positives": 0, "days": 0} for counts in report.values())


def test_deskdrop_gives_the_exposures_that_are_known_of_it(settings: Settings, real_data: Path) -> None:
    ingest(settings, "deskdrop", real_data / "deskdrop" / "users_interactions.csv.gz")
    span = event_span(settings)
    assert span is not None
    report = build_labels(settings, load_contexts(settings.contexts_file), span.end)
    # An independent study of the same file counted 40,102 first views with a closed three-day window.
    assert abs(report["commenting"]["rows"] - 40_102) < 200
    assert report["liking"]["positives"] > 5_000
    reading = scan_labels(settings, "reading").collect()
    assert 3.9 < (reading.get_column("label") == 0).sum() / report["reading"]["positives"] <= 4
    assert not reading.select("user_id", "item_id", "group").is_duplicated().any()
