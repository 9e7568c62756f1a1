"""Live interactions over HTTP: the next answer reacts, a repetition counts once, bad ones are refused."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from conftest import Living
from http_client import refused, serving, with_keys

from recmeta.serving.recommender import Recommender


def event(living: Living, **changes: Any) -> dict[str, Any]:
    """An event that is taken."""
    return {
        "event_id": "e1",
        "user_id": living.reader(),
        "item_id": living.events["item_id"][0],
        "context": "reading",
        "event_timestamp": (living.until + timedelta(hours=1)).isoformat(),
        "label": 1,
        **changes,
    }


def scores(client: httpx.Client, living: Living) -> list[float]:
    items = sorted(set(living.events["item_id"]))[:10]
    asked = {"context": "reading", "user_id": living.reader(), "item_ids": items}
    return [item["score"] for item in client.post("/v1/rank", json=asked).json()["items"]]


def test_the_next_answer_reacts_to_an_event_and_not_to_its_repetition(
    client: httpx.Client, living: Living
) -> None:
    before = scores(client, living)
    body = {"events": [event(living), event(living)]}
    assert client.post("/v1/events", json=body).json() == {"recorded": 1, "repeated": 1}
    after = scores(client, living)
    assert after != before
    assert client.post("/v1/events", json=body).json() == {"recorded": 0, "repeated": 2}
    assert scores(client, living) == after


def test_a_server_that_starts_anew_still_knows_what_was_recorded(living: Living) -> None:
    for expected in ({"recorded": 1, "repeated": 0}, {"recorded": 0, "repeated": 1}):
        with serving(with_keys(living.settings)) as client:
            assert client.post("/v1/events", json={"events": [event(living)]}).json() == expected


@pytest.mark.parametrize(
    "change",
    [
        {"event_timestamp": "2020-01-01T00:00:00"},
        {"event_timestamp": "1999-12-31T23:59:59Z"},
        {"event_timestamp": "0001-01-01T00:00:00+23:59"},
        {"event_timestamp": "9999-12-31T23:59:59-23:59"},
        {"event_timestamp": (datetime.now(UTC) + timedelta(hours=1)).isoformat()},
        {"event_timestamp": 1_700_000_000},
        {"event_timestamp": "yesterday"},
        {"label": 2},
        {"label": True},
        {"label": "1"},
        {"weight": 0},
        {"weight": -1},
        {"weight": 1e300},
        {"weight": float("nan")},
        {"event_id": ""},
        {"user_id": "a\x00"},
        {"item_id": "x" * 257},
        {"position": 3},
    ],
)
def test_an_event_that_breaks_a_rule_refuses_the_batch(
    change: dict[str, Any], steady: httpx.Client, living: Living
) -> None:
    good = event(living, event_id=uuid.uuid4().hex)
    body = json.dumps({"events": [good, event(living, event_id=uuid.uuid4().hex) | change]})
    refused(steady.post("/v1/events", content=body), 400, "InputError")
    assert steady.post("/v1/events", json={"events": [good]}).json()["recorded"] == 1


def test_an_unknown_context_is_404_and_one_that_can_be_none_400(steady: httpx.Client, living: Living) -> None:
    for context, status, kind in (("liking", 404, "NotFoundError"), ("../x", 400, "ContextError")):
        body = {"events": [event(living, context=context)]}
        refused(steady.post("/v1/events", json=body), status, kind)


def test_no_events_are_none_and_too_many_are_400(client: httpx.Client, living: Living) -> None:
    assert client.post("/v1/events", json={"events": []}).json() == {"recorded": 0, "repeated": 0}
    many = [event(living, event_id=str(number)) for number in range(1001)]
    assert "at most 1000" in refused(client.post("/v1/events", json={"events": many}), 400, "InputError")
    assert client.post("/v1/events", json={"events": many[:1000]}).json()["recorded"] == 1000


def test_where_the_store_fails_nothing_is_recorded_and_the_same_events_can_come_again(
    client: httpx.Client, living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> None:
        raise ConnectionError("the online store is down")

    with monkeypatch.context() as patch:
        patch.setattr(Recommender, "record", down)
        assert "send the events again" in refused(
            client.post("/v1/events", json={"events": [event(living)]}), 503, "StoreError"
        )
    assert client.post("/v1/events", json={"events": [event(living)]}).json()["recorded"] == 1
