"""How much a client may send: a body is never read past its limit, and a rate holds for each client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from conftest import Living
from http_client import READ, refused, serving, with_keys

from recmeta.serving import limits
from recmeta.serving.limits import RateLimit, TooManyRequestsError


class Clock:
    """A clock that stands until it is told to go."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_holds_a_seconds_worth_and_fills_at_the_rate() -> None:
    clock = Clock()
    limit = RateLimit(4, clock)
    for _ in range(4):
        limit.take("a")
    with pytest.raises(TooManyRequestsError, match="at most 4 requests a second") as raised:
        limit.take("a")
    assert raised.value.retry_after == 1
    limit.take("b")
    clock.now = 0.25
    limit.take("a")
    with pytest.raises(TooManyRequestsError):
        limit.take("a")
    clock.now = 100.0
    for _ in range(4):
        limit.take("a")
    with pytest.raises(TooManyRequestsError):
        limit.take("a")


def test_a_rate_below_one_a_second_says_how_long_to_wait() -> None:
    limit = RateLimit(0.1, Clock())
    limit.take("a")
    with pytest.raises(TooManyRequestsError) as raised:
        limit.take("a")
    assert raised.value.retry_after == 10


def test_clients_are_forgotten_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_CLIENTS", 100)
    limit = RateLimit(1, Clock())
    for client in range(1000):
        limit.take(client)
    assert len(limit._buckets) == 100


def test_who_asks_too_often_gets_a_429_that_says_when_to_come_back(living: Living) -> None:
    with serving(with_keys(living.settings, requests_per_second=3)) as client:
        answers = [client.get("/v1/bundles") for _ in range(8)]
        assert answers[0].status_code == 200
        limited = next(answer for answer in answers if answer.status_code != 200)
        assert "3 requests a second" in refused(limited, 429, "TooManyRequestsError")
        assert limited.headers["retry-after"] == "1"
        assert client.get("/health/live").status_code == 200
        assert client.get("/v1/bundles", headers={"authorization": f"Bearer {READ}"}).status_code == 200


def test_guesses_of_keys_are_limited_too(living: Living) -> None:
    with serving(with_keys(living.settings, requests_per_second=3), key="wrong") as client:
        assert {client.get("/v1/bundles").status_code for _ in range(8)} == {401, 429}


def test_a_body_of_ten_megabytes_is_413(living: Living) -> None:
    body = b'{"context": "' + b"x" * 10_000_000 + b'"}'
    with serving(with_keys(living.settings)) as client:
        for path in ("/v1/rank", "/v1/recommend", "/v1/events", "/v1/promote", "/v1/rollback"):
            refused(client.post(path, content=body), 413, "TooLargeError")
        assert client.get("/health/ready").status_code == 200


def test_only_an_upload_may_be_larger_and_only_up_to_its_own_limit(living: Living) -> None:
    with serving(with_keys(living.settings, largest_upload=2_000_000)) as client:
        ask = {"params": {"context": "saving"}, "headers": {"content-type": "text/csv"}}
        refused(client.post("/v1/onboard", content=b"x" * 2_000_001, **ask), 413, "TooLargeError")
        assert client.post("/v1/onboard", content=b"x" * 1_999_999, **ask).status_code == 202
    assert not list((living.settings.serving_folder / "uploads").iterdir())


def test_nothing_is_read_of_a_body_that_comes_without_a_key(living: Living) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 65_536
            yield b" " * 65_536

    # The server may close while the client is still sending.
    closed = suppress(httpx.WriteError, httpx.ReadError)
    with serving(with_keys(living.settings), key=None) as client, closed:
        refused(client.post("/v1/onboard", content=endless()), 401, "KeyMissingError")
    assert sent < 100_000_000


def test_a_hundred_thousand_items_are_refused_and_a_thousand_ranked(living: Living) -> None:
    with serving(with_keys(living.settings)) as client:
        asked = {"context": "feed", "user_id": "u", "item_ids": [f"i{n}" for n in range(100_000)]}
        assert client.post("/v1/rank", json=asked).status_code in (400, 413)
        short = {**asked, "item_ids": [str(n) for n in range(100_000)]}
        assert "at most 1000" in refused(client.post("/v1/rank", json=short), 400, "InputError")
        asked["item_ids"] = asked["item_ids"][:1000]
        assert len(client.post("/v1/rank", json=asked).json()["items"]) == 1000
