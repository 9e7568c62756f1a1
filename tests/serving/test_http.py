"""The HTTP API: whatever a client sends gives an answer or a typed 4xx, never a 5xx."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Living, publish
from http_client import refused, serving, until, with_keys

from recmeta.bundle.listing import bundles_as_json
from recmeta.bundle.store import BundleStore
from recmeta.serving.served_log import scan_served
from recmeta.settings import load_settings


def test_recommend_answers_alike_by_query_and_by_body(client: httpx.Client, living: Living) -> None:
    asked = {"context": "feed", "user_id": living.reader(), "n": 5}
    by_body = client.post("/v1/recommend", json=asked)
    by_query = client.get("/v1/recommend", params=asked)
    assert by_body.status_code == 200
    assert by_body.json() == by_query.json()
    assert by_body.json()["bundle"] == living.version
    assert [item["rank"] for item in by_body.json()["items"]] == [1, 2, 3, 4, 5]


def test_rank_orders_the_given_candidates(client: httpx.Client, living: Living) -> None:
    items = sorted(set(living.events["item_id"]))[:7]
    answer = client.post(
        "/v1/rank", json={"context": "reading", "user_id": living.reader(), "item_ids": items}
    ).json()
    assert sorted(item["item_id"] for item in answer["items"]) == items


def test_readiness_names_the_bundle_and_liveness_asks_for_none(client: httpx.Client, living: Living) -> None:
    ready = client.get("/health/ready").json()
    assert {**ready, "until": datetime.fromisoformat(ready["until"])} == {
        "status": "ok", "bundle": living.version, "until": living.until,
    }  # fmt: skip
    assert client.get("/health/live").json() == {"status": "ok"}


def test_contexts_says_what_serves_each_of_them_and_why(client: httpx.Client, living: Living) -> None:
    told = client.get("/v1/contexts").json()
    assert told["bundle"] == living.version
    assert {entry["name"]: (entry["serves"], entry["reason"]) for entry in told["contexts"]} == {
        "commenting": ("nothing", "refused"), "feed": ("shared", ""), "reading": ("adapter", ""),
    }  # fmt: skip
    described = {entry["name"]: entry["description"] for entry in told["contexts"]}
    assert described == {name: living.contexts.contexts[name].description for name in living.contexts.names}


def test_the_latest_report_is_a_page_in_which_nothing_runs(client: httpx.Client, living: Living) -> None:
    refused(client.get("/v1/report"), 404, "NotFoundError")
    for number, night in enumerate(("20260101-b", "20260101-a")):
        page = living.settings.runs_folder / night / "report.html"
        page.parent.mkdir(parents=True)
        page.write_text(f"<!doctype html>{night}")
        os.utime(page, (number, number))
    report = client.get("/v1/report")
    assert (report.status_code, report.text) == (200, "<!doctype html>20260101-a")
    assert report.headers["content-type"] == "text/html; charset=utf-8"
    assert "script" not in report.headers["content-security-policy"]
    assert "sandbox" in report.headers["content-security-policy"]


def test_evidence_is_empty_where_the_bundle_has_none(steady: httpx.Client) -> None:
    assert steady.get("/v1/evidence").json() == {}


def test_bundles_are_those_of_the_command_line(client: httpx.Client, living: Living) -> None:
    assert client.get("/v1/bundles").json() == bundles_as_json(BundleStore(living.settings.bundles_folder))


def test_the_console_is_served_with_its_types_and_a_strict_policy(steady: httpx.Client) -> None:
    for path, kind, cache in (
        ("/", "text/html; charset=utf-8", "no-store"),
        ("/console/app.js", "text/javascript; charset=utf-8", "no-cache"),
    ):
        page = steady.get(path, headers={"authorization": ""})
        assert (page.status_code, page.headers["content-type"]) == (200, kind)
        assert (page.headers["cache-control"], page.headers["x-content-type-options"]) == (cache, "nosniff")
        assert (
            "default-src 'none'; script-src 'self'; style-src 'self'"
            in page.headers["content-security-policy"]
        )


@pytest.mark.parametrize("name", ["..%2fhttp.py", "%2e%2e/http.py", "nothing.js", "%00", "a" * 5000, "."])
def test_the_console_serves_nothing_but_its_own_files(name: str, steady: httpx.Client) -> None:
    refused(steady.get(f"/console/{name}"), 404, "NotFoundError")


def test_without_a_console_its_pages_are_not_found(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recmeta.serving.http.CONSOLE", tmp_path / "none")
    refused(client.get("/"), 404, "NotFoundError")


@pytest.mark.parametrize("user", ["nobody", "張三", "../../etc/passwd", "' OR 1=1 --", "a" * 256])
def test_an_unknown_user_is_an_ordinary_answer(user: str, steady: httpx.Client) -> None:
    response = steady.post("/v1/recommend", json={"context": "feed", "user_id": user})
    assert response.status_code == 200
    assert response.json()["user_id"] == user
    assert "unknown user" in response.json()["reason"]


def test_an_unknown_context_is_404(steady: httpx.Client) -> None:
    message = refused(
        steady.get("/v1/recommend", params={"context": "liking", "user_id": "u"}), 404, "NotFoundError"
    )
    assert "commenting, feed, reading" in message


@pytest.mark.parametrize("context", ["../x", "", "Feed", "fünf", "x" * 4096, "a\x00", "feed\n"])
def test_what_cannot_name_a_context_is_400(context: str, steady: httpx.Client) -> None:
    body = json.dumps({"context": context, "user_id": "u", "item_ids": []})
    refused(steady.post("/v1/rank", content=body), 400, "ContextError")


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": ""},
        {"user_id": "x" * 257},
        {"user_id": "a\x00"},
        {"context": "\ud800"},
        {"user_id": "\ud800"},
        {"user_id": 7},
        {"user_id": None},
        {"user_id": float("nan")},
        {"item_ids": "abc"},
        {"item_ids": [1]},
        {"item_ids": [float("nan")]},
        {"item_ids": [None]},
        {"item_ids": {"a": 1}},
        {"item_ids": [""]},
        {"item_ids": [str(number) for number in range(1001)]},
        {"context": ["feed"]},
        {"unknown": 1},
        {"\ud800": 1},
        {"x" * 100_000: 1},
    ],
)
def test_a_wrong_value_is_a_typed_400(change: dict[str, Any], steady: httpx.Client) -> None:
    asked = {"context": "feed", "user_id": "u", "item_ids": ["a"], **change}
    refused(steady.post("/v1/rank", content=json.dumps(asked)), 400, "InputError")


@pytest.mark.parametrize("n", [0, -1, 1001, 1.5, "5", 5.5, True, None, float("nan"), float("inf"), 10**40])
def test_a_wrong_number_of_items_is_a_typed_400(n: object, steady: httpx.Client) -> None:
    body = json.dumps({"context": "feed", "user_id": "u", "n": n})
    refused(steady.post("/v1/recommend", content=body), 400, "InputError")


@pytest.mark.parametrize(
    "query", ["", "context=feed", "context=feed&user_id=u&n=x", "context=feed&user_id=%00"]
)
def test_a_wrong_query_is_a_typed_400(query: str, steady: httpx.Client) -> None:
    refused(steady.get(f"/v1/recommend?{query}"), 400, "InputError")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"context": "feed", "user_id": "u", "n": ' + b"9" * 5000 + b"}",
        b'{"context": "feed", "user_id": "u", "user_id": ' + b"[]}",
        b'{"context": "feed", "user_id": "\\ud800", "n": NaN}',
    ],
)
def test_a_body_that_is_no_request_is_a_typed_400(body: bytes, steady: httpx.Client) -> None:
    refused(steady.post("/v1/recommend", content=body), 400, "InputError")


def test_a_body_that_does_not_say_it_is_json_is_a_typed_415(steady: httpx.Client) -> None:
    body = json.dumps({"context": "feed", "user_id": "u"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
        response = steady.post("/v1/recommend", content=body, headers={"content-type": kind})
        refused(response, 415, "MediaTypeError")


def test_a_body_that_is_too_large_is_413_before_it_is_read_whole(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b" " * 65_536

    refused(client.post("/v1/rank", content=b" " * (1 << 21)), 413, "TooLargeError")
    refused(client.post("/v1/rank", content=endless()), 413, "TooLargeError")


def test_other_paths_and_methods_are_typed_errors_too(steady: httpx.Client) -> None:
    refused(steady.get("/nowhere"), 404, "NotFoundError")
    refused(steady.get("/v1/rank"), 405, "InputError")
    refused(steady.put("/v1/recommend"), 405, "InputError")
    assert steady.put("/v1/recommend").headers["allow"] == "GET, POST"


def test_a_newly_promoted_bundle_is_picked_up_without_a_restart(
    client: httpx.Client, living: Living, tmp_path: Path
) -> None:
    assert client.get("/health/ready").json()["bundle"] == living.version
    (tmp_path / "files").mkdir()
    version = publish(living.settings, living.contexts, living.until, seed=2, files=tmp_path / "files")
    assert version != living.version
    until(lambda: bool(client.get("/health/ready").json()["bundle"] == version))
    answer = client.post("/v1/recommend", json={"context": "feed", "user_id": "u"}).json()
    assert answer["bundle"] == version


def test_a_damaged_new_bundle_leaves_the_old_one_serving_and_readiness_says_so(
    client: httpx.Client, living: Living, tmp_path: Path
) -> None:
    assert client.get("/health/ready").json()["status"] == "ok"
    (tmp_path / "files").mkdir()
    version = publish(living.settings, living.contexts, living.until, seed=2, files=tmp_path / "files")
    (living.settings.bundles_folder / version / "catalogue.parquet").write_bytes(b"damaged")
    until(lambda: bool(client.get("/health/ready").json()["status"] == "degraded"))
    health = client.get("/health/ready")
    assert health.status_code == 200
    assert (health.json()["status"], health.json()["bundle"]) == ("degraded", living.version)
    assert "catalogue.parquet" in health.json()["reason"]
    assert client.post("/v1/recommend", json={"context": "feed", "user_id": "u"}).status_code == 200


def test_without_a_champion_every_answer_is_a_typed_503(tmp_path: Path) -> None:
    with serving(with_keys(load_settings(tmp_path))) as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/metrics").status_code == 200
        for response in (
            client.get("/health/ready"),
            client.post("/v1/recommend", json={"context": "feed", "user_id": "u"}),
        ):
            assert "recmeta nightly" in refused(response, 503, "NoChampionError")


def test_a_damaged_champion_at_the_start_is_a_typed_503_that_names_the_file(living: Living) -> None:
    (living.settings.bundles_folder / living.version / "catalogue.parquet").write_bytes(b"damaged")
    with serving(with_keys(living.settings)) as client:
        assert "catalogue.parquet" in refused(client.get("/health/ready"), 503, "NoChampionError")


def test_explored_lists_are_logged_and_a_challenger_is_compared(living: Living, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    challenger = publish(living.settings, living.contexts, living.until, seed=2, files=tmp_path / "files")
    BundleStore(living.settings.bundles_folder).rollback(living.version)
    explored = {"feed": {"budget": 1.0}}
    asked = {"context": "feed", "user_id": living.reader(), "n": 5}
    with serving(
        with_keys(living.settings, exploration=explored, shadow=challenger, shadow_share=1)
    ) as client:
        answer = client.post("/v1/recommend", json=asked).json()
        assert all(0 < item["propensity"] <= 1 for item in answer["items"])
    logged = scan_served(living.settings.served_folder).filter(user_id=asked["user_id"]).collect()
    assert logged["item_id"].to_list() == [item["item_id"] for item in answer["items"]]
    assert list((living.settings.shadow_folder / challenger).glob("*.json"))
