"""The HTTP API: whatever a client sends gives an answer or a typed 4xx, never a 5xx."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from conftest import Living, publish
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from recmeta.serving.http import create_app
from recmeta.settings import Settings, load_settings


@contextmanager
def serving(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the application, which runs in a thread on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            as_json = {"content-type": "application/json"}  # whatever the body, it claims to be JSON
            with httpx.Client(base_url=address, headers=as_json, timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def client(living: Living) -> Iterator[httpx.Client]:
    with serving(load_settings(living.settings.workspace, serving={"refresh_seconds": 0})) as made:
        yield made


def refused(response: httpx.Response, status: int, kind: str) -> str:
    """Check that a response is a typed error; return its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert body["error"]["type"] == kind
    message: str = body["error"]["message"]
    assert len(message) < 1000
    return message


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


def test_health_names_the_bundle_and_what_serves_each_context(client: httpx.Client, living: Living) -> None:
    assert client.get("/health").json() == {
        "status": "ok",
        "bundle": living.version,
        "until": living.until.isoformat(),
        "contexts": {"commenting": "nothing", "feed": "shared", "reading": "adapter"},
    }


@pytest.mark.parametrize("user", ["nobody", "張三", "../../etc/passwd", "' OR 1=1 --", "a" * 256])
def test_an_unknown_user_is_an_ordinary_answer(user: str, client: httpx.Client) -> None:
    response = client.post("/v1/recommend", json={"context": "feed", "user_id": user})
    assert response.status_code == 200
    assert response.json()["user_id"] == user
    assert "unknown user" in response.json()["reason"]


def test_an_unknown_context_is_404(client: httpx.Client) -> None:
    message = refused(
        client.get("/v1/recommend", params={"context": "liking", "user_id": "u"}), 404, "NotFoundError"
    )
    assert "commenting, feed, reading" in message


@pytest.mark.parametrize("context", ["../x", "", "Feed", "fünf", "x" * 4096, "\ud800", "a\x00"])
def test_what_cannot_name_a_context_is_400(context: str, client: httpx.Client) -> None:
    body = json.dumps({"context": context, "user_id": "u", "item_ids": []})
    refused(client.post("/v1/rank", content=body), 400, "ContextError")


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": ""},
        {"user_id": "x" * 257},
        {"user_id": "a\x00"},
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
def test_a_wrong_value_is_a_typed_400(change: dict[str, Any], client: httpx.Client) -> None:
    asked = {"context": "feed", "user_id": "u", "item_ids": ["a"], **change}
    refused(client.post("/v1/rank", content=json.dumps(asked)), 400, "InputError")


@pytest.mark.parametrize("n", [0, -1, 1001, 1.5, "5", True, None, float("nan"), float("inf"), 10**40])
def test_a_wrong_number_of_items_is_a_typed_400(n: object, client: httpx.Client) -> None:
    body = json.dumps({"context": "feed", "user_id": "u", "n": n})
    refused(client.post("/v1/recommend", content=body), 400, "InputError")


@pytest.mark.parametrize(
    "query", ["", "context=feed", "context=feed&user_id=u&n=x", "context=feed&user_id=%00"]
)
def test_a_wrong_query_is_a_typed_400(query: str, client: httpx.Client) -> None:
    refused(client.get(f"/v1/recommend?{query}"), 400, "InputError")


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
def test_a_body_that_is_no_request_is_a_typed_400(body: bytes, client: httpx.Client) -> None:
    refused(client.post("/v1/recommend", content=body), 400, "InputError")


