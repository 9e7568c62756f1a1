"""The request log: one JSON line a request, that gives nobody away and stops nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Living
from http_client import ADMIN, READ, serving, with_keys


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask(client: httpx.Client, user: str) -> int:
    return client.post("/v1/recommend", json={"context": "feed", "user_id": user, "n": 2}).status_code


def test_a_line_says_what_was_done_and_not_by_whom(living: Living, tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    with serving(with_keys(living.settings, request_log=log)) as client:
        ask(client, "somebody-secret")
        ask(client, "somebody-secret")
        ask(client, "another-secret")
        client.get("/v1/recommend", params={"context": "liking", "user_id": "another-secret"})
        client.get("/nowhere/of-secret")
    first, second, third, unknown, nowhere = lines(log)
    assert {
        "operation": "recommend",
        "status": 200,
        "context": "feed",
        "bundle": living.version,
    }.items() <= first.items()
    assert 0 < first["milliseconds"] < 60_000
    assert first["user"] == second["user"] != third["user"]
    assert (unknown["operation"], unknown["status"]) == ("recommend_by_query", 404)
    assert (nowhere["operation"], nowhere["status"]) == ("unknown", 404)
    for secret in ("secret", READ, ADMIN, living.settings.workspace.name + "/"):
        assert secret not in log.read_text()


@pytest.mark.parametrize("salt", [None, "a salt of mine"])
def test_a_user_looks_alike_in_two_logs_only_with_a_salt_of_ones_own(
    salt: str | None, living: Living, tmp_path: Path
) -> None:
    found = []
    for number in range(2):
        log = tmp_path / f"{number}.jsonl"
        with serving(with_keys(living.settings, request_log=log, log_salt=salt)) as client:
            ask(client, "somebody")
        found.append(lines(log)[0]["user"])
    assert (found[0] == found[1]) is (salt is not None)


def failures(client: httpx.Client) -> float:
    told = client.get("/metrics").text.splitlines()
    return float(
        next(line for line in told if line.startswith("recmeta_request_log_failures_total")).split()[1]
    )


def test_a_full_disk_fails_no_request_and_is_counted(living: Living) -> None:
    with serving(with_keys(living.settings, request_log="/dev/full")) as client:
        assert [ask(client, "somebody") for _ in range(3)] == [200] * 3
        assert failures(client) == 3


def test_a_log_that_cannot_be_opened_fails_no_request_and_is_written_once_it_can(
    living: Living, tmp_path: Path
) -> None:
    log = tmp_path / "later" / "requests.jsonl"
    with serving(with_keys(living.settings, request_log=log)) as client:
        assert ask(client, "somebody") == 200
        assert failures(client) == 1
        log.parent.mkdir()
        assert ask(client, "somebody") == 200
    assert lines(log)[-1]["operation"] == "recommend"


def test_the_log_goes_to_standard_error_where_that_is_asked(
    living: Living, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(with_keys(living.settings, request_log="-")) as client:
        ask(client, "somebody")
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["operation"] == "recommend"