def test_a_body_that_does_not_say_it_is_json_is_a_typed_400(client: httpx.Client) -> None:
    body = json.dumps({"context": "feed", "user_id": "u"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
        response = client.post("/v1/recommend", content=body, headers={"content-type": kind})
        refused(response, 400, "InputError")


def test_a_body_that_is_too_large_is_413_before_it_is_read_whole(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b" " * 65_536

    refused(client.post("/v1/rank", content=b" " * (1 << 21)), 413, "InputError")
    refused(client.post("/v1/rank", content=endless()), 413, "InputError")


def test_other_paths_and_methods_are_typed_errors_too(client: httpx.Client) -> None:
    refused(client.get("/nowhere"), 404, "NotFoundError")
    refused(client.get("/v1/rank"), 405, "InputError")
    refused(client.put("/v1/recommend"), 405, "InputError")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(["feed", "reading", "user-0001"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@examples(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    path=st.sampled_from(["/v1/rank", "/v1/recommend"]),
    body=st.fixed_dictionaries(
        {},
        optional={
            "context": st.just("feed") | json_values,
            "user_id": st.just("u") | json_values,
            "item_ids": st.lists(st.text(st.characters(codec=None), max_size=5), max_size=3) | json_values,
            "n": st.integers(-3, 2000) | json_values,
            "exclude_seen": st.booleans() | json_values,
        },
    )
    | json_values,
)
def test_no_body_at_all_gives_a_5xx(client: httpx.Client, path: str, body: object) -> None:
    response = client.post(path, content=json.dumps(body))
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"type", "message"}


def test_a_newly_promoted_bundle_is_picked_up_without_a_restart(
    client: httpx.Client, living: Living, tmp_path: Path
) -> None:
    assert client.get("/health").json()["bundle"] == living.version
    (tmp_path / "files").mkdir()
    version = publish(living.settings, living.contexts, living.until, seed=2, files=tmp_path / "files")
    assert version != living.version
    assert client.get("/health").json()["bundle"] == version
    answer = client.post("/v1/recommend", json={"context": "feed", "user_id": "u"}).json()
    assert answer["bundle"] == version


def test_a_damaged_new_bundle_leaves_the_old_one_serving_and_health_says_so(
    client: httpx.Client, living: Living, tmp_path: Path
) -> None:
    assert client.get("/health").json()["status"] == "ok"
    (tmp_path / "files").mkdir()
    version = publish(living.settings, living.contexts, living.until, seed=2, files=tmp_path / "files")
    (living.settings.bundles_folder / version / "catalogue.parquet").write_bytes(b"damaged")
    health = client.get("/health")
    assert health.status_code == 200
    assert (health.json()["status"], health.json()["bundle"]) == ("degraded", living.version)
    assert "catalogue.parquet" in health.json()["reason"]
    assert client.post("/v1/recommend", json={"context": "feed", "user_id": "u"}).status_code == 200


def test_without_a_champion_every_answer_is_a_typed_503(tmp_path: Path) -> None:
    with serving(load_settings(tmp_path)) as client:
        for response in (
            client.get("/health"),
            client.post("/v1/recommend", json={"context": "feed", "user_id": "u"}),
        ):
            assert "recmeta nightly" in refused(response, 503, "NoChampionError")


def test_a_damaged_champion_at_the_start_is_a_typed_503_that_names_the_file(living: Living) -> None:
    (living.settings.bundles_folder / living.version / "catalogue.parquet").write_bytes(b"damaged")
    with serving(living.settings) as client:
        assert "catalogue.parquet" in refused(client.get("/health"), 503, "NoChampionError")


@pytest.fixture
def server(living: Living) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`recmeta serve` on a free port: the process, and the address that it tells."""
    process = subprocess.Popen(
        [sys.executable, "-m", "recmeta.cli", "serve", "--port", "0", "-w", str(living.settings.workspace)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("recmeta serves on http://"), line + process.stderr.read()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def test_the_server_tells_its_address_answers_and_ends_cleanly(
    server: tuple[subprocess.Popen[str], str], living: Living
) -> None:
    process, address = server
    answer = httpx.get(f"{address}/v1/recommend", params={"context": "feed", "user_id": "u"}, timeout=60)
    assert answer.json()["bundle"] == living.version
    port = int(address.rpartition(":")[2])
    assert address.startswith("http://127.0.0.1:")
    outside = socket.gethostbyname(socket.gethostname())
    if not outside.startswith("127."):
        with pytest.raises(OSError, match=""), socket.create_connection((outside, port), timeout=2):
            pass
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) in (0, -signal.SIGTERM)


def test_a_port_that_is_taken_is_one_line_and_an_exit_code(living: Living) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-m", "recmeta.cli", "serve", "-w", living.settings.workspace, "--port", port],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 1
    assert "in use" in ran.stderr
    assert ran.stderr.count("\n") == 1
